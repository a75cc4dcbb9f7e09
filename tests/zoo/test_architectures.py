"""Network families: the declared groups of interchangeable units are right, for every registered family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from zoo.architectures import family
from zoo.build.vectorised import initialise
from zoo.errors import UsageError
from zoo.kinds.dense import from_state_dict
from zoo.networks import architecture_of, logits, logits_many
from zoo.symmetry import scramble

MLPS = [
    {"family": "mlp", "sizes": sizes, "activation": activation}
    for sizes in ([6, 2], [6, 5, 3], [6, 7, 4, 5, 3])
    for activation in ("tanh", "relu", "gelu")
]


@pytest.mark.parametrize("architecture", MLPS, ids=str)
def test_groups_are_symmetries_and_nothing_is_left_out(architecture: dict[str, Any]) -> None:
    network = family(architecture).build(architecture)
    groups = family(architecture).groups(architecture)
    assert [group.size for group in groups] == architecture["sizes"][1:-1]
    assert all(group.odd == (architecture["activation"] == "tanh") for group in groups)
    x = torch.randn(20, 6)
    twin = scramble(network.state_dict(), groups, torch.Generator().manual_seed(3))
    torch.testing.assert_close(logits(architecture, twin, x), network(x))
    if groups:
        assert any(not twin[name].equal(value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("architecture", MLPS, ids=str)
def test_many_networks_at_once_are_the_networks_one_by_one(architecture: dict[str, Any]) -> None:
    stacked = initialise(architecture, [1, 2, 3])
    x = torch.randn(3, 4, 6)
    for i, row in enumerate(logits_many(architecture, stacked, x)):
        network = family(architecture).build(architecture)
        network.load_state_dict({name: value[i] for name, value in stacked.items()})
        torch.testing.assert_close(row, network(x[i]))


def test_logits_can_be_differentiated_in_the_weights() -> None:
    architecture = MLPS[3]
    stacked = {name: value.requires_grad_() for name, value in initialise(architecture, [1, 2]).items()}
    logits_many(architecture, stacked, torch.randn(2, 4, 6))[0].square().sum().backward()
    for value in stacked.values():
        assert value.grad is not None
        assert value.grad[0].abs().sum() > 0
        assert value.grad[1].abs().sum() == 0, "the loss of one network reached another"


def test_inputs_of_any_shape_are_flattened() -> None:
    network = family(MLPS[3]).build(MLPS[3])
    x = torch.randn(5, 2, 3)
    assert network(x).equal(network(x.flatten(1)))


def test_description() -> None:
    assert family(MLPS[3]).describe(MLPS[3]) == "6-5-3 tanh MLP"


@pytest.mark.parametrize("sizes", [None, [4], [4, 0], [4, 2.0], "42", [-1, 3]])
def test_bad_sizes_are_refused(sizes: Sequence[Any] | None) -> None:
    architecture = {"family": "mlp", "sizes": sizes}
    with pytest.raises(UsageError, match="sizes"):
        family(architecture).build(architecture)


def test_unknown_names_are_refused_and_known_ones_listed() -> None:
    with pytest.raises(UsageError, match=r"'mpl'.* mlp"):
        family({"family": "mpl"})
    with pytest.raises(UsageError, match=r"'sine'.* gelu, relu, tanh"):
        family({"family": "mlp"}).build({"family": "mlp", "sizes": [2, 2], "activation": "sine"})


def test_a_layout_without_architecture_cannot_be_run() -> None:
    with pytest.raises(UsageError, match="declares no architecture"):
        architecture_of(from_state_dict({"a.weight": torch.zeros(2, 2)}).layout)
