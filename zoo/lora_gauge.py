"""The canonical gauge of low-rank factors.

The update of a layer is ``s * B @ A``, so ``(B @ G, inverse(G) @ A)`` is the same update for every invertible ``G``.
One pair of that family is chosen: ``B = U sqrt(S)`` and ``A = sqrt(S) V^T`` from the singular value decomposition of
``B @ A``, with the entry of largest magnitude in every column of ``U`` positive. The scale ``s`` does not change. Where
singular values are equal the directions inside their subspace are not unique; trained factors do not have that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

TIE = 1e-6


def canonical_factors(
    a: Float[Tensor, "*n r i"], b: Float[Tensor, "*n o r"]
) -> tuple[Float[Tensor, "*n r i"], Float[Tensor, "*n o r"]]:
    """Bring one pair of factors, or a stack of pairs, into the canonical gauge.

    The product ``b @ a`` is never formed: both factors are reduced by QR and only the core of ``r x r`` is decomposed.

    Args:
        a: down projections.
        b: up projections.

    Returns:
        Canonical ``a`` and ``b`` in float64, singular values falling along the rank. Directions whose singular value
        is below the rounding of the given type are zero in both factors, so an untrained adapter becomes zero.
    """
    import torch

    rounding = torch.finfo(a.dtype).eps * a.shape[-2]
    left, left_core = torch.linalg.qr(b.double())  # o k, k r  with k = min(o, r)
    right, right_core = torch.linalg.qr(a.double().mT)  # i l, l r  with l = min(i, r)
    u, s, vt = torch.linalg.svd(left_core @ right_core.mT, full_matrices=False)
    s = torch.where(s > rounding * s[..., :1], s, 0.0)
    u, v = left @ u, right @ vt.mT  # o m, i m  with m = min(k, l)
    sign = _column_signs(u)
    root = s.sqrt()
    new_b, new_a = u * (sign * root)[..., None, :], (v * (sign * root)[..., None, :]).mT
    missing = a.shape[-2] - s.shape[-1]
    return torch.nn.functional.pad(new_a, (0, 0, 0, missing)), torch.nn.functional.pad(new_b, (0, missing))


def _column_signs(u: Float[Tensor, "*n o m"]) -> Float[Tensor, "*n m"]:
    """Sign of the largest entry of each column; of several that are equal up to ``TIE`` the first one counts."""
    import torch

    size = u.abs()
    largest = size.amax(dim=-2, keepdim=True)
    first = (size >= largest * (1 - TIE)).to(torch.uint8).argmax(dim=-2, keepdim=True)
    value = u.gather(-2, first).squeeze(-2)
    return torch.where(value < 0, -1.0, 1.0).to(u.dtype)


def scaling(rank: int, alpha: float, *, rslora: bool = False) -> float:
    """Factor ``s`` in front of ``B @ A``: ``alpha / rank``, or ``alpha / sqrt(rank)`` with rank stabilisation."""
    return alpha / rank**0.5 if rslora else alpha / rank
