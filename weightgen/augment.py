"""Random changes of examples, so that a generator learns classes and not the training images by heart."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from zoo.config import StrictConfig


class AugmentConfig(StrictConfig):
    """Strength of the random changes; 0 switches one off. Geometric ones apply to images only."""

    noise: float = Field(default=0.0, ge=0, description="standard deviation of added Gaussian noise")
    shift: float = Field(default=0.0, ge=0, le=1, description="largest shift, in image sides")
    rotation: float = Field(default=0.0, ge=0, le=180, description="largest rotation, in degrees")
    scale: float = Field(default=0.0, ge=0, lt=1, description="largest relative change of size")


def augment(x: Float[Tensor, "n ..."], config: AugmentConfig, generator: torch.Generator) -> Float[Tensor, "n ..."]:
    """Change every example at random.

    Args:
        x: examples; those of shape [h, w] or [c, h, w] are images.
        config: strengths.
        generator: source of randomness.

    Returns:
        Examples of the same shape.
    """

    def uniform(size: float) -> Float[Tensor, " n"]:
        return (2 * torch.rand(len(x), generator=generator) - 1) * size

    if x.ndim in (3, 4) and (config.shift or config.rotation or config.scale):
        images = x[:, None] if x.ndim == 3 else x
        angle = uniform(math.radians(config.rotation))
        size = 1 + uniform(config.scale)
        cos, sin = torch.cos(angle) * size, torch.sin(angle) * size
        matrix = torch.stack(
            [
                torch.stack([cos, -sin, 2 * uniform(config.shift)], -1),
                torch.stack([sin, cos, 2 * uniform(config.shift)], -1),
            ],
            1,
        )
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        x = F.grid_sample(images, grid, align_corners=False).view_as(x)
    if config.noise:
        x = x + config.noise * torch.randn(x.shape, generator=generator)
    return x
