"""Where the hidden units of a group lie in the tensors of a network, and how to move them.

The arithmetic below ``zoo.symmetry`` (moving units onto a reference) and ``zoo.unit_order`` (an order without one).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from zoo.architectures import UnitGroup
from zoo.errors import UsageError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Place:
    """One axis that holds the units of a group.

    Attributes:
        name: tensor.
        axis: axis of it.
        index: positions on the axis that belong to each unit; ``None`` if the whole axis, cut into equal blocks, does.
        size: number of units.
    """

    name: str
    axis: int
    index: Int[Tensor, "units block"] | None
    size: int


def places(group: UnitGroup, tensors: Mapping[str, Tensor]) -> Iterator[Place]:
    """Every place of a group among the given tensors; tensors that are not there are passed over.

    Raises:
        UsageError: if an axis cannot be cut into the units.
    """
    for name, axis in group.axes:
        if name in tensors:
            _check(name, axis, 0, _length(name, axis, tensors), group.size)
            yield Place(name, axis, None, group.size)
    for part in group.parts:
        if part.name in tensors:
            length, stop = sum(b - a for a, b in part.ranges), max(b for _, b in part.ranges)
            if stop > _length(part.name, part.axis, tensors):
                raise UsageError(f"axis {part.axis} of tensor {part.name!r} has no position {stop - 1}")
            _check(part.name, part.axis, min(a for a, _ in part.ranges), length, group.size)
            index = torch.cat([torch.arange(a, b) for a, b in part.ranges])
            yield Place(part.name, part.axis, index.view(group.size, -1), group.size)


def _length(name: str, axis: int, tensors: Mapping[str, Tensor]) -> int:
    if axis >= tensors[name].ndim:
        raise UsageError(f"tensor {name!r} of {tensors[name].ndim} axes has no axis {axis}")
    return tensors[name].shape[axis]


def _check(name: str, axis: int, start: int, length: int, size: int) -> None:
    if start < 0 or length < size or length % size:
        raise UsageError(f"axis {axis} of tensor {name!r} cannot be cut into {size} units: its length is {length}")


def names(group: UnitGroup) -> set[str]:
    """Tensors that hold units of a group."""
    return {name for name, _ in group.axes} | {part.name for part in group.parts}


def units(tensor: Tensor, place: Place) -> Float[Tensor, "units features"]:
    """Everything a tensor says about each unit, in its own element type."""
    first = tensor.detach().movedim(place.axis, 0)
    if place.index is not None:
        first = first[place.index.flatten()]
    return first.reshape(place.size, -1)


def permuted(tensors: Mapping[str, Tensor], group: UnitGroup, order: Int[Tensor, " units"]) -> dict[str, Tensor]:
    """State dict in which unit ``i`` of the group is unit ``order[i]`` of before."""
    result = dict(tensors)
    for place in places(group, result):
        value = result[place.name]
        index = torch.arange(value.shape[place.axis])
        where = index.clone().view(place.size, -1) if place.index is None else place.index
        index[where.flatten()] = where[order].flatten()
        result[place.name] = value.index_select(place.axis, index)
    return result


def multiplied(
    tensors: Mapping[str, Tensor],
    group: UnitGroup,
    factor: Float[Tensor, " units"],
    axes: Sequence[tuple[str, int]] | None = None,
) -> dict[str, Tensor]:
    """State dict in which the units of a group are multiplied by factors; no zero in it is negative.

    Args:
        tensors: state dict.
        group: the units.
        factor: one a unit; signs are exact in every element type.
        axes: tensors and axes to multiply; by default all of the group.
    """
    result = dict(tensors)
    for place in places(group, result):
        if axes is not None and (place.name, place.axis) not in axes:
            continue
        value = result[place.name]
        vector = torch.ones(value.shape[place.axis], dtype=torch.float64)
        if place.index is None:
            vector = factor.double().repeat_interleave(len(vector) // place.size)
        else:
            vector[place.index.flatten()] = factor.double().repeat_interleave(place.index.shape[1])
        vector = vector.view([-1 if a == place.axis else 1 for a in range(value.ndim)])
        result[place.name] = (value.double() * vector + 0.0).to(value.dtype)
    return result
