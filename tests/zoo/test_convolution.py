"""Convolutions of many networks as products of matrices, and training in bfloat16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zoo.architectures import _convolution
from zoo.architectures._convolution import pooled_convolution, tanh
from zoo.build.stacked_adamw import StackedAdamW
from zoo.build.vectorised import Sampled, TrainingConfig, accuracies, initialise, train_stages
from zoo.networks import logits_many

CNN = {"family": "cnn", "input": [1, 12, 12], "kernel": [3, 3, 2], "classes": 3}


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize(("kernel", "pool"), [(3, 2), (2, 1), (4, 3), (1, 2), (5, 2)])
def test_products_are_convolution_and_pooling(
    kernel: int, pool: int, common: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_convolution, "BLOCK", 5_000)  # more than one block of networks, and a shorter last one
    rng = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(5, 4, 2, kernel, kernel, generator=rng), torch.randn(5, 4, generator=rng)
    x = torch.randn(1 if common else 5, 2, 10, 9, 6, generator=rng)  # nothing is left over in one of both directions
    leaves = [value.requires_grad_() for value in (x, weight, bias)]
    results = []
    for inputs in x.expand(5, -1, -1, -1, -1).movedim(-1, 1), None:
        if inputs is None:
            result = pooled_convolution(x, weight, bias, pool)
        else:
            pairs = zip(inputs, weight, bias, strict=True)
            result = torch.stack([F.max_pool2d(F.conv2d(i, w, b), pool) for i, w, b in pairs]).movedim(1, -1)
        results.append((result, *torch.autograd.grad(result.sin().sum(), leaves)))
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    if common:
        torch.testing.assert_close(pooled_convolution(x.detach(), weight, bias, pool), results[0][0])


def test_one_network_alone_has_the_gradients_that_it_has_among_others() -> None:
    rng = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 2, 8, 8, 5, generator=rng), torch.randn(1, 3, 2, 3, 3, generator=rng)
    leaves = [value.requires_grad_() for value in (x, weight)]
    bias = torch.zeros(1, 3)
    alone = torch.autograd.grad(pooled_convolution(x, weight, bias, 2, True).sin().sum(), leaves)
    pair = pooled_convolution(x, weight.expand(2, -1, -1, -1, -1), bias.expand(2, -1), 2, True)
    for one, two in zip(alone, torch.autograd.grad(pair.sin().sum() / 2, leaves), strict=True):
        torch.testing.assert_close(one, two)


def test_equal_values_share_no_gradient_twice() -> None:
    x, weight = torch.ones(1, 1, 4, 4, 3), torch.ones(2, 1, 1, 3, 3, requires_grad=True)
    pooled_convolution(x, weight, torch.zeros(2, 1), 2).sum().backward()
    assert weight.grad is not None
    assert weight.grad.equal(torch.full_like(weight, 3.0))


def test_tanh_has_its_value_and_gradients() -> None:
    x = torch.linspace(-12, 12, 101, dtype=torch.float32, requires_grad=True)
    torch.testing.assert_close(tanh(x), torch.tanh(x), rtol=1e-5, atol=1e-6)
    for order in (1, 2):
        got, wanted = (f(x) for f in (tanh, torch.tanh))
        for _ in range(order):
            got, wanted = (torch.autograd.grad(value.sum(), x, create_graph=True)[0] for value in (got, wanted))
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("common", [False, True])
def test_networks_in_bfloat16_are_near_those_in_float32(common: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(1 if common else 2, 20, 12, 12, generator=rng).expand(2, -1, -1, -1)
    architecture = {**CNN, "pool": [2, 1, 2]}
    weights = initialise(architecture, [1, 2])
    leaves = [value.requires_grad_() for value in weights.values()]
    results = []
    for precise in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            scores = logits_many(architecture, weights, x)
        assert scores.dtype == torch.float32
        results.append((scores, *torch.autograd.grad(scores.square().sum(), leaves)))
    for wanted, got in zip(*results, strict=True):
        assert 0 < (got - wanted).norm() < 0.05 * wanted.norm()


def test_training_in_bfloat16_learns_as_in_float32_and_keeps_float32_weights() -> None:
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 3
    x = torch.rand(300, 12, 12, generator=rng) + torch.eye(3)[y].repeat_interleave(4, 1)[:, None]
    rates, scores = torch.full((2,), 1e-2), []
    for precision in ("float32", "bfloat16"):
        config = TrainingConfig(batch_size=32, precision=precision)
        settings = {"total": 60, "sampled": Sampled(rates, rates), "common_order": 1}
        ((_, trained),) = train_stages({**CNN, "pool": [2, 1, 2]}, [x, x], [y, y], [1, 2], config, **settings)
        assert {value.dtype for value in trained.values()} == {torch.float32}
        scores.append(accuracies({**CNN, "pool": [2, 1, 2]}, trained, [x, x], [y, y]))
    assert (torch.stack(scores) > 0.95).all()


def test_stacked_adamw_is_adamw() -> None:
    rng = torch.Generator().manual_seed(0)
    shapes = [(3, 4, 2), (3, 5), (3,)]
    ours = [torch.randn(*shape, generator=rng) for shape in shapes]
    theirs = [[p[i].clone().requires_grad_() for p in ours] for i in range(3)]
    rates, decay = torch.tensor([1e-1, 1e-2, 1e-3]), torch.tensor([0.0, 0.1, 1.0])
    stacked = StackedAdamW(ours, rates, decay)
    settings = zip(theirs, rates.tolist(), decay.tolist(), strict=True)
    alone = [torch.optim.AdamW(p, lr=rate, weight_decay=wd) for p, rate, wd in settings]
    for _ in range(5):
        gradients = [torch.randn(*shape, generator=rng) for shape in shapes]
        stacked.step(gradients)
        for i, (parameters, optimizer) in enumerate(zip(theirs, alone, strict=True)):
            for p, gradient in zip(parameters, gradients, strict=True):
                p.grad = gradient[i].clone()
            optimizer.step()
    for i, parameters in enumerate(theirs):
        for p, value in zip(parameters, ours, strict=True):
            torch.testing.assert_close(value[i], p.detach())
