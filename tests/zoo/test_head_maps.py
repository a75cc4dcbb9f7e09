"""Inner spaces of attention heads: one form for all maps between the two sides, and the function stays."""

from __future__ import annotations

import pytest
import torch

from tests.zoo.networks import ARCHITECTURES, difference, distance, equal, groups, inputs, make, run, state
from zoo import head_maps, kinds
from zoo.architectures import FreeMap, Part, UnitGroup
from zoo.kinds.dense import from_state_dict

WITH_MAPS = ("vit", "vit-transformers", "bert", "bert-words", "gpt2", "llama", "llama-biased")
WHOLE = ((0, 8),)
HEADS = UnitGroup((), 2, maps=(FreeMap((Part("q", 0, WHOLE),), (Part("k", 0, WHOLE),), Part("b", 0, WHOLE)),))


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _unbiased(tensors: dict[str, torch.Tensor], group: UnitGroup) -> dict[str, torch.Tensor]:
    """Only what the products are made of, so that shifted biases do not count."""
    return {name: tensors[name] for name in head_maps.covered(tensors, [group])} | {
        free.into: tensors[free.into] for free in group.maps if free.into
    }


@pytest.mark.parametrize("name", WITH_MAPS)
def test_maps_alone_keep_the_function_and_are_settled(name: str) -> None:
    architecture = ARCHITECTURES[name]
    network, x = make(architecture), inputs(architecture)
    source = state(network)
    heads = [group for group in groups(architecture) if group.maps]
    assert len(heads) == 2
    before = run(network, source, x)
    for group in heads:
        chosen, twin = head_maps.chosen(source, group), head_maps.moved(source, group, random(1))
        assert distance(twin, source) > 0.1
        assert difference(run(network, twin, x), before) <= 1e-5
        assert difference(run(network, chosen, x), before) <= 1e-5
        assert equal(head_maps.chosen(chosen, group), chosen)
        assert distance(head_maps.chosen(twin, group), chosen) <= 1e-5
        assert head_maps.same_products(_unbiased(twin, group), _unbiased(source, group), group, 1e-5)


def test_products_are_compared_where_singular_values_are_nearly_equal() -> None:
    turn = torch.linalg.qr(torch.randn(2, 4, 4, generator=random(0)))[0]
    left = torch.linalg.qr(torch.randn(2, 6, 4, generator=random(1)))[0].mT
    right = torch.linalg.qr(torch.randn(2, 6, 4, generator=random(2)))[0].mT
    one = {"q": left.flatten(0, 1), "k": right.flatten(0, 1), "b": torch.ones(8)}
    two = {"q": (turn @ left).flatten(0, 1), "k": (turn @ right).flatten(0, 1), "b": torch.zeros(8)}
    assert head_maps.same_products(one, two, HEADS, 1e-5)
    assert not head_maps.same_products(one, {**two, "q": two["q"] * 1.001}, HEADS, 1e-5)
    assert head_maps.covered(one, [HEADS]) == {"q", "k"}
    assert not head_maps.chosen(one, HEADS)["b"].any(), "the softmax ignores it"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_and_missing_tensors_are_left_alone(dtype: torch.dtype) -> None:
    short = {name: torch.randn(8, 6, generator=random(0)).to(dtype) for name in "qk"} | {"b": torch.ones(8)}
    assert equal(head_maps.chosen(short, HEADS), short)
    assert equal(head_maps.chosen({"q": torch.ones(8, 6)}, HEADS), {"q": torch.ones(8, 6)})


def test_heads_that_are_dead_or_of_low_rank() -> None:
    left, right = torch.randn(8, 6, generator=random(0)), torch.randn(8, 6, generator=random(1))
    left[0:4] = 0
    left[5] = left[4]
    tensors = {"q": left, "k": right, "b": torch.zeros(8)}
    found = head_maps.chosen(tensors, HEADS)
    assert not found["k"][0:4].any()
    assert head_maps.same_products(tensors, found, HEADS, 1e-6)
    assert equal(head_maps.chosen(found, HEADS), found)


def test_other_queries_make_no_twin() -> None:
    architecture = ARCHITECTURES["bert"]
    source = state(make(architecture))
    other = {**source}
    name = "encoder.layer.0.attention.self.query.weight"
    other[name] = source[name].flip(1)
    one, two = (from_state_dict(tensors, architecture=architecture) for tensors in (source, other))
    assert not kinds.get("dense").same_function(one, two)
