"""Tasks made at random from the images of others: what their classes are, and how all of their images are changed.

A generator that sees few data sets learns them by heart. Here every task is a new one, so that classes have to be read
from the examples of the condition (as in arXiv 1606.04080; turned classes are new classes as in arXiv 1605.06065).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from zoo.config import StrictConfig

Images = Float[Tensor, "n c h w"]
Change = Callable[[Images], Tensor]


class MixConfig(StrictConfig):
    """How often tasks are made at random, and how they differ from those of the zoo."""

    share: float = Field(default=0.0, ge=0, le=1, description="of the steps of the stage; 0: real tasks only")
    one_set: float = Field(default=0.5, ge=0, le=1, description="chance that all classes are of one data set")
    turn: float = Field(default=0.5, ge=0, le=1, description="chance that a class is turned or mirrored")
    blend: float = Field(default=0.2, ge=0, le=1, description="chance that a class is two classes, one over the other")
    change: float = Field(default=0.3, ge=0, le=1, description="chance of each change that all images of a task share")


@dataclass(frozen=True)
class Look:
    """What all images of a made task share.

    Attributes:
        changes: in order.
    """

    changes: tuple[Change, ...]

    def __call__(self, x: Images) -> Float[Tensor, "n d h w"]:
        """Change images with values in [0, 1]."""
        for change in self.changes:
            x = change(x)
        return x


def turned(x: Images, way: int) -> Images:
    """One of the eight ways to lay down a square; 0 leaves it as it is."""
    return torch.rot90(x.flip(-1) if way >= 4 else x, way % 4, (-2, -1))


def look(channels: int, chance: float, generator: torch.Generator) -> Look:
    """Draw what the images of a task share.

    Args:
        channels: that networks of the task take, 1 or 3.
        chance: of each change.
        generator: source of randomness.
    """

    def number(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    changes: list[Change] = [_channels(channels, chance, generator)]
    power, low, high = 2 ** number(-1, 1), number(0, 0.4), number(0.6, 1)
    stroke = int(torch.randint(3, (), generator=generator))
    optional: list[Change] = [
        lambda x: (thicker, thinner, blurred)[stroke](x),
        lambda x: x**power,
        lambda x: low + (high - low) * x,
        lambda x: 1 - x,
    ]
    kept = torch.rand(len(optional), generator=generator) < chance
    return Look((*changes, *(one for one, keep in zip(optional, kept.tolist(), strict=True) if keep)))


def _channels(channels: int, chance: float, generator: torch.Generator) -> Change:
    """Grey to colour: the same in every channel, or between two colours. Colour to grey: a random mixture."""
    weights = torch.rand(3, generator=generator) + 0.1
    back, front = torch.rand(2, 3, 1, 1, generator=generator)
    plain = bool(torch.rand((), generator=generator) >= chance)
    order = torch.randperm(3, generator=generator)

    def change(x: Images) -> Float[Tensor, "n d h w"]:
        if channels == 1:
            return x if x.shape[1] == 1 else (x * (weights / weights.sum()).view(3, 1, 1)).sum(1, keepdim=True)
        if plain:
            return x.expand(-1, 3, -1, -1)
        return x[:, order] if x.shape[1] == 3 else back + (front - back) * x

    return change


def thicker(x: Images) -> Images:
    """Bright strokes grow by a pixel on each side."""
    return F.max_pool2d(x, 3, 1, 1)


def thinner(x: Images) -> Images:
    """Dark strokes grow by a pixel on each side; the border counts as dark."""
    return -F.max_pool2d(-F.pad(x, (1, 1, 1, 1)), 3, 1)


def blurred(x: Images) -> Images:
    """Means over squares of three pixels."""
    return F.avg_pool2d(x, 3, 1, 1)
