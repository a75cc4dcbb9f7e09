"""A Set Transformer over labelled examples (D2NWG, arXiv 2402.18153, section 3.2; arXiv 1810.00825).

Examples of one class attend to each other and are pooled to one vector (intra-class); class vectors then attend to
each other (inter-class). The result does not depend on the order of the examples inside a class.
"""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float
from pydantic import Field
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


class SetEncoder(nn.Module):
    """Maps labelled examples of a task to one token a class."""

    def __init__(self, config: SetEncoderConfig, input_size: int, width: int) -> None:
        """Make the encoder.

        Args:
            config: sizes.
            input_size: numbers in one flattened input.
            width: size of the tokens.
        """
        super().__init__()
        self.config, self.input_size = config, input_size
        self.into = nn.Sequential(nn.Linear(input_size, width), nn.GELU(), nn.Linear(width, width))
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
        size = examples.x[0, 0, 0].numel()
        if size != self.input_size:
            raise UsageError(
                f"examples have {size} values each {tuple(examples.x.shape[3:])}, the generator was trained on "
                f"{self.input_size}",
                "bring the inputs into the form of the training data",
            )
        if c > self.config.max_classes:
            raise UsageError(f"{c} classes, the encoder knows {self.config.max_classes}", "give fewer classes")
        mask = rearrange(examples.mask, "b c n -> (b c) n")
        items = self.into(rearrange(examples.x, "b c n ... -> (b c) n (...)"))
        items = self.intra(items, src_key_padding_mask=None if bool(mask.all()) else ~mask)
        classes = rearrange(self.pool(items, mask), "(b c) h -> b c h", b=b)
        return self.inter(classes + self.label.weight[:c])
