"""How good a starting point is: networks of several origins, trained further on one data set.

Each method gives some networks of one layout; all of them are trained with the same settings and the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.architectures import Architecture, family
from zoo.build.vectorised import TrainingConfig, initialise, train_stages
from zoo.datasets import Members
from zoo.networks import architecture_of, logits_many
from zoo.seeds import seed_of
from zoo.tasks import scaled

BATCH = 1024
Stacked = Mapping[str, Tensor]
"""State dict whose values have a first axis over networks."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One data set with all its classes.

    Attributes:
        name: of the task.
        architecture: of its networks.
        train: images and classes that networks may be trained on.
        test: those that they are judged on.
    """

    name: str
    architecture: Architecture
    train: tuple[Tensor, Int[Tensor, " n"]]
    test: tuple[Tensor, Int[Tensor, " n"]]


@torch.no_grad()
def accuracy(data: ImageSet, networks: Stacked) -> Float[Tensor, " m"]:
    """Share of the test images that each network classifies rightly."""
    x, y = data.test
    count = _count(networks)
    right = torch.zeros(count)
    for some, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
        images = scaled(some)
        found = logits_many(data.architecture, networks, images.expand(count, *images.shape)).argmax(-1)
        right += (found == labels).float().sum(-1)
    return right / len(y)


def curves(
    data: ImageSet, starts: Mapping[str, Stacked], epochs: Sequence[int], config: TrainingConfig, seed: int
) -> dict[str, dict[int, list[float]]]:
    """Test accuracy of every network after some epochs of training.

    Args:
        data: what is trained and judged on.
        starts: networks of each method.
        epochs: numbers of epochs, rising; 0 is no training.
        config: optimisation; its schedule ends at the last epoch.
        seed: decides the batches, which are the same for all.

    Returns:
        Accuracies by method and epoch, one a network.
    """
    x, y = data.train
    per_epoch = max(1, round(len(y) / config.batch_size))
    sizes = {name: _count(networks) for name, networks in starts.items()}
    first = next(iter(starts.values()))
    joined = {key: torch.cat([networks[key] for networks in starts.values()]) for key in first}
    reached = {0: joined} if 0 in epochs else {}
    keep = {epoch * per_epoch: epoch for epoch in epochs if epoch}
    if keep:
        stages = train_stages(
            data.architecture,
            [x] * sum(sizes.values()),
            [y] * sum(sizes.values()),
            [seed] * sum(sizes.values()),
            config,
            total=max(keep),
            keep=list(keep),
            starts=joined,
            common_order=seed_of("start points", data.name, seed),
        )
        reached |= {keep[step]: networks for step, networks in stages}
    result: dict[str, dict[int, list[float]]] = {name: {} for name in starts}
    for epoch, networks in reached.items():
        scores = accuracy(data, networks).split(list(sizes.values()))
        for name, some in zip(starts, scores, strict=True):
            result[name][epoch] = [round(value, 5) for value in some.tolist()]
    return result


def scratch(architecture: Architecture, count: int, seed: int) -> Stacked:
    """Random initialisations."""
    return initialise(architecture, [seed_of("scratch", seed, i) for i in range(count)])


def mean(members: Members) -> Stacked:
    """The mean network."""
    return {name: value.mean(0, keepdim=True) for name, value in members.tensors.items()}


def gaussian(members: Members, count: int, seed: int) -> Stacked:
    """An independent Gaussian a weight, fitted to the members."""
    generator = torch.Generator().manual_seed(seed_of("gaussian", seed))
    return {
        name: value.mean(0) + value.std(0) * torch.randn((count, *value.shape[1:]), generator=generator)
        for name, value in members.tensors.items()
    }


def kde(members: Members, scores: Float[Tensor, " n"], count: int, seed: int, share: float = 0.3) -> Stacked:
    """A kernel density a weight over the best members (S_KDE30 of arXiv 2209.14764, on weights).

    Args:
        members: networks in one frame.
        scores: how good each is.
        count: networks to draw.
        seed: of the draw.
        share: of the members that is kept.
    """
    best = scores.topk(max(2, round(share * len(scores)))).indices
    bandwidth = (4 / (3 * len(best))) ** 0.2  # Silverman's rule, in deviations of each weight
    generator = torch.Generator().manual_seed(seed_of("kde", seed))
    drawn = {}
    for name, value in members.tensors.items():
        kept = value[best]
        pick = torch.randint(len(best), (count, *value.shape[1:]), generator=generator)
        noise = torch.randn(pick.shape, generator=generator) * kept.std(0) * bandwidth
        drawn[name] = kept.gather(0, pick) + noise
    return drawn


def with_outputs(networks: Stacked, source: Architecture, wanted: Architecture) -> Stacked:
    """Networks of another number of classes: output rows are left out, or used again from the first."""
    have, want = (family(one).outputs(one).size for one in (source, wanted))
    rows = torch.arange(want) % have
    result = dict(networks)
    for name, axis in family(source).outputs(source).axes:
        result[name] = networks[name].index_select(axis + 1, rows)
    return result


def nearest_set(
    shots: Float[Tensor, "n ..."], others: Mapping[str, Float[Tensor, "n ..."]], take: Callable[[str], bool]
) -> str:
    """Name of the data set whose images have the nearest mean and deviation a pixel."""

    def summary(x: Tensor) -> Tensor:
        return torch.cat([x.float().mean(0).flatten(), x.float().std(0).flatten()])

    own = summary(shots)
    distance = {name: (summary(x) - own).norm().item() for name, x in others.items() if take(name)}
    return min(distance, key=lambda name: distance[name])


def architecture(members: Members) -> Architecture:
    """Architecture of some members."""
    return architecture_of(members.layout)


def _count(networks: Stacked) -> int:
    return len(next(iter(networks.values())))
