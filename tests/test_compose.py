"""The contract of every method of composition, then what single methods promise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.compose_parents import CONFIG, MLP, adapter, changes, error, network
from weightgen.compose import Composition, Objective, compose, get_method, method_names
from weightgen.compose.objectives import classification
from zoo.errors import UsageError
from zoo.kinds import lora
from zoo.kinds.dense import groups_of
from zoo.networks import logits
from zoo.symmetry import scramble
from zoo.types import Weights

ADAPTERS = [name for name in method_names() if get_method(name).adapters]
NETWORKS = [name for name in method_names() if get_method(name).networks]


def towards(target: Mapping[str, Tensor]) -> Objective:
    """Squared distance to given changes."""

    def objective(deltas: Mapping[str, Tensor]) -> Tensor:
        assert deltas.keys() == target.keys()
        return sum((deltas[n] - target[n].float()).square().sum() for n in target) / 100  # type: ignore[return-value]

    return objective


def mix(parents: list[Weights], method: str, target: Weights | None = None, **options: Any) -> Composition:
    """Compose, learned methods towards a target."""
    learned = get_method(method).learned
    goal = towards(changes(target or parents[0])) if learned else None
    if target is not None and learned and target.layout.kind == "dense" and "base" in options:
        start = changes(options["base"])
        goal = towards({n: v - start[n] for n, v in changes(target).items()})
    return compose(parents, method, objective=goal, **options)


def test_all_methods_are_there() -> None:
    assert {"linear", "aligned_mean", "task_arithmetic", "ties", "dare_linear", "dare_ties"} <= set(method_names())
    assert {"atlas", "scalearn", "scalearn_uniform", "lorahub"} <= set(method_names())
    with pytest.raises(UsageError, match="unknown method of composition 'tie'"):
        get_method("tie")


@pytest.mark.parametrize("method", ADAPTERS)
def test_one_adapter_of_weight_one_is_given_back(method: str) -> None:
    parent = adapter(0, rank=3, use_rslora=True)
    mixed = mix([parent], method, weights=[1.0], settings=get_method(method).exact)
    assert error(changes(mixed.weights), changes(parent)) < 1e-5
    assert mixed.weights.layout.base_model == "base"
    assert mixed.weights.layout.config["peft"]["r"] == 3


@pytest.mark.parametrize("method", NETWORKS)
def test_one_network_of_weight_one_is_given_back(method: str) -> None:
    parent, base = network(0), network(1)
    options = {} if method == "aligned_mean" else {"base": base}
    mixed = mix([parent], method, parent, weights=[1.0], settings=get_method(method).exact, **options)
    x = torch.randn(9, 5)
    torch.testing.assert_close(logits(MLP, mixed.weights.tensors, x), logits(MLP, parent.tensors, x))
    assert mixed.weights.layout == parent.layout


@pytest.mark.parametrize("method", ADAPTERS)
def test_the_order_of_parents_and_repetition_change_nothing(method: str) -> None:
    parents, weights = [adapter(0), adapter(1, rank=3), adapter(2)], [0.5, 0.2, 0.3]
    first = mix(parents, method, weights=weights, seed=3)
    again = mix(parents, method, weights=weights, seed=3)
    turned = mix(parents[::-1], method, parents[0], weights=weights[::-1], seed=3)
    for other in (again, turned):
        for name, value in first.weights.tensors.items():
            assert torch.equal(value, other.weights.tensors[name])
    for name, value in first.coefficients.items():
        assert torch.equal(value, turned.coefficients[name].flip(0))


@pytest.mark.parametrize("method", ADAPTERS)
def test_any_rank_any_targets_and_the_stated_error(method: str) -> None:
    parents = [adapter(0, rank=1), adapter(1, rank=4, modules=("layer.1.q", "layer.2.v"))]
    target = mix(parents, "linear").weights
    exact, cut = mix(parents, method, target), mix(parents, method, target, rank=2)
    assert set(changes(cut.weights)) == {"layer.0.q.weight", "layer.1.q.weight", "layer.2.v.weight"}
    stated = cut.receipt["composed"]["relative_error"]
    assert 0 < stated < 1
    assert error(changes(cut.weights), changes(exact.weights)) == pytest.approx(stated, abs=1e-5)
    assert exact.receipt["composed"]["relative_error"] < 1e-12
    assert {value.shape[0] for name, value in cut.weights.tensors.items() if "lora_A" in name} == {2}


@pytest.mark.parametrize("method", ADAPTERS)
def test_adapters_of_two_bases_and_of_other_methods_are_refused(method: str) -> None:
    with pytest.raises(UsageError, match=r"has the base model 'base', .* has 'other'|'other', .* has 'base'"):
        mix([adapter(0), adapter(1, base_model_name_or_path="other")], method)
    with pytest.raises(UsageError, match="DoRA"):
        mix([adapter(0, use_dora=True), adapter(1)], method, adapter(0))


@pytest.mark.parametrize("method", [name for name in method_names() if get_method(name).learned])
def test_what_is_learned_needs_an_objective_and_lowers_it(method: str) -> None:
    parents = [adapter(0), adapter(1), adapter(2)]
    with pytest.raises(UsageError, match="has no objective"):
        compose(parents, method)
    wanted = compose(parents, "linear", weights=[0.9, -0.4, 0.1]).weights
    settings = {"steps": 150, "lr": 0.05} if "steps" in get_method(method).config.model_fields else {"evaluations": 150}
    mixed = mix(parents, method, wanted, settings=settings)
    assert error(changes(mixed.weights), changes(wanted)) < 0.1
    assert error(changes(compose(parents, "linear").weights), changes(wanted)) > 0.5


def test_linear_is_the_weighted_sum() -> None:
    parents, weights = [adapter(0), adapter(1, rank=4, use_rslora=True), adapter(2, lora_alpha=1)], [0.5, -2.0, 0.25]
    wanted = {
        name: sum(w * changes(p)[name] for w, p in zip(weights, parents, strict=True)) for name in changes(parents[0])
    }
    assert error(changes(mix(parents, "linear", weights=weights).weights), wanted) < 1e-6  # type: ignore[arg-type]
    assert error(changes(mix(parents, "task_arithmetic", weights=weights).weights), wanted) < 1e-6  # type: ignore[arg-type]


def test_truncation_is_the_best_of_its_rank() -> None:
    parents = [adapter(0, rank=3), adapter(1, rank=3)]
    whole = changes(mix(parents, "linear").weights)
    found = changes(mix(parents, "linear", rank=2).weights)
    for name, value in whole.items():
        u, s, v = torch.linalg.svd(value, full_matrices=False)
        torch.testing.assert_close(found[name], u[:, :2] * s[:2] @ v[:2], atol=1e-5, rtol=1e-5)


def test_the_gauge_of_factors_does_not_matter() -> None:
    parent, turn = adapter(0), torch.tensor([[2.0, 1.0], [0.0, 0.5]])
    tensors = {
        name: torch.linalg.inv(turn) @ value if "lora_A" in name else value @ turn
        for name, value in parent.tensors.items()
    }
    twin = Weights(parent.layout, tensors)
    for method in ("linear", "ties"):
        assert error(
            changes(mix([twin, adapter(1)], method).weights), changes(mix([parent, adapter(1)], method).weights)
        ) == pytest.approx(0, abs=1e-5)


def test_ties_by_hand() -> None:
    def one(*numbers: float) -> Weights:
        tensors = {"base_model.model.q.lora_A.weight": torch.ones(1, 1)}
        tensors["base_model.model.q.lora_B.weight"] = torch.tensor([numbers]).T
        return lora.from_state_dict(tensors, {**CONFIG, "r": 1, "lora_alpha": 1})

    parents = [one(4.0, -3.0, 0.1, 2.0), one(2.0, 5.0, 0.2, -1.0)]
    # Kept at density 0.5: (4, -3, 0, 0) and (2, 5, 0, 0); elected signs +, +; means of what agrees.
    found = changes(mix(parents, "ties", settings={"density": 0.5}).weights)["q.weight"].flatten()
    torch.testing.assert_close(found, torch.tensor([3.0, 5.0, 0.0, 0.0], dtype=torch.float64), atol=1e-6, rtol=0)
    found = changes(mix(parents, "ties", settings={"density": 1.0, "sign": "frequency"}).weights)["q.weight"].flatten()
    torch.testing.assert_close(found, torch.tensor([3.0, 5.0, 0.15, 2.0], dtype=torch.float64), atol=1e-6, rtol=0)


def test_dare_keeps_the_expectation_and_obeys_its_seed() -> None:
    parents = [adapter(0), adapter(1)]
    wanted = changes(mix(parents, "task_arithmetic").weights)
    draws = [changes(mix(parents, "dare_linear", seed=seed).weights) for seed in range(40)]
    mean = {name: torch.stack([draw[name] for draw in draws]).mean(0) for name in wanted}
    assert error(draws[0], wanted) > 0.5
    assert error(mean, wanted) < 0.25


def test_scalearn_scales_outputs_exactly_and_shares_between_layers() -> None:
    parents = [adapter(0), adapter(1)]
    mixed = mix(parents, "scalearn", adapter(5), settings={"steps": 5, "lr": 0.1, "shared": True})
    one, two = mixed.coefficients.values()
    assert one.shape == (2, 6)
    assert torch.equal(one, two)
    wanted = {
        name: sum(mixed.coefficients[name][i][:, None] * changes(parent)[name] for i, parent in enumerate(parents))
        for name in changes(parents[0])
    }
    assert error(changes(mixed.weights), wanted) < 1e-6  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="folds factors into the outputs of adapters"):
        mix([network(0), network(1)], "scalearn")


def test_atlas_learns_a_number_a_source_and_tensor() -> None:
    mixed = mix([adapter(0), adapter(1)], "atlas", adapter(5), settings={"steps": 20, "lr": 0.1})
    one, two = mixed.coefficients.values()
    assert one.shape == (2,)
    assert not torch.allclose(one, two)


def test_lorahub_stays_in_its_box_and_its_budget() -> None:
    parents = [adapter(0), adapter(1)]
    far = compose(parents, "linear", weights=[9.0, -9.0]).weights
    mixed = mix(parents, "lorahub", far, settings={"evaluations": 60})
    report = mixed.receipt["composed"]["report"]
    assert report["evaluations"] <= 60
    assert report["best"] < report["start"]
    assert all(bool((value.abs() <= 1.5).all()) for value in mixed.coefficients.values())


def test_aligned_mean_undoes_permutations_and_the_plain_mean_does_not() -> None:
    parent = network(0)
    twins = [Weights(parent.layout, scramble(parent.tensors, groups_of(parent.layout), _random(s))) for s in (1, 2)]
    x = torch.randn(20, 5)
    wanted = logits(MLP, parent.tensors, x)
    aligned = logits(MLP, mix(twins, "aligned_mean").weights.tensors, x)
    torch.testing.assert_close(aligned, wanted, atol=1e-5, rtol=1e-5)
    assert (logits(MLP, mix(twins, "linear").weights.tensors, x) - wanted).abs().max() > 0.05
    with pytest.raises(UsageError, match="aligned already"):
        mix(twins, "aligned_mean", base=parent)


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_networks_of_one_base() -> None:
    base, parents = network(0), [network(1), network(2)]
    with pytest.raises(UsageError, match="have no base"):
        mix(parents, "task_arithmetic")
    found = mix(parents, "task_arithmetic", base=base, settings={"scale": 0.5}).weights.tensors
    for name, value in found.items():
        wanted = base.tensors[name] + 0.5 * sum(p.tensors[name] - base.tensors[name] for p in parents)
        torch.testing.assert_close(value, wanted)


def test_atlas_learns_networks_through_their_own_loss() -> None:
    base, parents = network(0), [network(1), network(2)]
    x = torch.randn(64, 5)
    y = logits(MLP, parents[1].tensors, x).argmax(-1)
    goal = classification(MLP, base.tensors, x, y, batch=32)
    kept = {name: value.clone() for name, value in base.tensors.items()}
    mixed = compose(parents, "atlas", base=base, objective=goal, settings={"steps": 40, "lr": 0.1})
    right = (logits(MLP, mixed.weights.tensors, x).argmax(-1) == y).float().mean()
    before = (logits(MLP, base.tensors, x).argmax(-1) == y).float().mean()
    assert right > before + 0.2
    assert all(torch.equal(kept[name], value) for name, value in base.tensors.items())
