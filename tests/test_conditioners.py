"""Conditioners: sets have no order, padding does not exist, and the contrastive loss knows what belongs together."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from weightgen.conditioners.alignment import Alignment
from weightgen.conditioners.dataset import SetEncoder, SetEncoderConfig
from zoo.datasets import Examples
from zoo.errors import UsageError


def encoder(**config: int) -> SetEncoder:
    torch.manual_seed(0)
    return SetEncoder(SetEncoderConfig(**{"heads": 2, "max_classes": 6, **config}), [(3, 4)], 16)


def examples(b: int = 2, c: int = 3, n: int = 5) -> Examples:
    return Examples(torch.randn(b, c, n, 3, 4), torch.ones(b, c, n, dtype=torch.bool))


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


MODES = pytest.mark.parametrize("training", [True, False])


@MODES
def test_one_token_a_class(training: bool) -> None:
    tokens = encoder().train(training)(examples())
    assert tokens.shape == (2, 3, 16)
    assert not close(tokens[:, 0], tokens[:, 1])


@MODES
def test_order_inside_a_class_does_not_matter(training: bool) -> None:
    one, model = examples(), encoder().train(training)
    with torch.no_grad():
        shuffled = torch.stack([x[torch.randperm(5)] for x in one.x.flatten(0, 1)]).unflatten(0, (2, 3))
        assert close(model(Examples(shuffled, one.mask)), model(one))


@MODES
def test_padding_does_not_exist(training: bool) -> None:
    one, model = examples(), encoder().train(training)
    padded = Examples(
        torch.cat([one.x, 50 * torch.randn(2, 3, 4, 3, 4)], 2), torch.cat([one.mask, torch.zeros(2, 3, 4).bool()], 2)
    )
    with torch.no_grad():
        assert close(model(padded), model(one))
        uneven = padded.mask.clone()
        uneven[0, 1, 5:7] = True
        changed = model(Examples(padded.x, uneven))
        assert close(changed[1], model(one)[1]), "an example of one task reached another"
        assert not close(changed[0], model(one)[0])


@MODES
def test_order_does_not_matter_beside_classes_of_other_sizes(training: bool) -> None:
    x = torch.randn(6, 3, 4)
    task = Examples.group(x, torch.tensor([0, 1, 1, 1, 1, 0]))
    model = encoder(inter_depth=1).train(training)
    with torch.no_grad():
        together = model(task)
        again = model(Examples.group(x.flip(0), torch.tensor([0, 1, 1, 1, 1, 0]).flip(0)))
    assert close(together, again)


@MODES
def test_every_example_and_class_counts(training: bool) -> None:
    one, model = examples(b=1), encoder().train(training)
    x = one.x.clone().requires_grad_()
    model(Examples(x, one.mask))[0, 0].square().sum().backward()
    assert x.grad is not None
    assert (x.grad.flatten(3).abs().sum(-1) > 0).all(), "classes see each other, and all their examples"


def test_the_label_of_a_class_counts() -> None:
    one, model = examples(b=1), encoder()
    swapped = Examples(one.x[:, [1, 0, 2]], one.mask)
    with torch.no_grad():
        assert not close(model(swapped)[:, [1, 0, 2]], model(one))


def test_wrong_examples_are_refused() -> None:
    wrong = Examples(torch.randn(1, 2, 3, 5), torch.ones(1, 2, 3, dtype=torch.bool))
    with pytest.raises(UsageError, match=r"5 values each \(5,\), the generator was trained on 12"):
        encoder()(wrong)
    with pytest.raises(UsageError, match="7 classes, the encoder knows 6"):
        encoder()(examples(c=7))
    assert encoder()(examples(c=6)).shape == (2, 6, 16)


# alignment


POSITION = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]])


def alignment() -> Alignment:
    torch.manual_seed(0)
    return Alignment(latent=4, width=16, heads=2, positions=(2, 1, 2, 1), size=8)


def test_both_sides_give_unit_vectors_row_by_row() -> None:
    model, latent, tokens = alignment(), torch.randn(5, 3, 4), torch.randn(5, 16)
    with torch.no_grad():
        weights, conditions = model.embed_weights(latent, POSITION), model.embed_condition(tokens)
        for vectors in (weights, conditions):
            torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
        torch.testing.assert_close(model.embed_weights(latent[1:2], POSITION), weights[1:2])


def test_the_loss_of_indistinct_vectors_is_that_of_guessing() -> None:
    model = alignment()
    latent, tokens = torch.randn(1, 3, 4).expand(6, -1, -1), torch.randn(1, 16).expand(6, -1)
    loss = model.loss(latent, POSITION, tokens, torch.arange(6))
    assert loss.total.item() == pytest.approx(math.log(6), abs=1e-4)


def test_networks_of_one_task_are_right_answers_for_each_other() -> None:
    model = alignment()
    latent, tokens, task = torch.randn(6, 3, 4), torch.randn(3, 16)[[0, 0, 1, 1, 2, 2]], torch.arange(6) // 2
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = model.loss(latent, POSITION, tokens, task)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    loss = model.loss(latent, POSITION, tokens, task)
    assert loss.parts["accuracy"] == 1
    assert loss.total.item() == pytest.approx(math.log(2), abs=0.02), "two right answers share the probability"
    wrong = model.loss(latent, POSITION, tokens.roll(2, 0), task)
    assert wrong.parts["accuracy"] == 0
    assert wrong.total > 2


def test_tasks_are_told_apart_by_equality_alone() -> None:
    model, latent, tokens = alignment(), torch.randn(4, 3, 4), torch.randn(4, 16)
    one = model.loss(latent, POSITION, tokens, torch.tensor([0, 1, 0, 2]))
    other = model.loss(latent, POSITION, tokens, torch.tensor([10**12, 5, 10**12, 7]))
    assert one.total.equal(other.total)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = model.loss(latent[order], POSITION, tokens[order], torch.tensor([0, 1, 0, 2])[order])
    torch.testing.assert_close(shuffled.total, one.total)
