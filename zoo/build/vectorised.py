"""Train many small networks of one architecture at once.

Parameters are stacked along a first axis and the forward pass is `torch.func.vmap` over `functional_call`, or what a
family has in its place (`zoo.networks.logits_many`). Losses are summed over networks and Adam is element-wise, so every
network gets exactly the updates it would get alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from torch import Tensor

from zoo.architectures import Architecture, family
from zoo.build.stacked_adamw import StackedAdamW
from zoo.config import StrictConfig
from zoo.networks import logits_many
from zoo.tasks import scaled

EVALUATED = 2048
"""Examples that a network is evaluated on at once."""


class TrainingConfig(StrictConfig):
    """Optimisation of every member: Adam (decoupled weight decay), cosine decay, no early stopping.

    With ``precision: bfloat16`` training uses `torch.autocast`: several times as fast for small convolutional networks
    on processors with instructions for it, and slower on others.
    """

    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=1e-2, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of large products while training; weights and sums are float32 either way"
    )


def initialise(architecture: Architecture, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Return stacked, independently initialised parameters, one network a seed."""
    states = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            states.append(family(architecture).build(architecture).state_dict())
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


@dataclass(frozen=True, eq=False)
class Sampled:
    """Settings that differ from network to network.

    Attributes:
        lr: learning rate of each.
        weight_decay: decoupled weight decay of each.
    """

    lr: Float[Tensor, " m"]
    weight_decay: Float[Tensor, " m"]


def train_many(
    architecture: Architecture,
    inputs: Sequence[Shaped[Tensor, "_ ..."]],
    targets: Sequence[Int[Tensor, " _"]],
    seeds: Sequence[int],
    config: TrainingConfig,
    *,
    steps: int | None = None,
    sampled: Sampled | None = None,
    initial: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Train one network a (data set, seed) pair.

    Args:
        architecture: shared by all networks.
        inputs: examples of each network, as they are stored; sizes may differ.
        targets: class indices of each network.
        seeds: decides initialisation and data order of each network.
        config: optimisation settings.
        steps: number of updates, the same for all; by default ``epochs`` passes over a data set of mean size. Give it
            where a network must not depend on which others are trained beside it.
        sampled: settings of each network that replace those of ``config``.
        initial: state dict that all networks start from, instead of an initialisation of their own.

    Returns:
        State dict with a first axis of size ``len(seeds)``.
    """
    total = steps if steps is not None else config.epochs * max(1, round(_mean_size(targets) / config.batch_size))
    stages = train_stages(architecture, inputs, targets, seeds, config, total=total, sampled=sampled, initial=initial)
    return next(stages)[1]


def train_stages(
    architecture: Architecture,
    inputs: Sequence[Shaped[Tensor, "_ ..."]],
    targets: Sequence[Int[Tensor, " _"]],
    seeds: Sequence[int],
    config: TrainingConfig,
    *,
    total: int,
    keep: Sequence[int] = (),
    sampled: Sampled | None = None,
    initial: Mapping[str, Tensor] | None = None,
    starts: Mapping[str, Tensor] | None = None,
    common_order: int | None = None,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Train as ``train_many``, and yield the networks after the updates ``keep`` and after the last one.

    Args:
        architecture, inputs, targets, seeds, config, sampled, initial: as in ``train_many``.
        total: number of updates.
        keep: numbers of updates after which the networks are wanted too.
        starts: state dict with a first axis over networks: each starts from its own, in place of ``initial``.
        common_order: seed of one order of the examples for all networks, which then need the same data; some families
            train faster so. By default each network has an order of its own.

    Yields:
        Number of updates, and the state dict with a first axis over networks.
    """
    if starts is not None:
        started = {name: value.detach().clone() for name, value in starts.items()}
    elif initial is None:
        started = initialise(architecture, seeds)
    else:
        started = {name: value.expand(len(seeds), *value.shape).clone() for name, value in initial.items()}
    parameters = {name: value.requires_grad_() for name, value in started.items()}
    batch = _batches(inputs, targets, seeds, total, config.batch_size, common_order)
    update = _uniform(parameters, config, total) if sampled is None else _individual(parameters, sampled, total)
    for step in range(total):
        x, y = batch(step)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            scores = logits_many(architecture, parameters, x).float()
        update(F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="sum") / config.batch_size)
        if step + 1 in keep or step + 1 == total:
            yield step + 1, {name: value.detach().clone() for name, value in parameters.items()}


def _batches(
    inputs: Sequence[Tensor], targets: Sequence[Tensor], seeds: Sequence[int], total: int, size: int, common: int | None
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Function that gives the batches of all networks for the number of an update."""
    if common is not None:
        (data, labels), order = (inputs[0], targets[0]), _order(len(targets[0]), total, size, common)

        def same(step: int) -> tuple[Tensor, Tensor]:
            x, y = scaled(data[order[step]]), labels[order[step]]
            return x.expand(len(seeds), *x.shape), y.expand(len(seeds), *y.shape)

        return same
    orders = [_order(len(y), total, size, seed) for y, seed in zip(targets, seeds, strict=True)]

    def own(step: int) -> tuple[Tensor, Tensor]:
        x = torch.stack([data[order[step]] for data, order in zip(inputs, orders, strict=True)])
        return scaled(x), torch.stack([labels[order[step]] for labels, order in zip(targets, orders, strict=True)])

    return own


def _uniform(parameters: Mapping[str, Tensor], config: TrainingConfig, total: int) -> Callable[[Tensor], None]:
    """One update with the same settings for every network."""
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)

    def update(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    return update


def _individual(parameters: Mapping[str, Tensor], sampled: Sampled, total: int) -> Callable[[Tensor], None]:
    """One update with settings for each network; the same cosine decay."""
    values = list(parameters.values())
    optimizer = StackedAdamW(values, sampled.lr, sampled.weight_decay)

    def update(loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, values)
        optimizer.step(gradients, 0.5 * (1 + math.cos(math.pi * optimizer.count / total)))

    return update


def _mean_size(targets: Sequence[Tensor]) -> float:
    return sum(len(y) for y in targets) / len(targets)


def _order(size: int, steps: int, batch: int, seed: int) -> Int[Tensor, "steps batch"]:
    """Example indices of every update: shuffled passes, one after the other."""
    rng = torch.Generator().manual_seed(seed ^ 0x5EED)
    passes = [torch.randperm(size, generator=rng) for _ in range(-(-steps * batch // size))]
    return torch.cat(passes)[: steps * batch].view(steps, batch)


@torch.no_grad()
def accuracies(
    architecture: Architecture,
    stacked: Mapping[str, Tensor],
    inputs: Sequence[Shaped[Tensor, "_ ..."]],
    targets: Sequence[Int[Tensor, " _"]],
) -> Float[Tensor, " m"]:
    """Accuracy in [0, 1] of each stacked network on its own examples, which may be as they are stored."""
    result = []
    for i, (x, y) in enumerate(zip(inputs, targets, strict=True)):
        one = {name: value[i : i + 1] for name, value in stacked.items()}
        right = [
            logits_many(architecture, one, scaled(block)[None])[0].argmax(-1) == label
            for block, label in zip(x.split(EVALUATED), y.split(EVALUATED), strict=True)
        ]
        result.append(torch.cat(right).float().mean())
    return torch.stack(result)
