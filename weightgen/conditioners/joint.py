"""All that is known about a task as one set of tokens: examples, description, label texts, texts, architecture.

Any subset will do. Parts are dropped at random in training, so that each subset is learned.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from weightgen.conditioners.dataset import SetEncoder, SetEncoderConfig
from weightgen.nn import transformer
from weightgen.types import Condition
from zoo.errors import UsageError

TEXT_PARTS = ("labels", "description", "texts", "architecture")
Part = Literal["examples", "labels", "description", "texts", "architecture"]


class ConditionerConfig(SetEncoderConfig):
    """What conditions are made of, and the size of their encoder."""

    parts: list[Part] = Field(default=["examples"], min_length=1, description="what is learned from, all or some given")
    drop: float = Field(default=0.3, ge=0, lt=1, description="chance that a part is left out in training, never all")
    depth: int = Field(default=1, ge=1, description="layers in which the parts see each other, if there are several")


@dataclass(frozen=True, eq=False)
class ConditionTokens:
    """An encoded condition.

    Attributes:
        tokens: first one token a class, where classes are known, then the others.
        mask: true where there is a token.
        classes: how many of the tokens stand for classes.
    """

    tokens: Float[Tensor, "b k h"]
    mask: Bool[Tensor, "b k"]
    classes: int

    def pooled(self) -> Float[Tensor, "b h"]:
        """Mean of the tokens that are there."""
        weight = self.mask[..., None].to(self.tokens.dtype)
        return (self.tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


class ConditionEncoder(nn.Module):
    """Maps conditions to tokens. A class has one token, whether it is known by examples, by its name, or by both."""

    def __init__(
        self, config: ConditionerConfig, shapes: Collection[tuple[int, ...]], text_size: int, width: int
    ) -> None:
        """Make the parts that the config names.

        Args:
            config: parts and sizes.
            shapes: shapes of labelled examples.
            text_size: size of the vectors of texts.
            width: size of the tokens.

        Raises:
            UsageError: if the config asks for texts and there is no text encoder.
        """
        super().__init__()
        self.config = config
        self.set = SetEncoder(config, shapes, width) if "examples" in config.parts else None
        texts = [part for part in TEXT_PARTS if part in config.parts]
        if texts and not text_size:
            raise UsageError(
                f"conditioner.parts names {texts[0]!r}, but no text encoder is given", "set text_encoder in the config"
            )
        self.text = nn.ModuleDict(
            {part: nn.Sequential(nn.Linear(text_size, width), nn.LayerNorm(width)) for part in texts}
        )
        self.kind = nn.ParameterDict({part: nn.Parameter(0.1 * torch.randn(width)) for part in texts})
        self.mixer = transformer(width, config.depth, config.heads) if texts else None

    def forward(self, condition: Condition, drop: torch.Generator | None = None) -> ConditionTokens:
        """Encode a batch of tasks.

        Args:
            condition: what is known; parts that the encoder was not made for are ignored.
            drop: source of randomness for leaving parts out; by default none is left out.

        Raises:
            UsageError: if nothing is known that the encoder can read.
        """
        parts = {name: part for name, part in condition.parts().items() if name in self.config.parts}
        if not parts:
            raise UsageError(
                f"the generator was trained on {', '.join(self.config.parts)} and got none of it",
                f"give {self.config.parts[0]} of the task",
            )
        if drop is not None and len(parts) > 1:
            parts = self._some(parts, drop)
        classes: list[tuple[Tensor, Tensor]] = []
        others: list[tuple[Tensor, Tensor]] = []
        if self.set is not None and condition.examples is not None and "examples" in parts:
            tokens = self.set(condition.examples)
            classes.append((tokens, condition.examples.mask.any(-1)))
        for name in TEXT_PARTS:
            if name in parts:
                tokens = self.text[name](parts[name].x) + self.kind[name]
                (classes if name == "labels" else others).append((tokens, parts[name].mask))
        return self._mix(classes, others)

    def _some(self, parts: dict[str, Any], drop: torch.Generator) -> dict[str, Any]:
        """A random subset that is not empty."""
        kept = {name: part for name, part in parts.items() if torch.rand((), generator=drop) >= self.config.drop}
        if kept:
            return kept
        only = list(parts)[int(torch.randint(len(parts), (), generator=drop))]
        return {only: parts[only]}

    def _mix(self, classes: list[tuple[Tensor, Tensor]], others: list[tuple[Tensor, Tensor]]) -> ConditionTokens:
        count = 0
        if classes:
            tokens = torch.stack([tokens * mask[..., None] for tokens, mask in classes]).sum(0)
            known = torch.stack([mask for _, mask in classes]).any(0)
            others = [(tokens, known), *others]
            count = tokens.shape[1]
        tokens = torch.cat([tokens for tokens, _ in others], 1)
        mask = torch.cat([mask for _, mask in others], 1)
        if self.mixer is not None:
            tokens = self.mixer(tokens, src_key_padding_mask=None if bool(mask.all()) else ~mask)
        return ConditionTokens(tokens, mask, count)
