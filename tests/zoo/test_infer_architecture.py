"""Recognising networks from names and shapes: right where it is sure, silent where it is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.networks import ARCHITECTURES, difference, equal, inputs, make, run, state
from zoo import kinds
from zoo.architectures import family
from zoo.errors import UsageError
from zoo.infer_architecture import groups_of, infer
from zoo.kinds.dense import from_state_dict
from zoo.symmetry import scramble

Shapes = dict[str, tuple[int, ...]]


def shapes(tensors: dict[str, Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def linear(**sizes: tuple[int, int]) -> Shapes:
    """Shapes of linear layers, each ``(inputs, outputs)``."""
    result: Shapes = {}
    for name, (a, b) in sizes.items():
        result |= {f"{name}.weight": (b, a), f"{name}.bias": (b,)}
    return result


def test_a_sequential_network_is_a_chain() -> None:
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 6)
    ).eval()
    source = state(network)
    found = infer(shapes(source))
    assert found is not None
    assert (found["family"], found["sizes"], found["sequential"]) == ("chain", [6, 5, 5, 6], True)
    groups = groups_of(found, shapes(source))
    assert groups is not None
    assert [(group.size, group.odd, group.gauges) for group in groups] == [(5, False, ())] * 2
    x = torch.randn(4, 6)
    want = run(network, source, x)
    twin = scramble(source, groups, torch.Generator().manual_seed(0))
    assert difference(run(network, twin, x), want) <= 1e-5
    one, other = (kinds.canonical(from_state_dict(tensors)) for tensors in (source, twin))
    assert equal(one.tensors, other.tensors)
    assert not equal(one.tensors, source)
    assert difference(run(network, dict(one.tensors), x), want) <= 1e-5


def test_layers_that_additions_may_bridge_move_alike() -> None:
    found = infer(linear(fc1=(6, 5), fc2=(5, 5), fc3=(5, 4), fc10=(4, 3)))
    assert found is not None
    assert found["layers"] == ["fc1", "fc2", "fc3", "fc10"]
    groups = family(found).groups(found)
    assert [(group.size, len(group.axes)) for group in groups] == [(5, 6), (4, 3)]
    same = infer(linear(a=(6, 5), b=(5, 6), c=(6, 6), d=(6, 2)))
    assert same is not None
    assert [group.size for group in family(same).groups(same)] == [5], "6 is the width of the inputs"
    assert family(found).describe(found) == "6-5-5-4-3 MLP"
    assert family(found).outputs(found).axes == (("fc10.weight", 0), ("fc10.bias", 0))


@pytest.mark.parametrize(
    "unknown",
    [
        {},
        {"a.weight": (3,)},
        {"a.weight": (3, 4), "b.weight": (4, 4)},
        {"embedding.weight": (9, 4), "out.weight": (4, 9), "out.bias": (4,)},
        {"a.weight": (3, 4), "a.bias": (2,), "b.weight": (2, 3)},
        {"a.weight": (3, 4), "a.bias": (3,), "b.weight": (2, 3), "c": (1,)},
        {"a.weight": (3, 4), "a.bias": (3,), "b.bias": (3,), "b.running_mean": (3,)},
        {"a.bias": (3,)},
        {"weight": (3, 4), "bias": (3,)},
        {"a.weight": (0, 4), "a.bias": (0,), "b.weight": (2, 0)},
        {"conv1.weight": (8, 3, 3, 3), "linear.weight": (10, 8), "layer1.0.conv1.weight": (8, 8, 3, 3)},
        {"conv1.weight": (8, 3, 3, 3), "linear.weight": (), "layer1.0.conv1.weight": ()},
        {"conv1.weight": (8, 3, 3, 3), "fc.weight": (10, 8), "layer2.0.conv1.weight": (8, 8, 3, 3)},
        {"conv1.weight": (10**9, 3, 3, 3), "fc.weight": (10, 10**9), "layer1.0.conv1.weight": (10**9, 8, 3, 3)},
    ],
    ids=lambda shapes: " ".join(shapes),
)
def test_what_is_not_sure_is_not_said(unknown: Shapes) -> None:
    assert infer(unknown) is None


FIFTY = {"family": "resnet", "blocks": [2, 1, 1, 1], "widths": [4, 8, 8, 12], "expansion": 4}
RESNETS: dict[str, dict[str, Any]] = {
    "20": {"family": "resnet", "prefix": "module."},
    "32": {"family": "resnet", "blocks": [5, 5, 5], "prefix": "module."},
    "20-conv": {"family": "resnet", "shortcut": "conv", "classes": 100},
    "18": {"family": "resnet", "style": "torchvision", "blocks": [2, 2, 2, 2], "widths": [64, 128, 256, 512]},
    "18-cifar": {"family": "resnet", "shortcut": "conv", "blocks": [2, 2, 2, 2], "widths": [8, 16, 32, 64]},
    "50": {**FIFTY, "style": "torchvision"},
    "50-deep": {**FIFTY, "style": "torchvision", "stem": "deep", "shortcut": "pool"},
    "50-cifar": FIFTY,
    "50-wide": {**FIFTY, "style": "torchvision", "expansion": 2, "norm": False},
    "18-pool": {**FIFTY, "style": "torchvision", "expansion": None, "shortcut": "pool"},
    "grey": {"family": "resnet", "channels": 1, "norm": False},
}


@pytest.mark.parametrize("architecture", RESNETS.values(), ids=RESNETS)
def test_residual_networks_are_recognised(architecture: dict[str, Any]) -> None:
    with torch.device("meta"):
        tensors = shapes(family(architecture).build(architecture).state_dict())
    found = infer(tensors)
    assert found is not None
    assert family(found).describe(found) == family(architecture).describe(architecture)
    known, declared = groups_of(found, tensors), family(architecture).groups(architecture)
    assert known is not None
    assert [(g.axes, g.parts) for g in known] == [(g.axes, g.parts) for g in declared]
    assert not any(g.gauges or g.odd for g in known), "the activation is not known"
    old = {name: shape for name, shape in tensors.items() if "num_batches" not in name}
    assert infer(old) == found
    assert infer({**tensors, "extra": (1,)}) is None
    assert infer(dict(list(tensors.items())[:-1])) is None


def test_a_recognised_residual_network_computes_the_same() -> None:
    architecture = ARCHITECTURES["resnet-conv"]
    network, x = make(architecture), inputs(architecture)
    one = kinds.canonical(from_state_dict(state(network)))
    twin = scramble(state(network), family(architecture).groups(architecture), torch.Generator().manual_seed(1))
    want = run(network, state(network), x)
    assert equal(kinds.canonical(from_state_dict(twin)).tensors, one.tensors)
    assert difference(run(network, dict(one.tensors), x), want) <= 1e-5


def test_shortcuts_whose_zeros_may_lie_anywhere_are_not_guessed() -> None:
    architecture = {"family": "resnet", "style": "torchvision", "shortcut": "pad", "stem": 3}
    with torch.device("meta"):
        assert infer(shapes(family(architecture).build(architecture).state_dict())) is None


@pytest.mark.parametrize(
    "name",
    ["bert-classes", "bert-words", "bert-untied", "bert", "gpt2", "gpt2-classes", "gpt2-bare", "llama", "llama-tied"],
)
def test_transformers_are_recognised_by_their_configuration(name: str) -> None:
    architecture = ARCHITECTURES[name]
    tensors = shapes(state(make(architecture)))
    config = {**architecture["config"], "model_type": architecture["family"], "architectures": [architecture["model"]]}
    found = infer(tensors, config)
    assert found is not None
    assert groups_of(found, tensors) == family(architecture).groups(architecture)
    assert infer(tensors, {**config, "model_type": "other"}) is None
    assert infer(tensors, {**config, "architectures": None}) is None
    if name == "gpt2":
        published = {n.removeprefix("transformer."): s for n, s in tensors.items() if n != "lm_head.weight"}
        published["h.0.attn.bias"] = (1, 1, 12, 12)
        prefixless = infer(published, config)
        assert prefixless is not None
        assert groups_of(prefixless, published)
        with pytest.raises(UsageError, match="other names"):
            family(prefixless).build(prefixless)
    if architecture["model"] not in ("BertModel", "GPT2Model"):
        unsure = infer({**tensors, "other.weight": (16, 16)}, config)
        assert unsure is not None
        stream = {group for group in groups_of(found, tensors) or () if group.size == 16}
        assert not stream & set(groups_of(unsure, tensors) or ()), "the other tensor may read the stream"
    changed = {n: (*s[:-1], s[-1] + 1) if "attn" in n or "attention" in n else s for n, s in tensors.items()}
    assert infer(changed, config) is None


def test_a_layout_that_declares_an_architecture_is_taken_at_its_word() -> None:
    network = make(ARCHITECTURES["mlp"])
    twin = from_state_dict(state(network), architecture={"family": "none"})
    assert kinds.canonical(twin) is twin
