"""Our rule for several experts: the text so far chooses the direction, the dynamic fit chooses how far to go.

The objective of Dynamic Logits Fusion fixes two numbers a step, how far to move by two divergences. With several
experts its minimisers are a surface: it says nothing of the direction, and the paper's answer, one expert at a time,
picks the expert whose move happens to match the mean distance best, which is no sign that it fits the text.

What does is how well each expert has predicted the text up to here. Given a uniform prior, the posterior probability
that the text was written by expert t is w_t proportional to prod_i Q_t(x_i) / Q(x_i); the anchor itself takes part, so
that a text that fits no expert moves the strong model little. The direction is that of the mixed expert
S + sum_t w_t (E_t - S_t), and the distance is the paper's fit for this one mixed expert. Consequences that tests check:
a single expert with clear evidence gives the dynamic rule, an expert that is listed twice counts once, and the order of
experts is of no matter.

The evidence is tempered by a small power: it also counts the prompt, which experts that were tuned on answers do not
model, and its tokens are far from independent. With its full power the wrong expert wins where the right one has
unlearned the language of its prompts. The default was chosen on validation items of four pairs of tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from weightgen.fusion import Fused, rule
from weightgen.fusion.solver import solve, targets
from weightgen.fusion.support import common_support, difference, restrict, shift
from zoo.config import StrictConfig


class JointConfig(StrictConfig):
    """Settings of the joint rule."""

    trust: float = Field(default=0.002, ge=0, le=10, description="power of the evidence; 0: all experts weigh the same")
    anchor: bool = Field(default=False, description="let the anchor compete: a text of no expert is left to strong")
    refit: bool = Field(default=True, description="fit the distance; otherwise move by the direction as it is")


def direction(evidence: Float[Tensor, "b k"], trust: float, anchor: bool) -> Float[Tensor, "b k"]:
    """Posterior weights of the experts given the text so far; with the anchor they sum to less than 1."""
    scores = trust * evidence
    if anchor:
        scores = torch.cat([scores, scores.new_zeros(scores.shape[0], 1)], dim=-1)
    return scores.softmax(-1)[:, : evidence.shape[1]]


@rule("joint", JointConfig, needs_evidence=True)
def joint(
    strong: Float[Tensor, "b v"],
    experts: Sequence[Float[Tensor, "b v"]],
    anchors: Sequence[Float[Tensor, "b v"]],
    config: JointConfig,
    evidence: Float[Tensor, "b k"] | None = None,
) -> Fused:
    """softmax(M + a sum_t w_t (E_t - S_t)), w from the evidence of the text, a from the dynamic fit."""
    count = len(experts)
    if evidence is None:
        evidence = strong.new_zeros(strong.shape[0], count)
    weights = direction(evidence, config.trust, config.anchor)
    support = common_support([strong, *experts, *anchors])
    own, *small = restrict([strong, *experts, *anchors], support)
    differences = [difference(e, s, support) for e, s in zip(experts, anchors, strict=True)]
    if config.refit:
        d = torch.stack(differences, dim=1).mul(weights[:, :, None]).sum(1)
        base = torch.stack(small[count:], dim=1)
        # Experts of one family share their anchor; of several, the mixed expert starts from the mixed anchor.
        start = base[:, 0] if all(a is anchors[0] for a in anchors) else _mix(base, weights)
        alpha, _ = solve(own, d, *targets(start, d))
        weights = alpha.to(weights.dtype)[:, None] * weights
    return Fused(shift(strong, differences, weights, experts, anchors, support), weights)


def _mix(logits: Float[Tensor, "b k v"], weights: Float[Tensor, "b k"]) -> Float[Tensor, "b v"]:
    shares = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    allowed = torch.isfinite(logits)
    mixed = logits.masked_fill(~allowed, 0).mul(shares[:, :, None]).sum(1)
    return mixed.masked_fill(~allowed.all(1), -torch.inf)
