"""The last layer of a text encoder, opened up: the inputs of its last dense map and of its last LayerNorm."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weightgen.adapted import AdaptedEncoder
from zoo.build.encoder import TextEncoder
from zoo.errors import UsageError

_LAYER = re.compile(r"^(?P<stack>(?:.+\.)?encoder\.layer)\.(?P<number>\d+)$")
BATCH = 32
"""Texts that are read at once."""


@dataclass(frozen=True)
class Stack:
    """Names of the layers of an encoder, as BERT and its relatives have them.

    Attributes:
        layers: module path of each layer, in order.
        dense: the last linear map of the last layer; what it gives is added to a residual and normalised.
        norm: that normalisation, whose output is the output of the encoder.
    """

    layers: tuple[str, ...]

    @property
    def dense(self) -> str:
        """Module path of the last linear map."""
        return f"{self.layers[-1]}.output.dense"

    @property
    def norm(self) -> str:
        """Module path of the last normalisation."""
        return f"{self.layers[-1]}.output.LayerNorm"

    @classmethod
    def of(cls, encoder: TextEncoder) -> Stack:
        """Find the layers.

        Raises:
            UsageError: if the last layer does not end in ``LayerNorm(dense(x) + residual)``.
        """
        modules = dict(encoder.model.named_modules())
        found = [match for name in modules if (match := _LAYER.match(name))]
        layers = tuple(match[0] for match in sorted(found, key=lambda match: int(match["number"])))
        if len({match["stack"] for match in found}) == 1:
            stack = cls(layers)
            dense, norm = modules.get(stack.dense), modules.get(stack.norm)
            if isinstance(dense, nn.Linear) and isinstance(norm, nn.LayerNorm) and _ends_in(encoder, norm):
                return stack
        raise UsageError(
            f"the last layer of {encoder.base_model} is no output.dense followed by output.LayerNorm",
            "use an encoder built as BERT is: BERT, RoBERTa, MPNet, MiniLM, E5, BGE",
        )

    def linear(self, encoder: TextEncoder, top: int) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of every linear map of the top layers, by module path."""
        chosen = tuple(f"{layer}." for layer in self.layers[-top:])
        return {
            name: (module.in_features, module.out_features)
            for name, module in encoder.model.named_modules()
            if isinstance(module, nn.Linear) and name.startswith(chosen)
        }


@torch.no_grad()
def _ends_in(encoder: TextEncoder, norm: nn.LayerNorm) -> bool:
    """Whether the output of the encoder is what this module gives."""
    seen: list[Any] = []
    handle = norm.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        ids = torch.tensor([encoder.tokens(["a"], encoder.config.score_tokens)[0]])
        hidden = encoder.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    finally:
        handle.remove()
    return len(seen) == 1 and seen[0].equal(hidden)


@dataclass(frozen=True, eq=False)
class Reading:
    """What the last layer makes of some texts.

    Attributes:
        keys: inputs of the last dense map.
        before: inputs of the last LayerNorm.
        mask: where a text has a token.
        norm: the LayerNorm.
    """

    keys: Float[Tensor, "n t f"]
    before: Float[Tensor, "n t d"]
    mask: Bool[Tensor, "n t"]
    norm: nn.LayerNorm

    def pooled_keys(self) -> Float[Tensor, "n f"]:
        """Mean over the tokens of each text."""
        return _mean(self.keys, self.mask)

    def means(self, change: Float[Tensor, "n t d"] | None = None) -> Float[Tensor, "n d"]:
        """Mean output of each text, not of unit length; ``change`` is added before the LayerNorm."""
        return _mean(self.norm(self.before if change is None else self.before + change), self.mask)

    def vectors(self) -> Float[Tensor, "n d"]:
        """Unit vectors, as the encoder gives them."""
        return F.normalize(self.means(), dim=-1)


def _mean(x: Float[Tensor, "n t d"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n d"]:
    weight = mask[..., None].float()
    return (x * weight).sum(1) / weight.sum(1)


class Reader:
    """Reads texts with an encoder under one adapter."""

    def __init__(self, encoder: TextEncoder, stack: Stack, adapted: AdaptedEncoder, tensors: Mapping[str, Tensor]):
        """Keep what is needed.

        Args:
            encoder: the frozen encoder.
            stack: its layers.
            adapted: the same encoder, ready for adapters of the layout of ``tensors``.
            tensors: the adapter.
        """
        modules = dict(encoder.model.named_modules())
        self._encoder, self._adapted, self._tensors = encoder, adapted, tensors
        self._dense, self._norm = modules[stack.dense], modules[stack.norm]

    def tokens(self, texts: Sequence[str], longest: int | None = None) -> list[list[int]]:
        """Token ids of texts, by default cut as in scoring."""
        return self._encoder.tokens(texts, longest or self._encoder.config.score_tokens)

    @torch.no_grad()
    def read(self, tokens: Sequence[Sequence[int]]) -> Reading:
        """Read a few texts at once, token by token."""
        seen: dict[str, Tensor] = {}
        keys, before = _inputs(self._dense, "keys", seen), _inputs(self._norm, "before", seen)
        with self._adapted.applied(self._tensors), keys, before:
            self._encoder.embed(tokens)
        lengths = torch.tensor([len(row) for row in tokens])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return Reading(seen["keys"].float(), seen["before"].float(), mask, self._norm)

    def survey(self, tokens: Sequence[Sequence[int]]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n f"]]:
        """Unit vectors and pooled keys of many texts; texts of similar length are read together."""
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        vectors: list[Tensor] = [torch.zeros(0)] * len(order)
        keys: list[Tensor] = [torch.zeros(0)] * len(order)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            reading = self.read([tokens[i] for i in rows])
            for i, vector, key in zip(rows, reading.vectors(), reading.pooled_keys(), strict=True):
                vectors[i], keys[i] = vector, key
        return torch.stack(vectors), torch.stack(keys)


@contextlib.contextmanager
def _inputs(module: nn.Module, name: str, seen: dict[str, Tensor]) -> Iterator[None]:
    """Keep what a module is given inside the ``with`` block."""

    def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[name] = inputs[0]

    handle = module.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()
