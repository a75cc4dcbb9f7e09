"""aTLAS: one learned coefficient for every source and block (Zhang et al. 2024, arXiv 2407.02880, eq. 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightgen.compose.delta import Bank
from weightgen.compose.learn import LearnConfig, learn
from weightgen.compose.methods.task_arithmetic import need_base
from weightgen.compose.registry import Mixture, Problem, method


class AtlasConfig(LearnConfig):
    """Settings of aTLAS; the given weights are the start of every block."""


@method("atlas", AtlasConfig, mean=True, learned=True, exact={"steps": 0})
def atlas(problem: Problem, config: AtlasConfig) -> Mixture:
    """Learn how much of each source goes into each tensor; labelled or not is a matter of the objective."""
    need_base(problem)
    bank = Bank(problem.sources, torch.float32)
    start = problem.weights.float()[:, None].repeat(1, len(bank.names))  # sources blocks

    def expand(parameters: Sequence[Tensor]) -> Mapping[str, Tensor]:
        return {name: parameters[0][:, i] for i, name in enumerate(bank.names)}

    (learned,), losses = learn(bank, problem.wanted(), [start], expand, config)
    coefficients = dict(expand([learned]))
    report = {"losses": [round(loss, 6) for loss in losses]}
    return Mixture(Bank(problem.sources).mix(coefficients), report, coefficients)
