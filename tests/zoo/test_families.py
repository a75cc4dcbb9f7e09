"""Every family: its groups are symmetries, none that it should know is missing, and twins come back equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.zoo.networks import ARCHITECTURES, difference, distance, equal, groups, inputs, make, run, state
from zoo import kinds
from zoo.architectures import UnitGroup, family, tied
from zoo.errors import UsageError
from zoo.kinds.dense import from_state_dict
from zoo.symmetry import align, fit_reference, scramble
from zoo.unit_order import in_order
from zoo.units import names, places

TOLERANCE = 1e-5
"""Bound on the relative change of outputs, and on that of tensors of twins whose scales differ."""

every = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every
def test_twins_compute_the_same_and_come_back_equal(architecture: dict[str, Any]) -> None:
    network, found, x = make(architecture), groups(architecture), inputs(architecture)
    source = state(network)
    before = run(network, source, x)
    canonical = in_order(source, found)
    assert difference(run(network, canonical, x), before) <= TOLERANCE
    assert equal(in_order(canonical, found), canonical), "a second pass changes nothing"
    for seed in range(3):
        twin = scramble(source, found, random(seed))
        assert not equal(twin, source)
        assert difference(run(network, twin, x), before) <= TOLERANCE
        assert equal(in_order(twin, found), canonical), "permutations and signs are exact"
        scaled = scramble(source, found, random(seed), scale=True)
        assert difference(run(network, scaled, x), before) <= TOLERANCE
        assert distance(in_order(scaled, found), canonical) <= TOLERANCE


@every
def test_alignment_keeps_the_function_and_brings_twins_home(architecture: dict[str, Any]) -> None:
    network, found, x = make(architecture), groups(architecture), inputs(architecture)
    source, reference = state(network), state(make(architecture, 1))
    moved = align(source, reference, found)
    assert difference(run(network, moved, x), run(network, source, x)) <= TOLERANCE
    assert equal(align(moved, reference, found), moved)
    twin = scramble(source, found, random(3))
    near = {n: v + 0.02 * v.std() * torch.randn_like(v) if v.numel() > 1 else v for n, v in source.items()}
    assert distance(align(twin, near, found), source) == 0


@every
def test_statistics_and_counters_keep_their_values(architecture: dict[str, Any]) -> None:
    source = state(make(architecture))
    found = groups(architecture)
    for moved in (in_order(source, found), scramble(source, found, random(0), scale=True)):
        for name, value in source.items():
            assert moved[name].dtype == value.dtype
            if "running" in name or not value.is_floating_point():
                assert moved[name].flatten().sort()[0].equal(value.flatten().sort()[0])
    reference = fit_reference([source, scramble(source, found, random(1))], found)
    assert {name: value.dtype for name, value in reference.items()} == {n: v.dtype for n, v in source.items()}


@every
def test_the_kind_recognises_twins(architecture: dict[str, Any]) -> None:
    source = state(make(architecture))
    leave_out = tied(architecture)
    kept = {name: value for name, value in source.items() if name not in leave_out}
    dense = kinds.get("dense")
    one = from_state_dict(kept, architecture=architecture)
    other = from_state_dict(scramble(kept, groups(architecture), random(2), scale=True), architecture=architecture)
    third = from_state_dict(
        {n: v for n, v in state(make(architecture, 1)).items() if n in kept}, architecture=architecture
    )
    assert dense.same_function(one, other)
    assert not dense.same_function(one, third)
    a, b = dense.invariant(one), dense.invariant(other)
    assert a is not None
    assert a == pytest.approx(b, rel=TOLERANCE)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_are_permuted_exactly(architecture: dict[str, Any], dtype: torch.dtype) -> None:
    source = {n: v.to(dtype) if v.is_floating_point() else v for n, v in state(make(architecture)).items()}
    found = groups(architecture)
    assert equal(in_order(scramble(source, found, random(0)), found), in_order(source, found))


@every
def test_places_cover_tensors_of_the_network(architecture: dict[str, Any]) -> None:
    source = state(make(architecture))
    for group in groups(architecture):
        assert names(group) <= source.keys()
        assert list(places(group, source))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("bert-classes", [4, 24, 4, 24, 16, 16]),
        ("bert", [4, 24, 4, 24]),
        ("bert-untied", [4, 24, 4, 24, 16, 16]),
        ("gpt2", [4, 64, 4, 64, 16]),
        ("llama", [2, 2, 2, 24, 2, 2, 2, 24, 16]),
        ("llama-biased", [4, 24, 4, 24, 16]),
        ("vit", [3, 10, 3, 10, 12]),
        ("resnet", [8, 8, 12, 4]),
        ("resnet-conv", [8, 8, 8, 12, 12]),
        ("resnet-bottleneck", [8, 8, 8, 8, 8, 12, 12, 32, 48]),
    ],
)
def test_sizes_of_groups(name: str, sizes: list[int]) -> None:
    assert sorted(group.size for group in groups(ARCHITECTURES[name])) == sorted(sizes)


def test_heads_that_share_keys_stay_together() -> None:
    architecture = ARCHITECTURES["llama"]
    source = state(make(architecture))
    moved = scramble(source, groups(architecture), random(4))
    q, k = (moved[f"model.layers.0.self_attn.{n}_proj.weight"] for n in "qk")
    before_q, before_k = (source[f"model.layers.0.self_attn.{n}_proj.weight"] for n in "qk")

    def owner(rows: torch.Tensor, of: torch.Tensor) -> list[int]:
        sets = [part.sort()[0].flatten().sort()[0] for part in of.chunk(2)]
        return [next(i for i, s in enumerate(sets) if s.equal(part.flatten().sort()[0])) for part in rows.chunk(2)]

    assert owner(q, before_q) == owner(k, before_k)


@every
def test_outputs_index_the_classes(architecture: dict[str, Any]) -> None:
    cls, source = family(architecture), state(make(architecture))
    assert cls.describe(architecture)
    try:
        outputs = cls.outputs(architecture)
    except UsageError as error:
        assert "no classes" in str(error)  # noqa: PT017 - some families have both
        return
    count = run(make(architecture), source, inputs(architecture)).shape[-1]
    assert all(source[name].shape[axis] == outputs.size == count for name, axis in outputs.axes)


@pytest.mark.parametrize(
    "architecture",
    [
        {"family": "resnet", "blocks": [1, 0]},
        {"family": "resnet", "blocks": [1], "widths": [4, 8]},
        {"family": "resnet", "blocks": "1", "widths": [4]},
        {"family": "resnet", "style": "other"},
        {"family": "resnet", "style": ["cifar"]},
        {"family": "resnet", "widths": [16, 33, 64]},
        {"family": "resnet", "expansion": 3},
        {"family": "resnet", "expansion": 4, "shortcut": "pad"},
        {"family": "resnet", "classes": "10"},
        {"family": "vit", "image": 30, "patch": 16},
        {"family": "vit", "activation": "x"},
        {"family": "bert", "model": "BertLMHeadModel", "config": {}},
        {"family": "bert", "model": "BertModel", "config": None},
        {"family": "bert", "model": "BertModel", "config": {"num_hidden_layers": 10**9}},
        {"family": "bert", "model": "BertModel", "config": {"add_cross_attention": True}},
        {"family": "gpt2", "model": "GPT2Model", "config": {"n_embd": -1}},
        {"family": "llama", "model": "LlamaModel", "config": {"num_key_value_heads": 5}},
        {"family": "chain", "layers": ["a"], "sizes": [2], "biases": [True]},
    ],
    ids=str,
)
def test_descriptions_that_make_no_sense_are_refused(architecture: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        groups(architecture)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (UnitGroup((("a", 0),), 3), "cannot be cut into 3 units"),
        (UnitGroup((("a", 2),), 2), "has no axis 2"),
    ],
)
def test_groups_that_do_not_fit_are_refused(group: UnitGroup, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        scramble({"a": torch.zeros(4, 4)}, [group], random(0))


def test_an_unknown_activation_cannot_be_built() -> None:
    for architecture in ({"family": "resnet", "activation": None}, {"family": "chain"}):
        with pytest.raises(UsageError, match="activation"):
            family(architecture).build(architecture)


def test_a_configuration_that_transformers_refuses() -> None:
    architecture = {"family": "bert", "model": "BertModel", "config": {"hidden_size": 10, "num_attention_heads": 3}}
    with pytest.raises(UsageError, match="does not accept"):
        family(architecture).build(architecture)
