"""Which tokens a fit may use, and what a token that some model forbids becomes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NEGATIVE = -torch.inf


def common_support(tensors: Sequence[Float[Tensor, "b v"]]) -> Bool[Tensor, "b v"] | None:
    """Tokens to which every model gives some probability; ``None`` if these are all tokens of all rows."""
    if all(bool(torch.isfinite(tensor.amin()).item()) for tensor in tensors):
        return None
    return reduce(torch.logical_and, [torch.isfinite(tensor) for tensor in tensors])


def restrict(
    tensors: Sequence[Float[Tensor, "b v"]], support: Bool[Tensor, "b v"] | None
) -> list[Float[Tensor, "b v"]]:
    """Logits with everything outside of the support forbidden."""
    return list(tensors) if support is None else [tensor.masked_fill(~support, NEGATIVE) for tensor in tensors]


def difference(
    expert: Float[Tensor, "b v"], anchor: Float[Tensor, "b v"], support: Bool[Tensor, "b v"] | None
) -> Float[Tensor, "b v"]:
    """Expert minus anchor, 0 outside of the support: no ratio is known there."""
    if support is None:
        return expert - anchor
    return (expert - anchor).masked_fill(~support, 0.0)


def shift(
    strong: Float[Tensor, "b v"],
    differences: Sequence[Float[Tensor, "b v"]],
    alphas: Float[Tensor, "b k"],
    experts: Sequence[Float[Tensor, "b v"]],
    anchors: Sequence[Float[Tensor, "b v"]],
    support: Bool[Tensor, "b v"] | None,
) -> Float[Tensor, "b v"]:
    """M + sum_t alpha_t (E_t - S_t); a token that only an expert with a positive weight forbids is forbidden."""
    fused = torch.addcmul(strong, alphas[:, :1], differences[0])
    for column, one in enumerate(differences[1:], start=1):
        fused.addcmul_(alphas[:, column : column + 1], one)
    if support is not None:
        for column, (expert, anchor) in enumerate(zip(experts, anchors, strict=True)):
            lost = (expert == NEGATIVE) & (anchor != NEGATIVE)
            fused.masked_fill_(lost & (alphas[:, column : column + 1] > 0), NEGATIVE)
    return fused
