"""ScaLearn: learned scaling of the outputs of source adapters (Frohmann et al. 2023, arXiv 2310.01217).

The output of a LoRA module is ``B @ (A @ x)``, so a factor for each output is a factor for each row of ``B``: the
scaling is folded back into weights exactly. For adapters with a nonlinearity it could not be, and they are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from weightgen.compose.delta import Bank
from weightgen.compose.learn import LearnConfig, learn
from weightgen.compose.registry import Mixture, Problem, method
from zoo.errors import UsageError

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class ScaLearnConfig(LearnConfig):
    """Settings of ScaLearn; ``shared`` is the ``++`` of the paper."""

    uniform: bool = Field(default=False, description="one factor a source and module, not one a source and output")
    shared: bool = Field(default=False, description="the same factors in all layers")


@method("scalearn", ScaLearnConfig, mean=True, learned=True, networks=False, exact={"steps": 0})
def scalearn(problem: Problem, config: ScaLearnConfig) -> Mixture:
    """Learn factors for the outputs of every source and fold them into the update.

    Raises:
        UsageError: if factors are to be shared between layers of different width.
    """
    bank = Bank(problem.sources, torch.float32)
    kind = {name: _NUMBER.sub("*", name) if config.shared else name for name in bank.names}
    kinds = list(dict.fromkeys(kind.values()))
    widths = {which: {bank.outputs(name) for name in bank.names if kind[name] == which} for which in kinds}
    if not config.uniform and (odd := [which for which in kinds if len(widths[which]) > 1]):
        raise UsageError(f"layers {odd[0]!r} have the widths {sorted(widths[odd[0]])}", "set shared=false")
    start = [
        problem.weights.float() if config.uniform else problem.weights.float()[:, None].repeat(1, max(widths[which]))
        for which in kinds
    ]

    def expand(parameters: Sequence[Tensor]) -> Mapping[str, Tensor]:
        return {name: parameters[kinds.index(kind[name])] for name in bank.names}

    learned, losses = learn(bank, problem.wanted(), start, expand, config)
    coefficients = dict(expand(learned))
    report = {"losses": [round(loss, 6) for loss in losses]}
    return Mixture(Bank(problem.sources).mix(coefficients), report, coefficients)


@method("scalearn_uniform", LearnConfig, mean=True, learned=True, networks=False, exact={"steps": 0})
def scalearn_uniform(problem: Problem, config: LearnConfig) -> Mixture:
    """ScaLearn with one factor a source and module: ScaLearnUniform of the paper."""
    return scalearn(problem, ScaLearnConfig(**config.model_dump(), uniform=True))
