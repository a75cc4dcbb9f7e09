"""Symmetries of hidden units: permutation, and sign for odd activations.

Two networks that differ by a permutation of hidden units compute the same function but look unrelated. Alignment
moves a network, inside its class of equal functions, as close as possible to a reference. With one group of
units the optimum is exact (an assignment problem); with several, groups are improved in turn until nothing changes.
Method: weight matching of Ainsworth et al. 2023 (arXiv 2209.04836), extended by signs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from zoo.architectures import UnitGroup
from zoo.errors import UsageError

Tensors = Mapping[str, "Tensor"]


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
    current = dict(tensors)
    for _ in range(rounds):
        changed = False
        for group in groups:
            similarity = sum(
                _units(reference[name], axis).double() @ _units(current[name], axis).double().T
                for name, axis in group.axes
            )
            assert isinstance(similarity, torch.Tensor)
            score = similarity.abs() if group.odd else similarity
            _, columns = linear_sum_assignment(score.numpy(), maximize=True)
            order = torch.from_numpy(np.ascontiguousarray(columns))
            sign = torch.ones(group.size)
            if group.odd:
                sign = torch.where(similarity[torch.arange(group.size), order] < 0, -1.0, 1.0)
            if bool((order != torch.arange(group.size)).any()) or bool((sign < 0).any()):
                current = _permute(current, group, order, sign)
                changed = True
        if not changed:
            break
    return current


def scramble(tensors: Tensors, groups: Sequence[UnitGroup], generator: torch.Generator) -> dict[str, Tensor]:
    """Return a random twin: the same function, units permuted and (where free) signs flipped."""
    current = dict(tensors)
    for group in groups:
        order = torch.randperm(group.size, generator=generator)
        flips = torch.randint(0, 2, (group.size,), generator=generator) if group.odd else torch.zeros(group.size)
        current = _permute(current, group, order, 1.0 - 2.0 * flips)
    return current


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
