"""One order, one sign and one scale for interchangeable hidden units, without a reference network.

Every unit is described by the weights it has on axes that are in order already: those of the inputs first, then those
of layers before it. Units are sorted by that description; where the sign is free the entry of largest magnitude is
made positive, where the scale is free the incoming weights get unit norm, and inner spaces of attention heads take the
form of ``zoo.head_maps``. Permutations and signs are exact, so such twins come out equal to the last bit; scales and
maps are rounded. ``zoo.symmetry`` aligns networks onto each other; this order
serves to recognise twins.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from zoo import head_maps
from zoo.architectures import Gauge, UnitGroup
from zoo.units import Place, multiplied, permuted, places, units

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

NORMAL = 1e-6
"""Deviation from unit norm that counts as rounding: scales within it stay, so that a second pass changes nothing."""


def in_order(tensors: Mapping[str, Tensor], groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    """Bring the units of every group into their order.

    Args:
        tensors: state dict of the network.
        groups: interchangeable units, from the network's family, those inside of others first.

    Returns:
        The state dict of a network with the same function. Groups whose units share all their tensors with groups that
        cannot be ordered stay as they are.
    """
    current = dict(tensors)
    waiting = list(groups)
    unsettled = Counter((place.name, place.axis) for group in waiting for place in places(group, current))
    while True:
        ready = []
        for group in waiting:
            mine = list(places(group, current))
            if known := [place for place in mine if _settled(place, current, unsettled)]:
                says_much = any(current[place.name].ndim > 1 for place in known)  # vectors, such as biases, say little
                ready.append((says_much, group, mine, known))
                if says_much:
                    break
        if not ready:
            return current
        _, group, mine, known = max(ready, key=lambda found: found[0])
        waiting.remove(group)
        unsettled -= Counter((place.name, place.axis) for place in mine)
        current = _ordered(current, group, known)


def _settled(place: Place, tensors: Mapping[str, Tensor], unsettled: Counter[tuple[str, int]]) -> bool:
    others = (axis for axis in range(tensors[place.name].ndim) if axis != place.axis)
    return tensors[place.name].numel() > 0 and not any(unsettled[place.name, axis] for axis in others)


def _ordered(current: dict[str, Tensor], group: UnitGroup, known: Sequence[Place]) -> dict[str, Tensor]:
    current = head_maps.chosen(current, group) if group.maps else current
    everything = tuple((place.name, place.axis) for place in places(group, current))
    gauges = (*group.gauges, *([Gauge(everything, (), False)] if group.odd else []))
    for gauge in gauges:
        described = [units(current[p.name], p) for p in known if (p.name, p.axis) in gauge.up]
        if not described:
            continue
        if not gauge.positive:
            factor = _signs(described)
        elif all(current[name].element_size() >= 4 for name, _ in (*gauge.up, *gauge.down) if name in current):
            factor = _inverse_norms(described)
        else:
            continue  # the rounding of short types would change the function
        if gauge.positive and bool((factor == 1).all()):
            continue
        current = multiplied(current, group, factor, gauge.up)  # also with signs of 1: it leaves no negative zeros
        current = multiplied(current, group, 1 / factor, gauge.down)
    order = _sorted([units(current[place.name], place) for place in known])
    return permuted(current, group, order)


def _signs(described: Iterable[Float[Tensor, "units _"]]) -> Float[Tensor, " units"]:
    rows = torch.cat([part.double() for part in described], 1)
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))[:, 0]
    return torch.where(largest < 0, -1.0, 1.0).double()


def _inverse_norms(described: Iterable[Float[Tensor, "units _"]]) -> Float[Tensor, " units"]:
    norm = sum(part.double().square().sum(1) for part in described) ** 0.5
    assert isinstance(norm, torch.Tensor)
    leave = (norm == 0) | ((norm - 1).abs() <= NORMAL) | ~norm.isfinite()
    return torch.where(leave, 1.0, 1 / norm)


def _sorted(described: Sequence[Float[Tensor, "units _"]]) -> Int[Tensor, " units"]:
    """Order of the rows, by their first entries that differ."""
    key = described[0][:, 0].double()
    values, order = key.sort(stable=True)
    if bool((values[1:] != values[:-1]).all()):
        return order
    rows = [part.double().numpy() for part in described]

    def compare(a: int, b: int) -> int:
        for part in rows:
            different = (part[a] != part[b]).nonzero()[0]
            if len(different):
                return -1 if part[a][different[0]] < part[b][different[0]] else 1
        return 0

    return torch.tensor(sorted(range(len(key)), key=functools.cmp_to_key(compare)), dtype=torch.long)
