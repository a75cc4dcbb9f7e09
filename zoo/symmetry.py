"""Symmetries of hidden units: permutation, sign for odd activations, positive scale for ReLU.

Two networks that differ by a permutation of hidden units compute the same function but look unrelated. Alignment
moves a network, inside its class of equal functions, as close as possible to a reference. With one group of
units the optimum is exact (an assignment problem); with several, groups are improved in turn until nothing changes,
from two starts. Method: weight matching of Ainsworth et al. 2023 (arXiv 2209.04836), extended by signs. Units may be
rows, channels, heads of attention or channels of a residual stream: see ``zoo.architectures.UnitGroup``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from zoo import head_maps
from zoo.architectures import UnitGroup
from zoo.errors import UsageError
from zoo.units import Place, multiplied, names, permuted, places, units

Tensors = Mapping[str, "Tensor"]

TIE = 1e-9
"""Relative gain below which two placements count as equally good, so that units do not move for rounding errors."""

MANY = 100_000_000
"""Products above which similarities are computed in float32; whether a move is a gain is decided in float64."""


def align(tensors: Tensors, reference: Tensors, groups: Sequence[UnitGroup], *, rounds: int = 50) -> dict[str, Tensor]:
    """Move a network onto a reference without changing its function.

    Args:
        tensors: state dict of the network.
        reference: state dict of the same shapes.
        groups: interchangeable units, from the network's family.
        rounds: bound on passes over the groups; one pass is enough for a single group.

    Returns:
        The state dict with permuted (and sign-flipped) units; other tensors are passed on as they are.

    Raises:
        UsageError: if the two networks have different shapes.
    """
    for name, value in reference.items():
        if name not in tensors or tensors[name].shape != value.shape:
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise UsageError(
                f"cannot align: tensor {name!r} is {found}, the reference has {tuple(value.shape)}",
                "align networks of one layout only",
            )
    best = _descend(tensors, reference, groups, rounds)
    if len(groups) > 1:
        other = _descend(_sweep(tensors, reference, groups), reference, groups, rounds)
        there, here = _inner(other, reference), _inner(best, reference)
        best = other if there - here > TIE * abs(here) else best
    return best


def _descend(tensors: Tensors, reference: Tensors, groups: Sequence[UnitGroup], rounds: int) -> dict[str, Tensor]:
    """Improve one group after the other until nothing changes; a group is tried again when a neighbour has moved."""
    current = dict(tensors)
    touched = [names(group) for group in groups]
    stale = set(range(len(groups)))
    for _ in range(rounds):
        if not stale:
            break
        for i, group in enumerate(groups):
            if i not in stale:
                continue
            stale.discard(i)
            if (better := _improved(current, reference, group)) is not None:
                current = better
                stale |= {j for j, others in enumerate(touched) if others & touched[i] and (j != i or _twice(group))}
    return current


def _twice(group: UnitGroup) -> bool:
    """Whether a tensor has units of the group on several axes, so that similarities depend on the present order."""
    axes = {*group.axes, *((part.name, part.axis) for part in group.parts)}
    return len(axes) > len(names(group))


def _improved(
    current: dict[str, Tensor], reference: Tensors, group: UnitGroup, settled: Sequence[Place] | None = None
) -> dict[str, Tensor] | None:
    """The network with the units of one group nearer to the reference, or ``None`` if they are as near as they can be.

    Args:
        current: state dict.
        reference: state dict.
        group: the units.
        settled: places to compare; by default all of the group.
    """
    mine = [place for place in (settled or list(places(group, current))) if place.name in reference]
    similarity = _similarity(current, reference, mine, group.size)
    rows, columns = linear_sum_assignment((similarity.abs() if group.odd else similarity).numpy(), maximize=True)
    order = torch.from_numpy(columns)
    chosen = similarity[torch.from_numpy(rows), order]
    sign = torch.where(chosen < 0, -1.0, 1.0) if group.odd else torch.ones(len(chosen))
    if order.equal(torch.arange(group.size)) and bool((sign > 0).all()):
        return None
    if _gain(current, reference, mine, order, sign.double()) <= TIE * similarity.abs().max():
        return None
    moved = permuted(current, group, order)
    moved = multiplied(moved, group, sign) if group.odd else moved
    if settled is None and _twice(group):
        mine = {name: reference[name] for name in names(group) if name in reference}
        before = _inner(current, mine)
        return moved if _inner(moved, mine) - before > TIE * abs(before) else None
    return moved


def _similarity(current: Tensors, reference: Tensors, mine: Sequence[Place], size: int) -> Float[Tensor, "units units"]:
    """Inner product of every unit of the reference with every unit of the network."""
    total = torch.zeros(size, size, dtype=torch.float64)
    for place in mine:
        there, here = units(reference[place.name], place), units(current[place.name], place)
        dtype = torch.float64 if there.numel() * size < MANY else torch.float32
        total += there.to(dtype) @ here.to(dtype).T
    return total


def _gain(
    current: Tensors, reference: Tensors, mine: Sequence[Place], order: Int[Tensor, " units"], sign: Tensor
) -> float:
    """How much a move adds to the inner product with the reference."""
    total = 0.0
    for place in mine:
        there, here = units(reference[place.name], place).double(), units(current[place.name], place).double()
        total += ((here[order] * sign[:, None] - here) * there).sum().item()
    return total


def _sweep(tensors: Tensors, reference: Tensors, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    """Match each group once, by the tensors that no later group touches: the way from the inputs to the outputs.

    Twins meet here whatever their order is, while the descent alone may stop each of them somewhere else.
    """
    current = dict(tensors)
    for i, group in enumerate(groups):
        later = set[str]().union(*(names(other) for other in groups[i + 1 :]))
        settled = [place for place in places(group, current) if place.name not in later]
        current = _improved(current, reference, group, settled) or current
    return current


def _inner(a: Tensors, b: Tensors) -> float:
    return sum((a[name].double() * b[name].double()).sum().item() for name in b)


def scramble(
    tensors: Tensors, groups: Sequence[UnitGroup], generator: torch.Generator, *, scale: bool = False
) -> dict[str, Tensor]:
    """Return a random twin: the same function, units permuted and (where free) signs flipped.

    Args:
        tensors: state dict of the network.
        groups: interchangeable units.
        generator: source of randomness.
        scale: whether free factors and free linear maps are drawn too (rounded, other than permutations and signs).
    """
    current = dict(tensors)
    for group in groups:
        order = torch.randperm(group.size, generator=generator)
        current = permuted(current, group, order)
        if group.odd:
            flips = torch.randint(0, 2, (group.size,), generator=generator)
            current = multiplied(current, group, 1.0 - 2.0 * flips)
        for gauge in group.gauges if scale else ():
            factor = 1.0 - 2.0 * torch.randint(0, 2, (group.size,), generator=generator)
            if gauge.positive:
                factor = torch.exp(torch.randn(group.size, generator=generator))
            current = multiplied(current, group, factor, gauge.up)
            current = multiplied(current, group, 1 / factor.double(), gauge.down)
        current = head_maps.moved(current, group, generator) if scale else current
    return current


def rename_outputs(tensors: Tensors, outputs: UnitGroup, order: Int[Tensor, "b c"]) -> dict[str, Tensor]:
    """Reorder the classes of many networks: new class ``i`` of network ``b`` is old class ``order[b, i]``.

    Args:
        tensors: state dict whose values have a leading axis over networks.
        outputs: axes of a single network that index classes.
        order: one permutation a network.
    """
    result = dict(tensors)
    for name, axis in outputs.axes:
        value = result[name]
        shape = [len(order) if a == 0 else outputs.size if a == axis + 1 else 1 for a in range(value.ndim)]
        result[name] = value.gather(axis + 1, order.view(shape).expand_as(value))
    return result


def fit_reference(networks: Sequence[Tensors], groups: Sequence[UnitGroup], *, rounds: int = 10) -> dict[str, Tensor]:
    """Find a reference for a collection: align all to it, average, repeat until the average stands still.

    Generalised Procrustes averaging over the permutation (and sign) group; starts from the first network, so the
    result is deterministic in the order given.

    Args:
        networks: state dicts of one layout, at least one; use the train split only.
        groups: interchangeable units.
        rounds: bound on the number of averaging steps.

    Returns:
        The mean of the aligned networks; buffers of integers are those of the first.
    """
    reference: dict[str, Tensor] = dict(networks[0])
    for _ in range(rounds):
        aligned = [align(network, reference, groups) for network in networks]
        mean = {name: _mean([a[name] for a in aligned]) for name in reference}
        still = all(torch.allclose(mean[name], reference[name], atol=1e-6) for name in reference)
        reference = mean
        if still:
            break
    return reference


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0) if values[0].is_floating_point() else values[0]
