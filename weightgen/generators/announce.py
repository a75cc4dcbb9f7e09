"""The announcement of IGPG: an instruction becomes the layout of a network before a single weight is written.

The vector that a text encoder gives for an instruction starts a recurrent model that says one thing after the other:
activation, then the size of every hidden layer, then that it is done. What may be said at each step is fixed, so every
announcement is a network that can be built. It learns from architectures that are drawn at random and put into words
in many ways, so it knows sizes that no network of the zoo has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from zoo.config import StrictConfig
from zoo.kinds.dense import layout_of
from zoo.types import Layout

COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


class AnnounceConfig(StrictConfig):
    """Which multi-layer perceptrons may be announced, and how that is learned."""

    deepest: int = Field(default=5, ge=1, le=8, description="hidden layers")
    narrowest: int = Field(default=4, ge=1, description="units of a hidden layer")
    widest: int = Field(default=40, ge=1)
    texts: int = Field(default=4096, ge=1, description="instructions to learn from")
    width: int = Field(default=192, ge=8)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.narrowest > self.widest:
            raise ValueError(f"narrowest is {self.narrowest}, widest {self.widest}: nothing can be announced")
        return self


@dataclass(frozen=True)
class Shape:
    """A multi-layer perceptron without inputs and outputs.

    Attributes:
        activation: its name.
        hidden: sizes of the hidden layers.
    """

    activation: str
    hidden: tuple[int, ...]


def _pick(options: Sequence[str], generator: torch.Generator) -> str:
    return options[int(torch.randint(len(options), (), generator=generator))]


def _depths(depth: int) -> list[str]:
    count = COUNTS[depth]
    layer = "layer" if depth == 1 else "layers"
    return [
        f"{depth + 1}-layer",
        f"{COUNTS[depth + 1]}-layer" if depth < len(COUNTS) - 1 else f"{depth + 1}-layer",
        f"with {depth} hidden {layer}",
        f"with {count} hidden {layer}",
        f"of depth {depth + 1}",
    ]


def _widths(hidden: Sequence[int], config: AnnounceConfig) -> list[str]:
    if len(set(hidden)) > 1:
        listed = ", ".join(map(str, hidden))
        return [f"hidden sizes {listed}", f"layers of {listed} units", f"hidden layers of {listed} neurons"]
    size = hidden[0]
    exact = [f"{size} units wide", f"of width {size}", f"with {size} hidden units", f"{size} neurons a layer"]
    share = (size - config.narrowest) / max(config.widest - config.narrowest, 1)
    loose = (
        ["narrow", "thin", "small"] if share < 1 / 3 else ["wide", "broad", "large"] if share > 2 / 3 else ["medium"]
    )
    return [*exact, *loose]


def phrase(shape: Shape, inputs: Sequence[int], classes: int, config: AnnounceConfig, rng: torch.Generator) -> str:
    """Say in words which network is wanted, in one of many ways; some things are left out.

    Args:
        shape: the network.
        inputs: shape of an example.
        classes: number of outputs.
        config: what counts as narrow and wide.
        rng: decides how it is said.
    """
    if torch.rand((), generator=rng) < 0.15:
        sizes = "-".join(map(str, [torch.Size(inputs).numel(), *shape.hidden, classes]))
        return f"{sizes} {shape.activation} MLP"
    kind = _pick(["MLP", "multi-layer perceptron", "fully connected network", "network", "feed-forward net"], rng)
    parts = [_pick(_depths(len(shape.hidden)), rng), _pick(_widths(shape.hidden, config), rng)]
    said = [part for part in parts if torch.rand((), generator=rng) < 0.85]
    before = [part for part in said if " " not in part]
    after = [part for part in said if " " in part]
    if torch.rand((), generator=rng) < 0.85:
        before.append(shape.activation)
    where = "x".join(map(str, inputs[-2:]))
    data = ["", "", f"for {where} images", f"for {where} digits", f"for {classes} classes", "for digits"]
    after.append(_pick(data, rng))
    order = torch.randperm(len(after), generator=rng).tolist()
    tail = [after[i] for i in order if after[i]]
    if before and torch.rand((), generator=rng) < 0.3:
        tail.append(before.pop(0))
    start = _pick(["", "", "a ", "write a ", "I want a ", "please give me a "], rng)
    return start + " ".join([*before, kind]) + "".join(_pick([" ", ", "], rng) + part for part in tail)


class Announcer(nn.Module):
    """Says a shape, one word after the other: an activation, sizes of hidden layers, the end."""

    def __init__(self, config: AnnounceConfig, activations: Sequence[str], text_size: int) -> None:
        """Make the model, untrained.

        Args:
            config: what may be announced.
            activations: those that may be announced.
            text_size: of the vector of an instruction.
        """
        super().__init__()
        self.config, self.activations = config, tuple(activations)
        sizes = config.widest - config.narrowest + 1
        self.end = len(self.activations) + sizes
        self.start = nn.Sequential(nn.Linear(text_size, config.width), nn.GELU(), nn.Linear(config.width, config.width))
        self.word = nn.Embedding(self.end + 1, config.width)
        self.cell = nn.GRUCell(config.width, config.width)
        self.head = nn.Sequential(nn.Linear(2 * config.width, config.width), nn.GELU())
        self.out = nn.Linear(config.width, self.end + 1)

    def words(self, shape: Shape) -> list[int]:
        """A shape as the words that announce it."""
        first = len(self.activations) - self.config.narrowest
        return [self.activations.index(shape.activation), *(first + size for size in shape.hidden), self.end]

    def shape(self, words: Sequence[int]) -> Shape:
        """Inverse of ``words``."""
        first = len(self.activations) - self.config.narrowest
        return Shape(self.activations[words[0]], tuple(word - first for word in words[1:] if word != self.end))

    def legal(self, step: int) -> Float[Tensor, " v"]:
        """Zero for the words that may be said at a step, minus infinity for all others."""
        bias = torch.full((self.end + 1,), float("-inf"))
        if step == 0:
            bias[: len(self.activations)] = 0
        else:
            bias[len(self.activations) : self.end] = 0 if step <= self.config.deepest else float("-inf")
            bias[self.end] = float("-inf") if step == 1 else 0
        return bias

    def _step(self, word: Int[Tensor, " b"] | None, state: Tensor, about: Tensor, step: int) -> tuple[Tensor, Tensor]:
        if word is not None:
            state = self.cell(self.word(word), state)
        return self.out(self.head(torch.cat([state, about], -1))) + self.legal(step).to(about.device), state

    def loss(self, about: Float[Tensor, "b e"], shapes: Sequence[Shape]) -> Float[Tensor, ""]:
        """Cross-entropy of announcements, per instruction.

        Args:
            about: vectors of instructions.
            shapes: the network that each asks for.
        """
        lines = [self.words(shape) for shape in shapes]
        longest = max(map(len, lines))
        words = torch.tensor([line + [self.end] * (longest - len(line)) for line in lines], device=about.device)
        there = torch.tensor([[i < len(line) for i in range(longest)] for line in lines], device=about.device)
        about = state = self.start(about)
        total, before = about.new_zeros(()), None
        for step in range(longest):
            logits, state = self._step(before, state, about, step)
            some = there[:, step]
            before = words[:, step]
            total = total + F.cross_entropy(logits[some], before[some], reduction="sum")
        return total / len(lines)

    @torch.no_grad()
    def announce(self, about: Float[Tensor, "b e"]) -> list[Shape]:
        """The most likely word at every step."""
        about = state = self.start(about)
        lines, before = [[] for _ in range(len(about))], None
        done = torch.zeros(len(about), dtype=torch.bool, device=about.device)
        for step in range(self.config.deepest + 2):
            logits, state = self._step(before, state, about, step)
            before = torch.where(done, self.end, logits.argmax(-1))
            done |= before == self.end
            for line, word in zip(lines, before.tolist(), strict=True):
                line.append(word)
        return [self.shape(line) for line in lines]

    def random(self, count: int, generator: torch.Generator) -> list[Shape]:
        """Shapes to learn from: most of them of one width, the others of several."""
        c, found = self.config, []
        for _ in range(count):
            depth = int(torch.randint(1, c.deepest + 1, (), generator=generator))
            sizes = torch.randint(c.narrowest, c.widest + 1, (depth,), generator=generator)
            if torch.rand((), generator=generator) < 0.75:
                sizes = sizes[:1].expand(depth)
            found.append(Shape(_pick(self.activations, generator), tuple(sizes.tolist())))
        return found


def announced(shape: Shape, inputs: Sequence[int], classes: int) -> Layout:
    """Layout of the announced network, with inputs and outputs that follow from the task."""
    sizes = [torch.Size(inputs).numel(), *shape.hidden, classes]
    return layout_of({"family": "mlp", "sizes": sizes, "activation": shape.activation})
