"""How good the answers of a classifier are: pure functions, every one with its direction in the first line."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.seeds import seed_of

BINS = 10
RESAMPLES = 1000


def accuracy(found: Int[Tensor, " n"], y: Int[Tensor, " n"]) -> float:
    """Share of right answers; higher is better."""
    return (found == y).float().mean().item()


def macro_f1(found: Int[Tensor, " n"], y: Int[Tensor, " n"]) -> float:
    """Mean F1 over the labels that occur in ``y``; higher is better."""
    return macro_f1_weighted(found, y, torch.ones(1, len(y))).item()


def macro_f1_weighted(
    found: Int[Tensor, " n"], y: Int[Tensor, " n"], weights: Float[Tensor, "b n"]
) -> Float[Tensor, " b"]:
    """Macro-F1 of many weightings of the examples at once, for example of resamples; higher is better."""
    labels = y.unique()
    true, said = (y[:, None] == labels).float(), (found[:, None] == labels).float()
    right, both = weights @ (true * said), weights @ (true + said)
    there = (weights @ true > 0).float()
    return ((2 * right / both.clamp(min=1e-9)) * there).sum(1) / there.sum(1).clamp(min=1)


def expected_calibration_error(logits: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> float:
    """Mean distance of confidence and accuracy over ten bins of confidence (Guo et al. 2017); lower is better."""
    confidence, found = logits.softmax(-1).max(-1)
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    total = 0.0
    for number in bins.unique():
        inside = bins == number
        gap = (found[inside] == y[inside]).float().mean() - confidence[inside].mean()
        total += gap.abs().item() * inside.float().mean().item()
    return total


def majority(y: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The most frequent label for every example."""
    return torch.full_like(y, int(torch.bincount(y).argmax()))


def resamples(
    y: Int[Tensor, " n"], seed: int, stratified: bool = False, count: int = RESAMPLES
) -> Float[Tensor, "b n"]:
    """How often each resample holds each example.

    Args:
        y: labels.
        seed: decides the resamples.
        stratified: draw within each label, as many as it has; for examples that were gathered a label.
        count: how many.
    """
    rng = torch.Generator().manual_seed(seed_of("resamples", seed))
    weights = torch.zeros(count, len(y))
    groups = [torch.nonzero(y == label)[:, 0] for label in y.unique()] if stratified else [torch.arange(len(y))]
    for rows in groups:
        drawn = rows[torch.randint(len(rows), (count, len(rows)), generator=rng)]
        weights.scatter_add_(1, drawn, torch.ones(drawn.shape))
    return weights


def interval(values: Float[Tensor, " b"], share: float = 0.95) -> tuple[float, float]:
    """The middle part of some values."""
    tail = (1 - share) / 2
    low, high = torch.quantile(values.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def scores(
    logits: Float[Tensor, "n c"], y: Int[Tensor, " n"], seed: int = 0, digits: int = 4
) -> dict[str, float | Sequence[float]]:
    """Accuracy and macro-F1, each with its 95 % interval over examples, and calibration error."""
    found, drawn = logits.argmax(-1), resamples(y, seed)
    ends = {
        "accuracy": interval(drawn @ (found == y).float() / len(y)),
        "macro_f1": interval(macro_f1_weighted(found, y, drawn)),
    }
    return {
        "accuracy": round(accuracy(found, y), digits),
        "accuracy_interval": [round(end, digits) for end in ends["accuracy"]],
        "macro_f1": round(macro_f1(found, y), digits),
        "macro_f1_interval": [round(end, digits) for end in ends["macro_f1"]],
        "calibration_error": round(expected_calibration_error(logits, y), digits),
        "examples": len(y),
    }
