"""DARE: drop changes at random and scale up the rest, then add or elect (Yu et al. 2023, arXiv 2311.03099)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from weightgen.compose.methods.task_arithmetic import need_base
from weightgen.compose.methods.ties import elected, like_sources, matrices
from weightgen.compose.registry import Mixture, Problem, method
from zoo.config import StrictConfig
from zoo.seeds import seed_of


class DareConfig(StrictConfig):
    """Settings of DARE with addition."""

    density: float = Field(
        default=0.5, gt=0, le=1, description="share of the changes that are kept, 1 - p of the paper"
    )


class DareTiesConfig(DareConfig):
    """Settings of DARE with the election of TIES."""

    sign: Literal["total", "frequency"] = Field(default="total", description="elected by summed size, or by count")


def _thinned(problem: Problem, density: float) -> Sequence[dict[str, Tensor]]:
    """Changes of every parent, dropped at random; draws depend on seed, parent and tensor alone, not on the order."""
    result = []
    for key, source in zip(problem.keys, matrices(problem.sources), strict=True):
        thin = {}
        for name, value in source.items():
            generator = torch.Generator().manual_seed(seed_of("dare", problem.seed, key, name))
            keep = torch.rand(value.shape, generator=generator, dtype=value.dtype) < density
            thin[name] = value * keep / density
        result.append(thin)
    return result


@method("dare_linear", DareConfig, exact={"density": 1.0})
def dare_linear(problem: Problem, config: DareConfig) -> Mixture:
    """Drop, scale, add: the expectation over draws is task arithmetic."""
    need_base(problem)
    thin = _thinned(problem, config.density)
    merged = {
        name: sum((w * s[name] for w, s in zip(problem.weights, thin, strict=True)), torch.zeros(()))
        for name in thin[0]
    }
    return Mixture(like_sources(problem.sources, merged))


@method("dare_ties", DareTiesConfig, exact={"density": 1.0})
def dare_ties(problem: Problem, config: DareTiesConfig) -> Mixture:
    """Drop, scale, then elect signs and average what agrees."""
    need_base(problem)
    thin = _thinned(problem, config.density)
    merged = {
        name: elected(torch.stack([source[name] for source in thin]), problem.weights, config.sign) for name in thin[0]
    }
    return Mixture(like_sources(problem.sources, merged))
