"""Train many small networks of one architecture at once.

Parameters are stacked along a first axis and the forward pass is `torch.func.vmap` over `functional_call`. Losses
are summed over networks and Adam is element-wise, so every network gets exactly the updates it would get alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from zoo.architectures import Architecture, family
from zoo.config import StrictConfig
from zoo.networks import logits_many


class TrainingConfig(StrictConfig):
    """Optimisation of every member: Adam (decoupled weight decay), cosine decay, no early stopping."""

    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=1e-2, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)


def seed_of(*parts: object) -> int:
    """Return a 63-bit seed that depends on nothing but the parts, so that no member depends on its neighbours."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def initialise(architecture: Architecture, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Return stacked, independently initialised parameters, one network a seed."""
    states = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            states.append(family(architecture).build(architecture).state_dict())
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def train_many(
    architecture: Architecture,
    inputs: Sequence[Float[Tensor, "_ ..."]],
    targets: Sequence[Int[Tensor, " _"]],
    seeds: Sequence[int],
    config: TrainingConfig,
    *,
    steps: int | None = None,
) -> dict[str, Tensor]:
    """Train one network a (data set, seed) pair.

    Args:
        architecture: shared by all networks.
        inputs: examples of each network; sizes may differ.
        targets: class indices of each network.
        seeds: decides initialisation and data order of each network.
        config: optimisation settings.
        steps: number of updates, the same for all; by default ``epochs`` passes over a data set of mean size. Give it
            where a network must not depend on which others are trained beside it.

    Returns:
        State dict with a first axis of size ``len(seeds)``.
    """
    total = steps if steps is not None else config.epochs * max(1, round(_mean_size(targets) / config.batch_size))
    parameters = {k: v.requires_grad_() for k, v in initialise(architecture, seeds).items()}
    orders = [_order(len(y), total, config.batch_size, seed) for y, seed in zip(targets, seeds, strict=True)]
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    for step in range(total):
        x = torch.stack([data[order[step]] for data, order in zip(inputs, orders, strict=True)])
        y = torch.stack([labels[order[step]] for labels, order in zip(targets, orders, strict=True)])
        scores = logits_many(architecture, parameters, x)
        loss = F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="sum") / config.batch_size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return {name: value.detach() for name, value in parameters.items()}


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
    stacked: dict[str, Tensor],
    inputs: Sequence[Float[Tensor, "_ ..."]],
    targets: Sequence[Int[Tensor, " _"]],
) -> Float[Tensor, " m"]:
    """Accuracy in [0, 1] of each stacked network on its own examples."""
    result = []
    for i, (x, y) in enumerate(zip(inputs, targets, strict=True)):
        one = {name: value[i : i + 1] for name, value in stacked.items()}
        result.append((logits_many(architecture, one, x[None])[0].argmax(-1) == y).float().mean())
    return torch.stack(result)
