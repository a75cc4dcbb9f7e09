"""The convolutional network of a recipe."""

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
