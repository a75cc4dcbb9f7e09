"""Symmetries of hidden units: permutation, and sign for odd activations.

Two networks that differ by a permutation of hidden units compute the same function but look unrelated. Alignment
moves a network, inside its class of equal functions, as close as possible to a reference. With one group of
units the optimum is exact (an assignment problem); with several, groups are improved in turn until nothing changes,
from two starts. Method: weight matching of Ainsworth et al. 2023 (arXiv 2209.04836), extended by signs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from zoo.architectures import UnitGroup
from zoo.errors import UsageError

Tensors = Mapping[str, "Tensor"]

TIE = 1e-9
"""Relative gain below which two placements count as equally good, so that units do not move for rounding errors."""


def _units(tensor: Tensor, axis: int) -> Float[Tensor, "units features"]:
    return tensor.movedim(axis, 0).flatten(1) if tensor.ndim > 1 else tensor[:, None]


def _permute(tensors: Tensors, group: UnitGroup, order: Tensor, sign: Tensor) -> dict[str, Tensor]:
    """Return the tensors with the units of ``group`` reordered and multiplied by ``sign``."""
    result = dict(tensors)
    for name, axis in group.axes:
        shape = [-1 if a == axis else 1 for a in range(result[name].ndim)]
        result[name] = result[name].index_select(axis, order) * sign.view(shape).to(result[name].dtype)
    return result


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
    """Improve one group after the other until nothing changes."""
    current = dict(tensors)
    for _ in range(rounds):
        moves = 0
        for group in groups:
            if (move := _match(current, reference, group.axes, odd=group.odd)) is not None:
                current = _permute(current, group, *move)
                moves += 1
        if moves == 0:
            break
    return current


def _sweep(tensors: Tensors, reference: Tensors, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    """Match each group once, by the tensors that no later group touches: the way from the inputs to the outputs.

    Twins meet here whatever their order is, while the descent alone may stop each of them somewhere else.
    """
    current = dict(tensors)
    for i, group in enumerate(groups):
        later = {name for other in groups[i + 1 :] for name, _ in other.axes}
        settled = tuple(axis for axis in group.axes if axis[0] not in later)
        if (move := _match(current, reference, settled or group.axes, odd=group.odd)) is not None:
            current = _permute(current, group, *move)
    return current


def _match(
    tensors: Tensors, reference: Tensors, axes: Sequence[tuple[str, int]], *, odd: bool
) -> tuple[Int[Tensor, " units"], Float[Tensor, " units"]] | None:
    """Best order and signs of the units, or ``None`` if the present ones are as good."""
    products = [_units(reference[name], axis).double() @ _units(tensors[name], axis).double().T for name, axis in axes]
    similarity = torch.stack(products).sum(0)
    rows, columns = linear_sum_assignment((similarity.abs() if odd else similarity).numpy(), maximize=True)
    chosen = similarity[torch.from_numpy(rows), torch.from_numpy(columns)]
    sign = torch.where(chosen < 0, -1.0, 1.0) if odd else torch.ones(len(chosen))
    gain = (chosen * sign).sum() - similarity.diagonal().sum()
    return (torch.from_numpy(columns), sign) if gain > TIE * similarity.abs().max() else None


def _inner(a: Tensors, b: Tensors) -> float:
    return sum((a[name].double() * b[name].double()).sum().item() for name in b)


def scramble(tensors: Tensors, groups: Sequence[UnitGroup], generator: torch.Generator) -> dict[str, Tensor]:
    """Return a random twin: the same function, units permuted and (where free) signs flipped."""
    current = dict(tensors)
    for group in groups:
        order = torch.randperm(group.size, generator=generator)
        flips = torch.randint(0, 2, (group.size,), generator=generator) if group.odd else torch.zeros(group.size)
        current = _permute(current, group, order, 1.0 - 2.0 * flips)
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
        The mean of the aligned networks.
    """
    reference: dict[str, Tensor] = dict(networks[0])
    for _ in range(rounds):
        aligned = [align(network, reference, groups) for network in networks]
        mean = {name: torch.stack([a[name] for a in aligned]).mean(0) for name in reference}
        still = all(torch.allclose(mean[name], reference[name], atol=1e-6) for name in reference)
        reference = mean
        if still:
            break
    return reference
