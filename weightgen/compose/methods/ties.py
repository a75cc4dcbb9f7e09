"""TIES: trim small changes, elect a sign, average what agrees with it (Yadav et al. 2023, arXiv 2306.01708)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from weightgen.compose.delta import Delta
from weightgen.compose.methods.task_arithmetic import need_base
from weightgen.compose.registry import Mixture, Problem, method
from zoo.config import StrictConfig


class TiesConfig(StrictConfig):
    """Settings of TIES."""

    density: float = Field(default=0.2, gt=0, le=1, description="share of the changes that are kept")
    trim: Literal["all", "tensor"] = Field(default="all", description="largest changes of a parent, or of each tensor")
    sign: Literal["total", "frequency"] = Field(default="total", description="elected by summed size, or by count")


Matrices = Mapping[str, "Tensor"]


def matrices(sources: Sequence[Mapping[str, Delta]]) -> list[dict[str, Tensor]]:
    """Every change as a full matrix; tensors that a source does not have are zero there."""
    like = {name: delta for source in reversed(sources) for name, delta in source.items()}
    return [
        {
            name: source[name].matrix() if name in source else torch.zeros_like(delta.matrix())
            for name, delta in like.items()
        }
        for source in sources
    ]


def like_sources(sources: Sequence[Mapping[str, Delta]], values: Matrices) -> dict[str, Delta]:
    """Matrices as changes of the tensors of the sources."""
    like = {name: delta for source in reversed(sources) for name, delta in source.items()}
    return {name: like[name].with_matrix(value) for name, value in values.items()}


def trimmed(source: Matrices, density: float, together: bool) -> dict[str, Tensor]:
    """Keep the largest changes.

    Args:
        source: changes of one parent.
        density: share to keep, rounded up to a whole number of values.
        together: one threshold for all tensors; otherwise one a tensor.
    """
    groups = [list(source)] if together else [[name] for name in source]
    result = {}
    for names in groups:
        sizes = torch.cat([source[name].abs().flatten() for name in names])
        dropped = len(sizes) - max(1, -int(-density * len(sizes) // 1))
        limit = sizes.kthvalue(dropped).values if dropped else -1.0
        result |= {name: source[name] * (source[name].abs() > limit) for name in names}
    return result


def elected(
    values: Float[Tensor, "s o i"], weights: Float[Tensor, " s"], sign: Literal["total", "frequency"]
) -> Float[Tensor, "o i"]:
    """Mean of the weighted changes that have the elected sign; zero where nothing is left.

    Args:
        values: trimmed changes of one tensor.
        weights: one a parent.
        sign: how the sign is elected.
    """
    votes = values if sign == "total" else values.sign()
    chosen = torch.where(votes.sum(0) >= 0, 1.0, -1.0).to(values.dtype)
    agrees = values.sign() == chosen
    total = (values * agrees * weights[:, None, None]).sum(0)
    return total / agrees.sum(0).clamp(min=1)


@method("ties", TiesConfig, exact={"density": 1.0})
def ties(problem: Problem, config: TiesConfig) -> Mixture:
    """Trim, elect signs, and average disjointly; every change is formed in full, so memory grows with the base."""
    need_base(problem)
    kept = [trimmed(source, config.density, config.trim == "all") for source in matrices(problem.sources)]
    merged = {
        name: elected(torch.stack([source[name] for source in kept]), problem.weights, config.sign) for name in kept[0]
    }
    return Mixture(like_sources(problem.sources, merged))
