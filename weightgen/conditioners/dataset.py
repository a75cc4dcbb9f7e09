"""A Set Transformer over labelled examples (D2NWG, arXiv 2402.18153, section 3.2; arXiv 1810.00825).

Examples of one class attend to each other and are pooled to one vector (intra-class); class vectors then attend to
each other (inter-class). The result does not depend on the order of the examples inside a class.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from weightgen.nn import AttentionPool, transformer
from zoo.config import StrictConfig
from zoo.datasets import Examples
from zoo.errors import UsageError


class SetEncoderConfig(StrictConfig):
    """Size of the data-set encoder."""

    intra_depth: int = Field(default=1, ge=1)
    inter_depth: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    max_classes: int = Field(default=64, ge=1, description="largest class index that has an embedding")
    stem: Literal["linear", "conv"] = Field(default="linear", description="how one example is read; conv for images")
    side: int = Field(default=0, ge=0, description="images are brought to this size and three channels; 0: as they are")

    @model_validator(mode="after")
    def _images(self) -> Self:
        if self.stem == "conv" and self.side == 0:
            raise ValueError("stem: conv needs the size of the images in side")
        return self


def conv_stem(width: int) -> nn.Sequential:
    """Reads images of three channels: three strided convolutions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, width // 4, 3, 2, 1),
        nn.GELU(),
        nn.Conv2d(width // 4, width // 2, 3, 2, 1),
        nn.GELU(),
        nn.Conv2d(width // 2, width // 2, 3, 2, 1),
        nn.GELU(),
        nn.Flatten(),
        nn.LazyLinear(width),
    )


class SetEncoder(nn.Module):
    """Maps labelled examples of a task to one token a class."""

    def __init__(self, config: SetEncoderConfig, shapes: Collection[tuple[int, ...]], width: int) -> None:
        """Make the encoder.

        Args:
            config: sizes.
            shapes: shapes of one example that occur; several only if images are brought to one size.
            width: size of the tokens.

        Raises:
            UsageError: if examples have several shapes and ``config.side`` is 0.
        """
        super().__init__()
        self.config, self.shapes = config, frozenset(shapes)
        if len(self.shapes) > 1 and not config.side:
            raise UsageError(
                f"the examples of the zoo have {len(self.shapes)} shapes",
                "set conditioner.side to bring them to one size",
            )
        size = 3 * config.side**2 if config.side else torch.Size(next(iter(self.shapes))).numel()
        if config.stem == "conv":
            self.into = conv_stem(width)
            self.into(torch.zeros(1, 3, config.side, config.side))  # the last layer learns its size
        else:
            self.into = nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, width))
        self.intra = transformer(width, config.intra_depth, config.heads)
        self.pool = AttentionPool(width, config.heads)
        self.label = nn.Embedding(config.max_classes, width)
        nn.init.normal_(self.label.weight, std=0.1)
        self.inter = transformer(width, config.inter_depth, config.heads)

    def forward(self, examples: Examples) -> Float[Tensor, "b c h"]:
        """Encode a batch of tasks.

        Raises:
            UsageError: if the inputs have the wrong size, or there are more classes than the encoder knows.
        """
        b, c = examples.mask.shape[:2]
        if c > self.config.max_classes:
            raise UsageError(f"{c} classes, the encoder knows {self.config.max_classes}", "give fewer classes")
        mask = rearrange(examples.mask, "b c n -> (b c) n")
        items = self._read(rearrange(examples.x, "b c n ... -> (b c n) ..."))
        items = rearrange(items, "(b c n) h -> (b c) n h", b=b, c=c)
        items = self.intra(items, src_key_padding_mask=None if bool(mask.all()) else ~mask)
        classes = rearrange(self.pool(items, mask), "(b c) h -> b c h", b=b)
        return self.inter(classes + self.label.weight[:c])

    def _read(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n h"]:
        """One vector an example."""
        shape = tuple(x.shape[1:])
        if self.config.side:
            x = as_images(x, self.config.side)
        elif torch.Size(shape).numel() != torch.Size(next(iter(self.shapes))).numel():
            raise UsageError(
                f"examples have {torch.Size(shape).numel()} values each {shape}, the generator was trained on "
                f"{torch.Size(next(iter(self.shapes))).numel()}",
                "bring the inputs into the form of the training data",
            )
        return self.into(x if self.config.stem == "conv" else x.flatten(1))


def as_images(x: Float[Tensor, "n ..."], side: int) -> Float[Tensor, "n 3 side side"]:
    """Images of any size, grey [h w] or colour [3 h w], as colour images of one size.

    Raises:
        UsageError: if the examples are no such images.
    """
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise UsageError(
            f"examples of shape {tuple(x.shape[1:])} are no images, the generator was trained on images",
            "give images [h, w] or [3, h, w]",
        )
    x = x.expand(-1, 3, -1, -1)
    return x if x.shape[-2:] == (side, side) else F.interpolate(x, (side, side), mode="bilinear", antialias=True)
