"""Our rule against a weak strong model: the dynamic fusion and the expert itself, pooled.

Fusion keeps what the strong model knows and takes only the difference of expert and anchor. Where the strong model has
little to add, that difference brings its errors along, and the expert alone does better (docs/results.md). Which of the
two is right is not known beforehand, and they err in different ways: the fused distribution where the difference does
not carry over to the strong model, the expert where it is too small. The pool of two distributions with unlike errors
is better than either: with weight w the mean excess loss of P~^(1-w) Q_t^w is at most the weighted mean of both, and
lower by the logarithm of the pool's normaliser, which is the larger the more the two differ. In logits that is

    (1 - w) (M + a d) + w E_t,    that is (1 - w) M + ((1 - w) a + w) E_t - (1 - w) a S_t,

a direction of its own instead of M + a d; w = 0 is the dynamic rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from weightgen.fusion import Fused, rule
from weightgen.fusion.dynamic import DynamicConfig, dynamic
from zoo.config import StrictConfig


class PooledConfig(StrictConfig):
    """Settings of the pooled rule."""

    weight: float = Field(default=0.5, ge=0, lt=1, description="share of the expert itself; 0 is the dynamic rule")


@rule("pooled", PooledConfig)
def pooled(
    strong: Float[Tensor, "b v"],
    experts: Sequence[Float[Tensor, "b v"]],
    anchors: Sequence[Float[Tensor, "b v"]],
    config: PooledConfig,
    evidence: Float[Tensor, "b k"] | None = None,
) -> Fused:
    """softmax((1 - w) log P~ + w log Q_t), P~ from the dynamic rule and t the expert that is active in it."""
    fused, alphas = dynamic(strong, experts, anchors, DynamicConfig(), evidence)
    if config.weight == 0:
        return Fused(fused, alphas)
    pool = (1 - config.weight) * fused.log_softmax(-1)
    for column, expert in enumerate(experts):
        active = alphas[:, column : column + 1] > 0
        pool = torch.where(active, pool + config.weight * expert.log_softmax(-1), pool)
    return Fused(torch.where((alphas > 0).any(-1, keepdim=True), pool, fused), alphas)
