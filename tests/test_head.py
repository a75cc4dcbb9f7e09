"""Output layers in closed form from the examples of a condition."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from tests.fixtures import tiny_config
from weightgen.checkpoint import load_generator, read_history
from weightgen.generators.head import FittedHead
from weightgen.train import train_generator
from weightgen.types import Condition
from zoo.build.vectorised import initialise
from zoo.datasets import Examples, bank_of
from zoo.errors import UsageError
from zoo.networks import logits_many
from zoo.zoo import Zoo

MLP = {"family": "mlp", "sizes": [16, 8, 3], "activation": "tanh"}
CNN = {"family": "cnn", "input": [1, 9, 9], "channels": [4], "kernel": [3], "pool": [2], "hidden": [6], "classes": 3}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def examples(*shape: int, tasks: int = 2, shots: int = 9) -> Examples:
    """Three classes with centres of their own, as many examples of each."""
    centres = torch.randn(tasks, 3, 1, *shape, generator=seeded(1))
    x = centres + 0.5 * torch.randn(tasks, 3, shots, *shape, generator=seeded(2))
    return Examples(x, torch.ones(tasks, 3, shots, dtype=torch.bool))


def features(networks: dict[str, Tensor], x: Tensor) -> Tensor:
    hidden = x @ networks["layers.0.weight"].mT + networks["layers.0.bias"][:, None]
    return hidden.tanh()


def test_the_discriminants_are_those_of_a_library() -> None:
    networks, given = initialise(MLP, [0, 1]), examples(16)
    head = FittedHead()
    fitted = head(MLP, networks, given)
    probe = torch.randn(2, 500, 16, generator=seeded(3))
    ours = logits_many(MLP, fitted, probe).argmax(-1)
    shrink = head.log_shrink.exp().item()
    assert ours.unique().numel() == 3
    for i in range(2):
        one = {name: value[i : i + 1] for name, value in networks.items()}
        x = features(one, given.x[i].flatten(0, 1)[None])[0].detach().numpy()
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrink / (1 + shrink), priors=[1 / 3] * 3)
        model.fit(x, torch.arange(3).repeat_interleave(9).numpy())
        theirs = torch.from_numpy(model.predict(features(one, probe[i][None])[0].detach().numpy()))
        assert (theirs == ours[i]).float().mean() > 0.995


@pytest.mark.parametrize("architecture", [MLP, CNN], ids=["mlp", "cnn"])
def test_the_body_stays_and_the_classes_are_told_apart(architecture: dict) -> None:
    networks = initialise(architecture, [0, 1])
    given = examples(*([16] if architecture is MLP else [9, 9]))
    fitted = FittedHead()(architecture, networks, given)
    assert list(fitted) == list(networks)
    changed = {name for name, value in networks.items() if not value.equal(fitted[name])}
    last = "layers.1" if architecture is MLP else "linears.1"
    assert changed == {f"{last}.weight", f"{last}.bias"}
    assert all(fitted[name].shape == value.shape for name, value in networks.items())
    y = torch.arange(3).repeat_interleave(9)
    right = logits_many(architecture, fitted, given.x.flatten(1, 2)).argmax(-1) == y
    assert right.float().mean() > 0.9
    assert (logits_many(architecture, networks, given.x.flatten(1, 2)).argmax(-1) == y).float().mean() < 0.7


def test_order_of_classes_and_missing_examples() -> None:
    networks, given, head = initialise(MLP, [0, 1]), examples(16), FittedHead()
    fitted = head(MLP, networks, given)["layers.1.weight"]
    order = torch.tensor([2, 0, 1])
    renamed = head(MLP, networks, Examples(given.x[:, order], given.mask[:, order]))["layers.1.weight"]
    torch.testing.assert_close(renamed, fitted[:, order], rtol=1e-3, atol=1e-4)
    mask = given.mask.clone()
    mask[:, 1, 5:] = False
    other = given.x.clone()
    other[:, 1, 5:] = 7.0
    few, same = (head(MLP, networks, Examples(x, mask))["layers.1.weight"] for x in (given.x, other))
    assert few.equal(same), "what is masked has no influence"
    assert not few.allclose(fitted)


def test_gradients_reach_the_body_and_the_written_layer_has_a_share() -> None:
    networks = {name: value.requires_grad_() for name, value in initialise(MLP, [0, 1]).items()}
    head = FittedHead()
    head.own.data.fill_(0.5)
    logits = logits_many(MLP, head(MLP, networks, examples(16)), torch.randn(2, 5, 16, generator=seeded(4)))
    gradients = torch.autograd.grad(logits[..., 0].sum(), [*networks.values(), *head.parameters()])
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_networks_without_such_a_layer_are_refused() -> None:
    with pytest.raises(UsageError, match="set head to written"):
        FittedHead.outputs(MLP, {"layers.1.weight": torch.zeros(2, 3), "layers.1.bias": torch.zeros(2, 3)})


@pytest.fixture
def zoo(tiny_zoo: Path) -> Iterator[Zoo]:
    with Zoo.open(tiny_zoo) as opened:
        yield opened


@pytest.mark.parametrize("name", ["d2nwg", "igpg"])
def test_a_generator_fits_the_heads_of_what_it_writes(
    name: str, zoo: Zoo, tiny_generator: Path, tmp_path: Path
) -> None:
    config = tiny_config(name, "head=fitted", "behaviour={queries: 8}")
    history = train_generator(config, zoo, tmp_path / "g")
    reached, without = (one["stages"]["behaviour"]["val_accuracy"] for one in (history, read_history(tiny_generator)))
    assert reached > without + 0.1, "hardly trained, it has only the examples to go by"
    generator = load_generator(tmp_path / "g")
    assert isinstance(generator.head, FittedHead)
    assert generator.any_classes
    assert generator.head.own.item() != 0, "it learns with the rest"
    bank = bank_of(zoo, zoo.tasks("val"), 1)
    layout = generator.problem.forms[0].layout
    one, other = (
        generator.networks(Condition(bank.support(torch.tensor([0]), 3, seeded(seed))), layout, 0) for seed in (0, 1)
    )
    assert not one["layers.1.weight"].allclose(other["layers.1.weight"])
    body = torch.tensor([layer == 0 for layer in generator.frame(layout).position[:, 0].tolist()])
    values = generator.problem.tokenizer.values({name: value[:, 0] for name, value in other.items()}, layout)
    condition = Condition(bank.support(torch.tensor([0]), 3, seeded(1)))
    filled = generator.fill(condition, layout, values, body, seeded())
    torch.testing.assert_close(filled, values, rtol=1e-3, atol=1e-4)
