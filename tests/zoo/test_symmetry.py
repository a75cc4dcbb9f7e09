"""Alignment of hidden units: it keeps the function, is a projection, and makes twins equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.architectures import UnitGroup, family
from zoo.build.vectorised import initialise
from zoo.errors import UsageError
from zoo.networks import logits, logits_many
from zoo.symmetry import align, fit_reference, rename_outputs, scramble

ONE = {"family": "mlp", "sizes": [8, 12, 3]}
DEEP = {"family": "mlp", "sizes": [8, 12, 9, 10, 3]}
CASES = [{**base, "activation": activation} for base in (ONE, DEEP) for activation in ("tanh", "relu")]


def network(architecture: dict[str, Any], seed: int) -> dict[str, Tensor]:
    return {name: value[0] for name, value in initialise(architecture, [seed]).items()}


def groups(architecture: dict[str, Any]) -> tuple[UnitGroup, ...]:
    return family(architecture).groups(architecture)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum((a[name] - b[name]).square().sum().item() for name in a) ** 0.5


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(a[name].equal(b[name]) for name in a)


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("architecture", CASES, ids=str)
def test_alignment_keeps_the_function_and_is_idempotent(architecture: dict[str, Any], seed: int) -> None:
    source, reference = network(architecture, seed), network(architecture, seed + 100)
    moved = align(source, reference, groups(architecture))
    assert not equal(moved, source)
    x = torch.randn(50, 8)
    before, after = logits(architecture, source, x), logits(architecture, moved, x)
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    assert equal(align(moved, reference, groups(architecture)), moved)
    assert distance(moved, reference) < distance(source, reference)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_twins_meet_at_any_reference_if_there_is_one_hidden_layer(activation: str, seed: int) -> None:
    architecture = {**ONE, "activation": activation}
    source, reference = network(architecture, seed), network(architecture, 100)
    twin = scramble(source, groups(architecture), random(seed))
    assert not equal(twin, source)
    met = align(twin, reference, groups(architecture))
    assert equal(met, align(source, reference, groups(architecture)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_twins_meet_at_a_near_reference_through_several_hidden_layers(activation: str, seed: int) -> None:
    architecture = {**DEEP, "activation": activation}
    source = network(architecture, seed)
    reference = {name: value + 0.02 * torch.randn_like(value) for name, value in source.items()}
    twin = scramble(source, groups(architecture), random(seed))
    assert equal(align(twin, reference, groups(architecture)), source)


def test_relu_units_keep_their_signs() -> None:
    architecture = {**ONE, "activation": "relu"}
    source, reference = network(architecture, 1), network(architecture, 2)
    for moved in (align(source, reference, groups(architecture)), scramble(source, groups(architecture), random(0))):
        assert sorted(moved["layers.0.bias"].tolist()) == sorted(source["layers.0.bias"].tolist())


def test_the_best_assignment_of_one_layer_is_found() -> None:
    architecture = {"family": "mlp", "sizes": [2, 3, 2], "activation": "tanh"}
    source, reference = network(architecture, 1), network(architecture, 2)
    best = distance(align(source, reference, groups(architecture)), reference)
    tries = [distance(scramble(source, groups(architecture), random(seed)), reference) for seed in range(500)]
    assert best == pytest.approx(min(tries)), "6 orders times 8 signs: 500 draws visit all of them"


def test_ties_change_nothing() -> None:
    architecture = {**ONE, "activation": "tanh"}
    source, reference = network(architecture, 1), network(architecture, 2)
    zeros = {name: torch.zeros_like(value) for name, value in source.items()}
    assert equal(align(source, zeros, groups(architecture)), source)
    for name, axis in groups(architecture)[0].axes:  # units 0 and 1 of the reference are the same
        reference[name].movedim(axis, 0)[1] = reference[name].movedim(axis, 0)[0]
    moved = align(source, reference, groups(architecture))
    assert equal(align(moved, reference, groups(architecture)), moved)
    order = [1, 0, *range(2, 12)]
    swapped = dict(moved)
    for name, axis in groups(architecture)[0].axes:
        swapped[name] = moved[name].index_select(axis, torch.tensor(order))
    assert equal(align(swapped, reference, groups(architecture)), swapped)


def test_tensors_of_no_group_pass_through() -> None:
    architecture = {**ONE, "activation": "tanh"}
    source, reference = network(architecture, 1), network(architecture, 2)
    assert align({**source, "extra": torch.ones(2)}, reference, groups(architecture))["extra"].equal(torch.ones(2))


def test_other_shapes_are_refused() -> None:
    source = network({**ONE, "activation": "tanh"}, 1)
    other = network({"family": "mlp", "sizes": [8, 11, 3], "activation": "tanh"}, 1)
    with pytest.raises(UsageError, match=r"'layers.0.weight' is \(12, 8\), the reference has \(11, 8\)"):
        align(source, other, ())
    with pytest.raises(UsageError, match="is nothing"):
        align({}, source, ())


def test_the_mean_of_aligned_twins_is_one_of_them() -> None:
    architecture = {**ONE, "activation": "tanh"}
    source = network(architecture, 1)
    twins = [scramble(source, groups(architecture), random(seed)) for seed in range(6)]
    reference = fit_reference(twins, groups(architecture))
    for name, value in twins[0].items():
        torch.testing.assert_close(reference[name], value)


@pytest.mark.parametrize("architecture", CASES, ids=str)
def test_networks_are_nearer_to_each_other_after_alignment(architecture: dict[str, Any]) -> None:
    networks = [network(architecture, seed) for seed in range(8)]
    reference = fit_reference(networks, groups(architecture))
    aligned = [align(one, reference, groups(architecture)) for one in networks]
    mean = {name: torch.stack([one[name] for one in aligned]).mean(0) for name in reference}
    raw = {name: torch.stack([one[name] for one in networks]).mean(0) for name in reference}
    assert sum(distance(one, mean) for one in aligned) < 0.95 * sum(distance(one, raw) for one in networks)
    assert equal(reference, fit_reference(networks, groups(architecture)))


@pytest.mark.parametrize("architecture", CASES, ids=str)
def test_renamed_outputs_are_the_logits_in_another_order(architecture: dict[str, Any]) -> None:
    stacked = initialise(architecture, [1, 2, 3])
    order = torch.tensor([[2, 0, 1], [0, 1, 2], [1, 0, 2]])
    renamed = rename_outputs(stacked, family(architecture).outputs(architecture), order)
    x = torch.randn(3, 7, 8)
    before, after = logits_many(architecture, stacked, x), logits_many(architecture, renamed, x)
    for i in range(3):
        torch.testing.assert_close(after[i], before[i][:, order[i]])
