"""The family of small convolutional networks: size, symmetries, and many at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import functional_call, vmap

from zoo.architectures import Architecture, family
from zoo.build.vectorised import initialise
from zoo.errors import UsageError
from zoo.networks import logits, logits_many, skeleton
from zoo.symmetry import scramble

PUBLISHED = {"family": "cnn"}
SMALL = {"family": "cnn", "input": [3, 10, 9], "channels": [4, 3], "kernel": 3, "pool": [2, 1], "hidden": [5]}
NETWORKS: list[Architecture] = [
    PUBLISHED,
    *({**SMALL, "classes": 4, "activation": activation} for activation in ("tanh", "relu", "gelu")),
    {**SMALL, "hidden": []},
    {**SMALL, "hidden": [6, 5], "pool": 1},
]


def shape(architecture: Architecture) -> list[int]:
    return architecture.get("input", [1, 28, 28])


def count(**fields: Any) -> int:
    network = family(PUBLISHED).build({**PUBLISHED, **fields})
    return sum(value.numel() for value in network.state_dict().values())


def test_the_published_networks_have_their_published_size() -> None:
    assert count() == 2464
    assert count(activation="gelu") == 2464
    assert count(input=[3, 28, 28]) == 2864
    assert count(input=[3, 32, 32], kernel=[5, 5, 3]) == 2984
    large = {"channels": [16, 32, 15], "kernel": 3, "pool": 2}
    assert count(input=[3, 32, 32], **large) == 10853


@pytest.mark.parametrize("architecture", NETWORKS, ids=str)
def test_groups_are_symmetries_and_cover_all_hidden_units(architecture: Architecture) -> None:
    network = family(architecture).build(architecture)
    groups = family(architecture).groups(architecture)
    channels, hidden = architecture.get("channels", [8, 6, 4]), architecture.get("hidden", [20])
    assert [group.size for group in groups] == [*channels, *hidden]
    x = torch.rand(7, *shape(architecture))
    twin = scramble(network.state_dict(), groups, torch.Generator().manual_seed(3))
    assert any(not twin[name].equal(value) for name, value in network.state_dict().items() if "convs" in name)
    torch.testing.assert_close(logits(architecture, twin, x), network(x))


def test_signs_are_free_only_where_nothing_is_pooled() -> None:
    assert [group.odd for group in family(PUBLISHED).groups(PUBLISHED)] == [False, False, True, True]
    assert not any(group.odd for group in family(PUBLISHED).groups({**PUBLISHED, "activation": "gelu"}))


def test_outputs_index_the_classes() -> None:
    architecture = NETWORKS[1]
    state = family(architecture).build(architecture).state_dict()
    outputs = family(architecture).outputs(architecture)
    assert [state[name].shape[axis] for name, axis in outputs.axes] == [4, 4] == [outputs.size] * 2


@pytest.mark.parametrize("architecture", NETWORKS, ids=str)
def test_many_networks_at_once_are_the_networks_one_by_one(architecture: Architecture) -> None:
    stacked = initialise(architecture, [1, 2, 3])
    x = torch.rand(3, 90, *shape(architecture))  # more than one block
    weights = {name: value.clone().requires_grad_() for name, value in stacked.items()}
    module = skeleton(architecture)
    slow = vmap(lambda w, images: functional_call(module, w, (images,)))(weights, x)
    wanted = torch.autograd.grad(slow.square().sum(), list(weights.values()))
    fast = logits_many(architecture, weights, x)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    for got, expected in zip(torch.autograd.grad(fast.square().sum(), list(weights.values())), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    alone = logits(architecture, {name: value[1] for name, value in stacked.items()}, x[1])
    torch.testing.assert_close(fast[1], alone, rtol=1e-5, atol=1e-5)


def test_grey_images_need_no_axis_of_channels() -> None:
    network, x = family(PUBLISHED).build(PUBLISHED), torch.rand(5, 28, 28)
    assert network(x).equal(network(x[:, None]))


def test_description() -> None:
    expected = "8-6-4 tanh CNN with 20 hidden units for 1 x 28 x 28 images and 10 classes"
    assert family(PUBLISHED).describe(PUBLISHED) == expected
    assert "hidden" not in family(SMALL).describe({**SMALL, "hidden": []})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": []}, "channels"),
        ({"kernel": [3, 3]}, r"kernel is \[3, 3\], not 3"),
        ({"pool": 0}, "pool"),
        ({"classes": "ten"}, "classes"),
        ({"hidden": [2.5]}, "hidden"),
        ({"input": [28, 28]}, "channels, height and width"),
        ({"activation": "sine"}, "gelu, relu, tanh"),
        ({"input": [1, 8, 8]}, "8 x 8 do not fit"),
    ],
)
def test_bad_fields_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        family(PUBLISHED).build({**PUBLISHED, **change})


@pytest.mark.parametrize("architecture", NETWORKS, ids=str)
def test_networks_on_the_same_images_give_the_same_as_on_copies(architecture: Architecture) -> None:
    weights = {name: value.requires_grad_() for name, value in initialise(architecture, [1, 2, 3]).items()}
    images = torch.rand(90, *shape(architecture))
    both = [
        logits_many(architecture, weights, x) for x in (images.expand(3, *images.shape), images.repeat(3, 1, 1, 1, 1))
    ]
    torch.testing.assert_close(*both, rtol=1e-5, atol=1e-5)
    shared, copied = (torch.autograd.grad(y.square().sum(), list(weights.values())) for y in both)
    for one, other in zip(shared, copied, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_relu_frees_the_scale_of_every_unit_and_tanh_the_sign_of_those_not_pooled() -> None:
    relu, tanh = (family({"family": "cnn", "activation": a}).groups({"activation": a}) for a in ("relu", "tanh"))
    assert all([gauge.positive for gauge in group.gauges] == [True] for group in relu)
    assert not any(group.odd for group in relu)
    assert [group.odd for group in tanh] == [False, False, True, True]
    assert not any(group.gauges for group in tanh)
