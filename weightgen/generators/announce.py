"""The announcement of IGPG: an instruction becomes the layout of a network before a single weight is written.

A text encoder reads the instruction. A recurrent model, which attends to what the encoder made of every token, says one
thing after the other: the activation of a perceptron, the number of its hidden layers, then the size of each; or, in
one word, a network of another family that was learned from. What may be said at each step is fixed, so every
announcement is a network that can be built. It learns from perceptrons that are drawn at random and put into words in
many ways (``generators/instructions.py``), so it knows sizes that no network of the zoo has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from weightgen.nn import check_heads
from zoo.config import StrictConfig
from zoo.kinds.dense import layout_of
from zoo.types import Layout


class AnnounceConfig(StrictConfig):
    """Which multi-layer perceptrons may be announced, and how that is learned."""

    deepest: int = Field(default=5, ge=1, le=8, description="hidden layers")
    narrowest: int = Field(default=4, ge=1, description="units of a hidden layer")
    widest: int = Field(default=40, ge=1)
    texts: int = Field(default=4096, ge=1, description="instructions to learn from")
    width: int = Field(default=192, ge=8)
    heads: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.narrowest > self.widest:
            raise ValueError(f"narrowest is {self.narrowest}, widest {self.widest}: nothing can be announced")
        check_heads(self.width, self.heads)
        return self


@dataclass(frozen=True)
class Shape:
    """A multi-layer perceptron without inputs and outputs, or a network of another family.

    Attributes:
        kind: the activation of a perceptron, or what another network is called.
        hidden: sizes of the hidden layers of a perceptron.
    """

    kind: str
    hidden: tuple[int, ...] = ()


class Announcer(nn.Module):
    """Says a shape, one word after the other: an activation, a count, that many sizes; or a whole network."""

    def __init__(
        self, config: AnnounceConfig, activations: Sequence[str], others: Sequence[str], text_size: int
    ) -> None:
        """Make the model, untrained.

        Args:
            config: what may be announced.
            activations: of perceptrons; those that may be announced.
            others: names of networks that are no perceptrons.
            text_size: of the vectors of an instruction.
        """
        super().__init__()
        self.config, self.activations, self.others = config, tuple(activations), tuple(others)
        self.kinds = self.activations + self.others
        self.first_size = len(self.kinds) + config.deepest
        count = self.first_size + config.widest - config.narrowest + 1
        self.read = nn.Sequential(nn.LayerNorm(text_size), nn.Linear(text_size, config.width))
        self.start = nn.Sequential(nn.GELU(), nn.Linear(config.width, config.width))
        self.word = nn.Embedding(count, config.width)
        self.cell = nn.GRUCell(2 * config.width, config.width)
        self.keys = nn.Linear(config.width, 2 * config.width)
        self.query = nn.Linear(config.width, config.width)
        self.head = nn.Sequential(nn.Linear(2 * config.width, config.width), nn.GELU())
        self.out = nn.Linear(config.width, count)

    def words(self, shape: Shape) -> list[int]:
        """A shape as the words that announce it."""
        kind = self.kinds.index(shape.kind)
        sizes = [self.first_size + size - self.config.narrowest for size in shape.hidden]
        return [kind, len(self.kinds) + len(sizes) - 1, *sizes] if sizes else [kind]

    def shape(self, words: Sequence[int]) -> Shape:
        """Inverse of ``words``."""
        return Shape(self.kinds[words[0]], tuple(w - self.first_size + self.config.narrowest for w in words[2:]))

    def length(self, words: Sequence[int]) -> int:
        """How many words an announcement has that begins with these."""
        if words[0] >= len(self.activations):
            return 1
        return 2 if len(words) < 2 else words[1] - len(self.kinds) + 3

    def legal(self, step: int) -> slice:
        """The words that may be said at a step."""
        bounds = (0, len(self.kinds), self.first_size, None)
        start = min(step, 2)
        return slice(bounds[start], bounds[start + 1])

    def _begin(self, about: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of every token, and the first state."""
        read = self.read(about)
        weight = mask[..., None].to(read.dtype)
        heads = rearrange(self.keys(read), "b k (two h d) -> two b h k d", two=2, h=self.config.heads)
        return heads, self.start((read * weight).sum(1) / weight.sum(1))

    def _step(
        self, heads: Tensor, mask: Tensor, state: Tensor, seen: Tensor, word: Int[Tensor, " b"] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the next word, state, and what was looked at."""
        if word is not None:
            state = self.cell(torch.cat([self.word(word), seen], -1), state)
        query = rearrange(self.query(state), "b (h d) -> b h 1 d", h=self.config.heads)
        seen = F.scaled_dot_product_attention(query, heads[0], heads[1], mask[:, None, None])
        seen = rearrange(seen, "b h 1 d -> b (h d)")
        return self.out(self.head(torch.cat([state, seen], -1))), state, seen

    def loss(
        self, about: Float[Tensor, "b k e"], mask: Bool[Tensor, "b k"], shapes: Sequence[Shape]
    ) -> Float[Tensor, ""]:
        """Cross-entropy of announcements, per instruction.

        Args:
            about: vectors of the tokens of instructions.
            mask: true where there is a token.
            shapes: the network that each asks for.
        """
        lines = [self.words(shape) for shape in shapes]
        longest = max(map(len, lines))
        words = torch.tensor([line + [0] * (longest - len(line)) for line in lines], device=about.device)
        there = torch.tensor([[i < len(line) for i in range(longest)] for line in lines], device=about.device)
        heads, state = self._begin(about, mask)
        total, seen, before = about.new_zeros(()), state, None
        for step in range(longest):
            logits, state, seen = self._step(heads, mask, state, seen, before)
            some, before, legal = there[:, step], words[:, step], self.legal(step)
            wanted = before[some] - (legal.start or 0)
            total = total + F.cross_entropy(logits[some, legal], wanted, reduction="sum")
        return total / len(lines)

    @torch.no_grad()
    def announce(self, about: Float[Tensor, "b k e"], mask: Bool[Tensor, "b k"]) -> list[Shape]:
        """The most likely word at every step."""
        heads, state = self._begin(about, mask)
        lines, seen, before = [list[int]() for _ in range(len(about))], state, None
        for step in range(self.config.deepest + 2):
            logits, state, seen = self._step(heads, mask, state, seen, before)
            legal = self.legal(step)
            before = logits[:, legal].argmax(-1) + (legal.start or 0)
            for line, word in zip(lines, before.tolist(), strict=True):
                if not line or len(line) < self.length(line):
                    line.append(word)
        return [self.shape(line) for line in lines]

    def random(self, count: int, generator: torch.Generator) -> list[Shape]:
        """Shapes to learn from: perceptrons, most of one width, and a third of other networks, if there are any."""
        c, found = self.config, []
        for _ in range(count):
            if self.others and (not self.activations or torch.rand((), generator=generator) < 1 / 3):
                found.append(Shape(self.others[int(torch.randint(len(self.others), (), generator=generator))]))
                continue
            depth = int(torch.randint(1, c.deepest + 1, (), generator=generator))
            sizes = torch.randint(c.narrowest, c.widest + 1, (depth,), generator=generator)
            if torch.rand((), generator=generator) < 0.75:
                sizes = sizes[:1].expand(depth)
            activation = self.activations[int(torch.randint(len(self.activations), (), generator=generator))]
            found.append(Shape(activation, tuple(sizes.tolist())))
        return found


def announced(shape: Shape, inputs: Sequence[int], classes: int) -> Layout:
    """Layout of the announced perceptron, with inputs and outputs that follow from the task."""
    sizes = [torch.Size(inputs).numel(), *shape.hidden, classes]
    return layout_of({"family": "mlp", "sizes": sizes, "activation": shape.kind})
