"""The simplest ensemble: a weighted mean of log-probabilities of the strong model and its experts."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from weightgen.fusion import Fused, rule
from zoo.config import StrictConfig


class AverageConfig(StrictConfig):
    """Settings of the average."""

    weight: float = Field(default=0.5, ge=0, le=1, description="weight of all experts together; the rest is strong's")


@rule("average", AverageConfig)
def average(
    strong: Float[Tensor, "b v"],
    experts: Sequence[Float[Tensor, "b v"]],
    anchors: Sequence[Float[Tensor, "b v"]],
    config: AverageConfig,
    evidence: Float[Tensor, "b k"] | None = None,
) -> Fused:
    """(1 - w) log P + w mean_t log Q_t; the anchors are not used."""
    share = config.weight / len(experts)
    fused = (1 - config.weight) * strong.log_softmax(-1) if config.weight < 1 else strong.new_zeros(strong.shape)
    if share > 0:
        for expert in experts:
            fused = fused + share * expert.log_softmax(-1)
    return Fused(fused, strong.new_full((strong.shape[0], len(experts)), share))
