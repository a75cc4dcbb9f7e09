"""Proxy tuning: add the difference of expert and anchor with a fixed weight (arXiv 2401.08565, eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from weightgen.fusion import Fused, rule
from weightgen.fusion.support import common_support, difference, shift
from zoo.config import StrictConfig


class StaticConfig(StrictConfig):
    """Settings of the static rule."""

    alpha: float = Field(default=1.0, ge=-10, le=10, description="weight of every expert")


@rule("static", StaticConfig)
def static(
    strong: Float[Tensor, "b v"],
    experts: Sequence[Float[Tensor, "b v"]],
    anchors: Sequence[Float[Tensor, "b v"]],
    config: StaticConfig,
    evidence: Float[Tensor, "b k"] | None = None,
) -> Fused:
    """softmax(M + alpha sum_t (E_t - S_t)), the same alpha at every step."""
    support = common_support([strong, *experts, *anchors])
    differences = [difference(e, s, support) for e, s in zip(experts, anchors, strict=True)]
    alphas = strong.new_full((strong.shape[0], len(experts)), config.alpha)
    return Fused(shift(strong, differences, alphas, experts, anchors, support), alphas)
