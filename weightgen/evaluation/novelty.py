"""Is a generated network new? Distances and disagreement, in units of the zoo's own spread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from weightgen.evaluation.baselines import flatten
from weightgen.evaluation.setting import Setting, Stacked
from zoo.architectures import family
from zoo.symmetry import align

if TYPE_CHECKING:
    from torch import Tensor


def _canonical(setting: Setting, networks: Stacked, reference: Stacked) -> Stacked:
    groups = family(setting.architecture).groups(setting.architecture)
    count = len(next(iter(networks.values())))
    moved = [align({k: v[i] for k, v in networks.items()}, dict(reference), groups) for i in range(count)]
    return {k: torch.stack([m[k] for m in moved]) for k in networks}


def _disagreement(setting: Setting, first: Stacked, second: Stacked, task: int) -> float:
    a = setting.predictions({k: v[None] for k, v in first.items()}, setting.test_bank, task)
    b = setting.predictions({k: v[None] for k, v in second.items()}, setting.test_bank, task)
    return (a != b).float().mean().item()


def novelty(setting: Setting, generated: Stacked, reference: Stacked) -> dict[str, float]:
    """Compare generated networks with the training networks of the zoo.

    Args:
        setting: the comparison.
        generated: networks with the leading axes tasks and candidates.
        reference: alignment reference; distances are taken in its frame.

    Returns:
        ``distance``: mean distance to the nearest training network. ``zoo_distance``: the same among the training
        networks themselves. ``distance_ratio``: their quotient; near 0 means a copy. ``disagreement``: share of test
        images on which a generated network and its nearest training network differ. ``oracle_disagreement``: the same
        for two networks trained on the held-out task itself. ``candidate_spread``: mean distance between two candidates
        of one task; ``oracle_spread``: between two trained networks of one task.
    """
    zoo = flatten(setting.aligned.tensors)
    tasks, candidates = next(iter(generated.values())).shape[:2]
    flat_networks = {k: v.flatten(0, 1) for k, v in generated.items()}
    moved = _canonical(setting, flat_networks, reference)
    points = flatten(moved)
    distance, nearest = torch.cdist(points, zoo).min(-1)
    among = torch.cdist(zoo, zoo).fill_diagonal_(float("inf")).min(-1).values
    first = torch.arange(tasks) * candidates
    differ = [
        _disagreement(
            setting,
            {k: v[first[t]] for k, v in flat_networks.items()},
            {k: v[nearest[first[t]]] for k, v in setting.raw.tensors.items()},
            t,
        )
        for t in range(tasks)
    ]
    pairs = _oracle_pairs(setting)
    oracles = flatten(_canonical(setting, setting.oracles.tensors, reference))
    own = [
        _disagreement(
            setting,
            {k: v[a] for k, v in setting.oracles.tensors.items()},
            {k: v[b] for k, v in setting.oracles.tensors.items()},
            task,
        )
        for task, a, b in pairs
    ]
    return {
        "distance": distance.mean().item(),
        "zoo_distance": among.mean().item(),
        "distance_ratio": (distance.mean() / among.mean()).item(),
        "disagreement": _mean(differ),
        "oracle_disagreement": _mean(own),
        "candidate_spread": _candidate_spread(points.unflatten(0, (tasks, candidates))),
        "oracle_spread": _mean([(oracles[a] - oracles[b]).norm().item() for _, a, b in pairs]),
    }


def _oracle_pairs(setting: Setting) -> list[tuple[int, int, int]]:
    """Task and the first two of its own trained networks, where it has two."""
    pairs = []
    for number, task in enumerate(setting.tasks):
        own = [i for i, record in enumerate(setting.oracles.records) if record.task == task.name]
        if len(own) > 1:
            pairs.append((number, own[0], own[1]))
    return pairs


def _candidate_spread(points: Tensor) -> float:
    if points.shape[1] < 2:
        return float("nan")
    return (points[:, 0] - points[:, 1]).norm(dim=-1).mean().item()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
