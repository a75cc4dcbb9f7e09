"""DExperts: truncate the strong model's distribution first, then steer what is left (arXiv 2105.03023, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from weightgen.fusion import Fused, rule
from weightgen.fusion.static import StaticConfig, static
from weightgen.fusion.support import NEGATIVE
from zoo.config import StrictConfig


class DExpertsConfig(StrictConfig):
    """Settings of DExperts."""

    alpha: float = Field(default=1.0, ge=-10, le=10, description="weight of every expert")
    top_p: float = Field(default=0.9, gt=0, le=1, description="mass of the strong model that is kept")


def top_p_filter(logits: Float[Tensor, "b v"], top_p: float) -> Float[Tensor, "b v"]:
    """Logits of the smallest set of tokens whose mass reaches ``top_p``; all others are forbidden."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1).roll(1, dims=-1)
    before[:, 0] = 0
    drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return logits.masked_fill(drop, NEGATIVE)


@rule("dexperts", DExpertsConfig)
def dexperts(
    strong: Float[Tensor, "b v"],
    experts: Sequence[Float[Tensor, "b v"]],
    anchors: Sequence[Float[Tensor, "b v"]],
    config: DExpertsConfig,
    evidence: Float[Tensor, "b k"] | None = None,
) -> Fused:
    """softmax(top_p(M) + alpha sum_t (E_t - S_t)); with anti-experts as anchors this is DExperts."""
    kept = top_p_filter(strong, config.top_p)
    return static(kept, experts, anchors, StaticConfig(alpha=config.alpha), evidence)
