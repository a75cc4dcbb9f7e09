"""Networks brought into another shape of their family without training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.architectures import family, resized
from zoo.networks import logits_many

MLP = {"family": "mlp", "sizes": [6, 4, 3], "activation": "relu"}
RESNET = {"family": "resnet", "blocks": [1, 2], "widths": [4, 8], "channels": 1, "classes": 3}
CNN = {"family": "cnn", "input": [1, 12, 12], "channels": [3], "kernel": [3], "pool": [2], "hidden": [4], "classes": 3}


def networks(architecture: Mapping[str, Any], count: int = 2) -> dict[str, Tensor]:
    """Random networks, their biases and statistics too."""
    torch.manual_seed(0)
    made = [family(architecture).build(architecture).state_dict() for _ in range(count)]
    found = {name: torch.stack([one[name] for one in made]) for name in made[0]}
    return {k: v + 0.1 * torch.rand_like(v) if v.is_floating_point() else v for k, v in found.items()}


def changed(architecture: Mapping[str, Any], tensors: Mapping[str, Tensor], **fields: Any) -> dict[str, Tensor]:
    made = resized(architecture, tensors, {**architecture, **fields})
    assert made is not None
    shapes = {name: value.shape for name, value in networks({**architecture, **fields}).items()}
    assert {name: value.shape for name, value in made.items()} == shapes
    return made


def same(
    architecture: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    other: Mapping[str, Any],
    moved: Mapping[str, Tensor],
    shape: tuple[int, ...],
) -> bool:
    x = torch.randn(2, 5, *shape, generator=torch.Generator().manual_seed(1))
    return logits_many(architecture, tensors, x).allclose(logits_many(other, moved, x), atol=1e-5)


@pytest.mark.parametrize("hidden", [[9], [4, 4], [7, 5]])
def test_wider_and_deeper_perceptrons_compute_what_they_did(hidden: list[int]) -> None:
    sizes, tensors = [6, *hidden, 3], networks(MLP)
    moved = changed(MLP, tensors, sizes=sizes)
    assert same(MLP, tensors, {**MLP, "sizes": sizes}, moved, (6,))
    back = resized({**MLP, "sizes": [6, 9, 3]}, changed(MLP, tensors, sizes=[6, 9, 3]), MLP)
    assert back is not None
    assert same(MLP, tensors, MLP, back, (6,)), "units that lead nowhere go first"


def test_of_layers_too_many_the_first_stay() -> None:
    deep = {**MLP, "sizes": [6, 4, 5, 3]}
    tensors = networks(deep)
    moved = changed(deep, tensors, sizes=[6, 4, 3])
    assert torch.equal(moved["layers.0.weight"], tensors["layers.0.weight"])
    assert not moved["layers.1.weight"].any(), "the outputs read other units before"


@pytest.mark.parametrize("more", [{}, {"norm": False}, {"expansion": 4, "shortcut": "conv"}])
def test_deeper_residual_networks_compute_what_they_did_and_can_learn(more: dict[str, Any]) -> None:
    have, blocks = {**RESNET, **more}, [2, 3]
    tensors, want = networks(have), {**RESNET, **more, "blocks": [2, 3]}
    moved = changed(have, tensors, blocks=blocks)
    assert same(have, tensors, want, moved, (1, 8, 8))
    added = [name for name in moved if name not in tensors and name.endswith(("weight", "bias"))]
    for name in added:
        moved[name].requires_grad_()
    logits_many(want, moved, torch.randn(2, 4, 1, 8, 8)).square().sum().backward()
    grads = [moved[name].grad for name in added]
    assert any(grad is not None and grad.any() for grad in grads)
    back = resized(want, {name: value.detach() for name, value in moved.items()}, have)
    assert back is not None
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_outputs_of_other_classes_are_zero_and_the_rest_stays() -> None:
    for architecture, head in ((RESNET, "linear"), (CNN, None)):
        tensors = networks(architecture)
        moved = changed(architecture, tensors, classes=5)
        outputs = {name for name, _ in family(architecture).outputs(architecture).axes}
        assert head is None or f"{head}.weight" in outputs
        for name, value in moved.items():
            assert torch.equal(value, torch.zeros_like(value) if name in outputs else tensors[name])
    kept = resized(CNN, networks(CNN), CNN)
    assert kept is not None
    assert all(torch.equal(kept[name], value) for name, value in networks(CNN).items())


@pytest.mark.parametrize(
    ("have", "want"),
    [
        (MLP, CNN),
        (MLP, {**MLP, "activation": "tanh"}),
        (MLP, {**MLP, "sizes": [7, 4, 3]}),
        (RESNET, {**RESNET, "widths": [4, 16]}),
        (CNN, {**CNN, "channels": [5]}),
    ],
)
def test_other_differences_are_not_bridged(have: dict[str, Any], want: dict[str, Any]) -> None:
    assert resized(have, networks(have), want) is None
