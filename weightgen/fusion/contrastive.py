"""Contrastive decoding: what the strong model knows and the anchor does not (arXiv 2210.15097, eq. 2 and 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from weightgen.fusion import Fused, rule
from weightgen.fusion.support import NEGATIVE
from zoo.config import StrictConfig


class ContrastiveConfig(StrictConfig):
    """Settings of contrastive decoding."""

    beta: float = Field(default=0.5, ge=0, le=10, description="strength of the contrast")
    plausible: float = Field(default=0.1, ge=0, le=1, description="least probability, as a share of the greatest one")


@rule("contrastive", ContrastiveConfig)
def contrastive(
    strong: Float[Tensor, "b v"],
    experts: Sequence[Float[Tensor, "b v"]],
    anchors: Sequence[Float[Tensor, "b v"]],
    config: ContrastiveConfig,
    evidence: Float[Tensor, "b k"] | None = None,
) -> Fused:
    """(1 + beta) log P - beta log Q over the tokens that are plausible for the strong model.

    The expert is the strong model itself here and the anchors are the amateurs, each with its share of beta; given
    experts are not used, so their weights are 0. A token that an amateur forbids keeps the strong model's value.
    """
    fused = (1 + config.beta) * strong.log_softmax(-1)
    for anchor in anchors:
        log_q = anchor.log_softmax(-1)
        log_q = torch.where(torch.isfinite(log_q), log_q, strong.log_softmax(-1).clamp(min=-1e4))
        fused = fused - config.beta / len(anchors) * log_q
    if config.plausible > 0:
        least = strong.amax(-1, keepdim=True) + math.log(config.plausible)
        fused = fused.masked_fill(strong < least, NEGATIVE)
    return Fused(fused, strong.new_zeros(strong.shape[0], len(experts)))
