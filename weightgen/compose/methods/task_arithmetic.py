"""Task arithmetic: add what fine-tuning changed, scaled (Ilharco et al. 2023, arXiv 2212.04089)."""

from __future__ import annotations

from pydantic import Field

from weightgen.compose.delta import Bank, uniform
from weightgen.compose.registry import Mixture, Problem, method
from zoo.config import StrictConfig
from zoo.errors import UsageError


class TaskArithmeticConfig(StrictConfig):
    """One common factor beside the weights; the paper chooses it on validation data, often 0.3 to 0.5."""

    scale: float = Field(default=1.0, description="the lambda of the paper")


def need_base(problem: Problem) -> None:
    """Refuse networks whose changes are relative to nothing.

    Raises:
        UsageError: if they are.
    """
    if not problem.adapters and not problem.based:
        raise UsageError("the method works on changes and the networks have no base", "give the base they started from")


@method("task_arithmetic", TaskArithmeticConfig)
def task_arithmetic(problem: Problem, config: TaskArithmeticConfig) -> Mixture:
    """The base plus ``scale`` times the weighted sum of all changes; negative weights take something away."""
    need_base(problem)
    bank = Bank(problem.sources)
    return Mixture(bank.mix(uniform(bank, config.scale * problem.weights)))
