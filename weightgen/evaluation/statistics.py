"""Means, spreads and paired intervals over tasks and seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

RESAMPLES = 2000


def paired_interval(
    first: Float[Tensor, "seeds tasks"], second: Float[Tensor, "seeds tasks"], level: float = 0.95
) -> tuple[float, float, float]:
    """Mean difference ``first - second`` with a bootstrap interval over tasks.

    Seeds are averaged inside a task first, since the tasks are what is sampled from a population.

    Args:
        first: scores of one method.
        second: scores of the other on the same tasks.
        level: coverage of the interval.

    Returns:
        Mean, lower and upper end.
    """
    difference = (first - second).mean(0)
    generator = torch.Generator().manual_seed(0)
    pick = torch.randint(len(difference), (RESAMPLES, len(difference)), generator=generator)
    means = difference[pick].mean(1).sort().values
    tail = (1 - level) / 2
    return (
        difference.mean().item(),
        means[int(tail * RESAMPLES)].item(),
        means[int((1 - tail) * RESAMPLES) - 1].item(),
    )


def spread(scores: Float[Tensor, "seeds tasks"]) -> tuple[float, float]:
    """Mean over everything, and the standard deviation over seeds of the mean over tasks."""
    by_seed = scores.mean(1)
    return scores.mean().item(), by_seed.std().item() if len(by_seed) > 1 else 0.0
