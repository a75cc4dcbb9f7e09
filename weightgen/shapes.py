"""Perceptrons of shapes made at random, which the behavioural stage may ask for: no network of them is needed."""

from __future__ import annotations

from typing import Any, Self

import torch
from pydantic import Field, model_validator

from zoo.architectures import Architecture
from zoo.config import StrictConfig
from zoo.errors import UsageError


class ShapesConfig(StrictConfig):
    """How often, and which hidden layers."""

    share: float = Field(default=0.0, ge=0, le=1, description="of the steps of the stage; 0: the zoo's shapes only")
    narrowest: int = Field(default=8, ge=1, description="units of a hidden layer")
    widest: int = Field(default=24, ge=1)
    deepest: int = Field(default=3, ge=1, description="hidden layers")
    without: list[list[int]] = Field(default=[], description="hidden layers that are never made, to be measured on")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.narrowest > self.widest:
            raise ValueError(f"narrowest is {self.narrowest}, widest {self.widest}: nothing can be made")
        made = (self.widest - self.narrowest + 1) ** self.deepest
        if self.share and len({tuple(one) for one in self.without}) >= made:
            raise ValueError("without may name every shape there is: widen the range")
        return self

    def like(self, architecture: Architecture, generator: torch.Generator) -> dict[str, Any]:
        """A perceptron with the inputs, outputs and activation of another, and other hidden layers.

        Depth first, then one width for all layers or one for each.

        Raises:
            UsageError: if the other is no perceptron.
        """
        if architecture["family"] != "mlp":
            raise UsageError(
                f"only perceptrons can be made in other shapes, not networks of the family {architecture['family']}",
                "set behaviour.shapes.share to 0",
            )

        def number(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (), generator=generator))

        while True:
            depth, even = number(1, self.deepest), number(0, 1)
            width = number(self.narrowest, self.widest)
            hidden = [width if even else number(self.narrowest, self.widest) for _ in range(depth)]
            if hidden not in self.without:
                return {**architecture, "sizes": [architecture["sizes"][0], *hidden, architecture["sizes"][-1]]}
