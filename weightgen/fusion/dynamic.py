"""Dynamic Logits Fusion (arXiv 2406.15480): a new weight at every step and for every row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from weightgen.fusion import Fused, rule
from weightgen.fusion.solver import mean_target, solve, targets
from weightgen.fusion.support import common_support, difference, restrict, shift
from zoo.config import StrictConfig


class DynamicConfig(StrictConfig):
    """Settings of the dynamic rules."""

    parity: bool = Field(default=False, description="the paper's grid search of 21 points instead of the optimum")
    scale: float = Field(default=1.0, gt=0, le=4, description="factor on the fitted weight; 1 is the paper")


@rule("dynamic", DynamicConfig)
def dynamic(
    strong: Float[Tensor, "b v"],
    experts: Sequence[Float[Tensor, "b v"]],
    anchors: Sequence[Float[Tensor, "b v"]],
    config: DynamicConfig,
    evidence: Float[Tensor, "b k"] | None = None,
) -> Fused:
    """softmax(M + a (E_t - S_t)) with the a in [0, 2] at which both divergences are those of the small models.

    With several experts one is active at a time, as in the paper (section 3.4): for each, the sum of the objectives of
    all experts is minimised, and the expert with the least sum wins the step. A sum over experts has its minimum
    where the objective with their mean divergences has it, and the sums differ between experts by the same constant.
    """
    support = common_support([strong, *experts, *anchors])
    own, *small = restrict([strong, *experts, *anchors], support)
    count = len(experts)
    differences = [difference(e, s, support) for e, s in zip(experts, anchors, strict=True)]
    goal = mean_target([targets(small[count + t], differences[t]) for t in range(count)])
    solved = [solve(own, d, *goal, refine=not config.parity) for d in differences]
    alphas = torch.stack([alpha for alpha, _ in solved], dim=-1).to(strong.dtype)
    if count > 1:
        winner = torch.stack([value for _, value in solved], dim=-1).argmin(-1, keepdim=True)
        alphas = torch.zeros_like(alphas).scatter(-1, winner, alphas.gather(-1, winner))
    alphas = config.scale * alphas
    return Fused(shift(strong, differences, alphas, experts, anchors, support), alphas)
