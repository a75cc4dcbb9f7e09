"""One order and one sign for interchangeable hidden units, without a reference network.

Every unit is described by the weights it has on axes that are in order already: those of the inputs first, then those
of layers before it. Units are sorted by that description, and where the sign is free the entry of largest magnitude is
made positive. Only whole units move and signs flip, so twins come out equal to the last bit. ``zoo.symmetry`` aligns
networks onto each other; this order serves to recognise twins.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from zoo.architectures import UnitGroup

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def in_order(tensors: Mapping[str, Tensor], groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    """Bring the units of every group into their order.

    Args:
        tensors: state dict of the network.
        groups: interchangeable units, from the network's family, in execution order.

    Returns:
        The state dict of a network with the same function. Groups whose units share all their tensors with groups that
        come later stay as they are.
    """
    current = dict(tensors)
    waiting = {axis: group for group in groups for axis in group.axes}
    for group in groups:
        known = [
            (name, axis)
            for name, axis in group.axes
            if all(waiting.get((name, other), group) is group for other in range(current[name].ndim))
        ]
        for axis in group.axes:
            waiting.pop(axis, None)
        if known:
            described = torch.cat([_units(current[name], axis) for name, axis in known], 1)
            sign = _signs(described) if group.odd else None
            order = _sorted(described if sign is None else described * sign[:, None])
            _move(current, group, order, sign)
    return current


def _units(tensor: Tensor, axis: int) -> Float[Tensor, "units features"]:
    return tensor.detach().movedim(axis, 0).reshape(tensor.shape[axis], -1).double()


def _signs(described: Float[Tensor, "units features"]) -> Float[Tensor, " units"]:
    largest = described.gather(1, described.abs().argmax(1, keepdim=True))[:, 0]
    return torch.where(largest < 0, -1.0, 1.0).double()


def _sorted(described: Float[Tensor, "units features"]) -> Int[Tensor, " units"]:
    """Order of the rows, by their first entries that differ."""
    rows = described.numpy()

    def compare(a: int, b: int) -> int:
        different = (rows[a] != rows[b]).nonzero()[0]
        if not len(different):
            return 0
        return -1 if rows[a][different[0]] < rows[b][different[0]] else 1

    return torch.tensor(sorted(range(len(rows)), key=functools.cmp_to_key(compare)), dtype=torch.long)


def _move(
    current: dict[str, Tensor], group: UnitGroup, order: Int[Tensor, " units"], sign: Float[Tensor, " units"] | None
) -> None:
    for name, axis in group.axes:
        value = current[name].index_select(axis, order)
        if sign is not None:
            shape = [-1 if other == axis else 1 for other in range(value.ndim)]
            value = value * sign[order].reshape(shape).to(value.dtype) + 0.0  # no negative zeros
        current[name] = value
