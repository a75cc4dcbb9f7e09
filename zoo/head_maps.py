"""The linear maps that are free inside of attention heads, and one choice among them.

The scores of a head depend on ``Wq^T Wk`` and what it adds to the stream on ``Wo Wv``, so that any invertible matrix
may be put between them. As for LoRA factors, the balanced singular value decomposition is chosen (``zoo.lora_gauge``).
Biases are treated exactly: that of the queries is one more column of ``Wq``; that of the keys adds the same number to
all scores of a query, which the softmax ignores, and becomes 0; that of the values passes through the weighted mean,
whose weights sum to 1, and moves into the bias of the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange

from zoo.architectures import FreeMap, Part, UnitGroup
from zoo.lora_gauge import canonical_factors, column_signs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

SETTLED = 1e-6
"""Relative deviation from the chosen form that counts as rounding: such heads stay, so that a second pass is idle."""


def chosen(tensors: Mapping[str, Tensor], group: UnitGroup) -> dict[str, Tensor]:
    """Bring the inner spaces of every unit of a group into the chosen form.

    Args:
        tensors: state dict of the network.
        group: heads, or sets of heads that share values.

    Returns:
        The state dict of a network with the same function. Types of 16 bits and fewer are left alone, since rounding
        would change the function.
    """
    current = dict(tensors)
    for free in _usable(current, group):
        current = _without_bias(current, free, group.size)
        left, right = _side(current, free.left, group.size), _side(current, free.right, group.size, _dim(free, group))
        new_right, new_left = canonical_factors(right, left.mT)
        stays = _settled(left.double(), right.double())[:, None, None]
        current = _put(current, free.left, torch.where(stays, left.double(), new_left.mT))
        current = _put(current, free.right, torch.where(stays, right.double(), new_right))
    return current


def moved(tensors: Mapping[str, Tensor], group: UnitGroup, generator: torch.Generator) -> dict[str, Tensor]:
    """A random twin: well-conditioned random maps inside of every unit, and random biases that change nothing."""
    current = dict(tensors)
    for free in _usable(current, group):
        dim, like = _dim(free, group), torch.float64
        turn = torch.linalg.qr(torch.randn(group.size, dim, dim, generator=generator, dtype=like))[0]
        map_ = turn * torch.exp(0.3 * torch.randn(group.size, 1, dim, generator=generator, dtype=like))
        left, right = _side(current, free.left, group.size), _side(current, free.right, group.size, dim)
        if free.bias is not None:
            value = current[free.bias.name]
            shift = 0.1 * torch.randn(group.size * dim, generator=generator, dtype=like)
            current[free.bias.name] = _added(value, shift, free.bias)
            if free.into is not None:
                _carry(current, free.into, right.double(), -shift.view(group.size, dim))
        current = _put(current, free.left, map_ @ left.double())
        current = _put(current, free.right, torch.linalg.inv(map_).mT @ right.double())
        if free.bias is not None and free.into is not None:  # the values are mapped together with their bias
            bias = _side(current, (free.bias,), group.size)
            current = _put(current, (free.bias,), map_ @ bias.double())
    return current


def same_products(a: Mapping[str, Tensor], b: Mapping[str, Tensor], group: UnitGroup, tolerance: float) -> bool:
    """Whether the products of both sides of every unit are equal up to ``tolerance`` of their norm."""
    for free in _usable(a, group):
        dim = _dim(free, group)
        (al, ar), (bl, br) = (
            (_side(t, free.left, group.size).double(), _side(t, free.right, group.size, dim).double()) for t in (a, b)
        )
        size = _inner(al, al, ar, ar)
        distance = size + _inner(bl, bl, br, br) - 2 * _inner(al, bl, ar, br)
        if bool((distance.clamp(min=0) > tolerance**2 * size).any()):
            return False
    return True


def fits(group: UnitGroup, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the free maps of a group, which a file may claim, cover whole axes and both sides meet."""
    ends: dict[tuple[str, int], int] = {}
    for free in group.maps:
        dim, shift = _dim(free, group), [free.bias] if free.bias else []
        for part in (*free.left, *free.right, *shift):
            blocks, rest = divmod(_length(part), max(1, group.size * dim))
            if rest or not blocks or (blocks > 1 and part not in free.right):
                return False
            ends[part.name, part.axis] = max(ends.get((part.name, part.axis), 0), *(stop for _, stop in part.ranges))
        if free.into is not None and shapes[free.into] != shapes[free.right[0].name][1 - free.right[0].axis :][:1]:
            return False
    return all(shapes[name][axis] == end for (name, axis), end in ends.items())


def covered(tensors: Mapping[str, Tensor], groups: Iterable[UnitGroup]) -> set[str]:
    """Tensors that ``same_products`` compares."""
    used = (free for group in groups for free in _usable(tensors, group))
    return {part.name for free in used for part in (*free.left, *free.right)}


def _inner(
    al: Float[Tensor, "n d i"], bl: Float[Tensor, "n d i"], ar: Float[Tensor, "n d o"], br: Float[Tensor, "n d o"]
) -> Float[Tensor, " n"]:
    return ((al @ bl.mT) * (ar @ br.mT)).sum((-2, -1))


def _usable(tensors: Mapping[str, Tensor], group: UnitGroup) -> list[FreeMap]:
    found = []
    for free in group.maps:
        names = {part.name for part in (*free.left, *free.right)} | ({free.into} if free.into else set())
        there = [tensors[name] for name in names if name in tensors]
        long = all(t.is_floating_point() and t.element_size() >= 4 for t in there)
        if len(there) == len(names) and long and all(t.numel() for t in there):
            found.append(free)
    return found


def _dim(free: FreeMap, group: UnitGroup) -> int:
    """Dimensions of the inner space of a unit."""
    return _length(free.left[0]) // group.size


def _length(part: Part) -> int:
    return sum(stop - start for start, stop in part.ranges)


def _index(part: Part) -> Tensor:
    return torch.cat([torch.arange(start, stop) for start, stop in part.ranges])


def _side(
    tensors: Mapping[str, Tensor], parts: Sequence[Part], size: int, dim: int | None = None
) -> Float[Tensor, "n d f"]:
    """One side of every unit; of several blocks in a unit, each is further features."""
    found = []
    for part in parts:
        rows = (
            tensors[part.name].detach().movedim(part.axis, 0)[_index(part)].flatten(1)
            if (tensors[part.name].ndim > 1)
            else tensors[part.name].detach()[_index(part)][:, None]
        )
        found.append(rearrange(rows, "(n r d) f -> n d (r f)", n=size, d=dim or len(rows) // size))
    return torch.cat(found, 2)


def _put(tensors: Mapping[str, Tensor], parts: Sequence[Part], side: Float[Tensor, "n d f"]) -> dict[str, Tensor]:
    result, start = dict(tensors), 0
    for part in parts:
        value = result[part.name].clone().movedim(part.axis, 0)
        blocks = _length(part) // (side.shape[0] * side.shape[1])
        features = blocks * (value[0].numel())
        rows = rearrange(side[..., start : start + features], "n d (r f) -> (n r d) f", r=blocks)
        value[_index(part)] = (rows + 0.0).to(value.dtype).reshape(-1, *value.shape[1:])
        result[part.name] = value.movedim(0, part.axis)
        start += features
    return result


def _without_bias(tensors: dict[str, Tensor], free: FreeMap, size: int) -> dict[str, Tensor]:
    if free.bias is None or free.bias.name not in tensors:
        return tensors
    result = dict(tensors)
    value = result[free.bias.name]
    here = value[_index(free.bias)]
    if not bool(here.any()):
        return tensors
    if free.into is not None:
        dim = len(here) // size
        _carry(result, free.into, _side(result, free.right, size, dim).double(), here.double().view(size, dim))
    result[free.bias.name] = _added(value, -here.double(), free.bias)
    return result


def _added(value: Tensor, what: Tensor, part: Part) -> Tensor:
    result = value.clone()
    result[_index(part)] = (value[_index(part)].double() + what + 0.0).to(value.dtype)
    return result


def _carry(tensors: dict[str, Tensor], into: str, right: Float[Tensor, "n d f"], bias: Float[Tensor, "n d"]) -> None:
    """Add what a bias does behind ``right`` to another bias."""
    value = tensors[into]
    effect = torch.einsum("ndf,nd->nf", right, bias).reshape(-1, len(value)).sum(0)
    tensors[into] = (value.double() + effect).to(value.dtype)


def _settled(left: Float[Tensor, "n d i"], right: Float[Tensor, "n d o"]) -> Tensor:
    """Which units have the chosen form already, up to rounding."""
    gram, other = left @ left.mT, right @ right.mT
    sizes = gram.diagonal(dim1=-2, dim2=-1)
    bound = SETTLED * (sizes[:, :, None] * sizes[:, None, :]).sqrt()
    balanced = ((gram - torch.diag_embed(sizes)).abs() <= bound) & ((other - torch.diag_embed(sizes)).abs() <= bound)
    falling = (sizes[:, 1:] <= sizes[:, :-1] * (1 + SETTLED)).all(1)
    signed = (column_signs(left.mT) > 0).all(1)
    return balanced.all(2).all(1) & falling & signed
