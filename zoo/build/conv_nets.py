"""The convolutional networks of a recipe, plain and residual."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from zoo.config import StrictConfig


class ConvNetConfig(StrictConfig):
    """A convolutional network; inputs and outputs follow from the data. See ``zoo.architectures.cnn``."""

    channels: list[int] = Field(default=[8, 6, 4], min_length=1)
    kernel: int | list[int] = Field(default=[5, 5, 2])
    pool: int | list[int] = Field(default=[2, 2, 1])
    hidden: list[int] = Field(default=[20])
    activation: Literal["tanh", "relu", "gelu"] = "tanh"


class ResidualConfig(StrictConfig):
    """A residual network for small images (ResNet of 6n + 2 layers, arXiv 1512.03385, section 4.2).

    It has biases in place of batch norm, so that all of it is weights. Inputs and outputs follow from the data. See
    ``zoo.architectures.resnet``.
    """

    blocks: list[int] = Field(default=[1, 1, 1], min_length=1, description="of two convolutions each, by stage")
    widths: list[int] = Field(default=[4, 6, 8], min_length=1, description="channels, by stage")
    shortcut: Literal["pad", "conv", "pool"] = "pad"
