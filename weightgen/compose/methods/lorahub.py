"""Few-shot search for one weight a source without gradients, as in LoraHub (Huang et al. 2023, arXiv 2307.13269)."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from pydantic import Field
from scipy.optimize import minimize

from weightgen.compose.delta import Bank, uniform
from weightgen.compose.registry import Mixture, Problem, method
from zoo.config import StrictConfig


class LoraHubConfig(StrictConfig):
    """Settings of the search."""

    evaluations: int = Field(default=40, ge=1, description="how often the objective is computed at most")
    bound: float = Field(default=1.5, gt=0, description="largest weight of a source, of either sign")
    l1: float = Field(default=0.05, ge=0, description="price of the mean size of the weights")
    step: float = Field(default=0.5, gt=0, description="first step of the search, COBYLA (Powell 1994)")


class _Spent(Exception):
    """All evaluations are used."""


@method("lorahub", LoraHubConfig, mean=True, learned=True, exact={"l1": 0.0})
def lorahub(problem: Problem, config: LoraHubConfig) -> Mixture:
    """Search weights in a box by the objective alone; the best that was seen is kept, the given weights included.

    Changes are added, not factors as in the paper: ranks may differ, and nothing is said of cross terms.
    """
    bank, objective = Bank(problem.sources, torch.float32), problem.wanted()
    seen: list[tuple[float, np.ndarray]] = []

    def value(weights: np.ndarray) -> float:
        if len(seen) == config.evaluations:
            raise _Spent
        weights = np.clip(weights, -config.bound, config.bound)  # steps of cobyla leave the box by rounding
        mixed = bank.mix(uniform(bank, torch.from_numpy(weights).float()))
        with torch.no_grad():
            loss = float(objective({name: delta.values() for name, delta in mixed.items()}))
        price = config.l1 * float(np.abs(weights).mean())
        total = loss + price if np.isfinite(loss) else np.inf
        seen.append((total, weights))
        return total if np.isfinite(total) else 1e30

    start = np.clip(problem.weights.numpy(), -config.bound, config.bound)
    with contextlib.suppress(_Spent):
        most = max(config.evaluations, len(start) + 2)  # COBYLA insists on the latter
        options = {"maxiter": most, "rhobeg": config.step}
        box = [(-config.bound, config.bound)] * len(start)
        minimize(value, start, method="COBYLA", bounds=box, options=options)
    loss, best = min(seen, key=lambda one: one[0])
    weights = torch.from_numpy(best)
    exact = Bank(problem.sources)
    coefficients = uniform(exact, weights)
    report = {"evaluations": len(seen), "start": seen[0][0], "best": loss}
    return Mixture(exact.mix(coefficients), report, coefficients)
