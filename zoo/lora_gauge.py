"""The canonical gauge of low-rank factors.

The update of a layer is ``s * B @ A``, so ``(B @ G, inverse(G) @ A)`` is the same update for every invertible ``G``.
One pair of that family is chosen: ``B = U sqrt(S)`` and ``A = sqrt(S) V^T`` from the singular value decomposition of
``B @ A``, with the entry of largest magnitude in every column of ``U`` positive. The scale ``s`` does not change. Where
singular values are equal the directions inside their subspace are not unique; trained factors do not have that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
    sign = column_signs(u)
    root = s.sqrt()
    new_b, new_a = u * (sign * root)[..., None, :], (v * (sign * root)[..., None, :]).mT
    missing = a.shape[-2] - s.shape[-1]
    return torch.nn.functional.pad(new_a, (0, 0, 0, missing)), torch.nn.functional.pad(new_b, (0, missing))


Pairs = Sequence[tuple[str, str]]
"""Names of the factors ``A`` and ``B`` of each adapted module."""


def stacks(tensors: Mapping[str, Tensor], pairs: Pairs) -> dict[tuple[Any, ...], list[tuple[str, str]]]:
    """Pairs whose gauge is free, grouped by shapes and type.

    Left out are convolutions with groups, whose factors do not multiply, and convolutions whose up projection is not
    pointwise.
    """
    found: dict[tuple[Any, ...], list[tuple[str, str]]] = defaultdict(list)
    for name_a, name_b in pairs:
        a, b = tensors[name_a], tensors[name_b]
        pointwise = all(size == 1 for size in b.shape[2:])
        if a.is_floating_point() and b.dtype == a.dtype and pointwise and a.shape[0] == b.shape[1]:
            found[tuple(a.shape), tuple(b.shape), a.dtype].append((name_a, name_b))
    return found


def _stack(
    tensors: Mapping[str, Tensor], members: Pairs, dtype: Any
) -> tuple[Float[Tensor, "n r i"], Float[Tensor, "n o r"]]:
    import torch

    a = torch.stack([tensors[name].flatten(1) for name, _ in members])  # n r (i k k)
    b = torch.stack([tensors[name].flatten(1) for _, name in members])  # n o r
    return a.to(dtype), b.to(dtype)


def regauge(tensors: Mapping[str, Tensor], pairs: Pairs) -> dict[str, Tensor]:
    """All factors whose gauge is free, in the canonical one.

    Half precision becomes float32, because rounding again would change the function.
    """
    import torch

    changed = {}
    for (shape_a, shape_b, given), members in stacks(tensors, pairs).items():
        dtype = torch.float64 if given == torch.float64 else torch.float32
        new_a, new_b = canonical_factors(*_stack(tensors, members, dtype))
        for i, (name_a, name_b) in enumerate(members):
            changed[name_a] = new_a[i].to(dtype).reshape(shape_a)
            changed[name_b] = new_b[i].to(dtype).reshape(shape_b)
    return changed


def update_norm(tensors: Mapping[str, Tensor], pairs: Pairs) -> float:
    """Norm of all updates ``B @ A`` together; it does not depend on the gauge, and no update is formed."""
    return sum(float(_inner(tensors, tensors, members).sum()) for members in stacks(tensors, pairs).values()) ** 0.5


def same_updates(a: Mapping[str, Tensor], b: Mapping[str, Tensor], pairs: Pairs, tolerance: float) -> bool:
    """Whether two sets of factors of equal shapes have the same updates, up to ``tolerance`` of their norm.

    Products are compared, not canonical factors: where two singular values are nearly equal, rounding turns the
    factors and leaves the product as it is.
    """
    for members in stacks(a, pairs).values():
        size = _inner(a, a, members)
        distance = size + _inner(b, b, members) - 2 * _inner(a, b, members)
        if bool((distance.clamp(min=0) > tolerance**2 * size).any()):
            return False
    return True


def _inner(x: Mapping[str, Tensor], y: Mapping[str, Tensor], members: Pairs) -> Float[Tensor, " n"]:
    """Inner product of the updates of two adapters, one number a module."""
    import torch

    xa, xb = _stack(x, members, torch.float64)
    ya, yb = _stack(y, members, torch.float64)
    return ((xb.mT @ yb) * (xa @ ya.mT)).sum((-2, -1))


def column_signs(u: Float[Tensor, "*n o m"]) -> Float[Tensor, "*n m"]:
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
