"""Gradient descent on the coefficients of a mixture: the base and the sources are never changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from weightgen.compose.delta import Bank
from weightgen.compose.registry import Objective
from zoo.config import StrictConfig
from zoo.errors import WeightgenError

Expand = Callable[[Sequence[Tensor]], Mapping[str, Tensor]]
"""Coefficients by tensor name, from the parameters that are learned."""


class LearnConfig(StrictConfig):
    """AdamW on coefficients; the rate falls to zero along a cosine."""

    steps: int = Field(default=30, ge=0)
    lr: float = Field(default=0.02, gt=0)
    weight_decay: float = Field(default=0.0, ge=0, description="pull of every coefficient towards its start")


def objective_at(objective: Objective, step: int) -> Objective:
    """The objective of one step: that of ``at(step)`` where there is one, see ``weightgen.compose.objectives``."""
    at = getattr(objective, "at", None)
    return objective if at is None else at(step)


def learn(
    bank: Bank, objective: Objective, start: Sequence[Tensor], expand: Expand, config: LearnConfig
) -> tuple[list[Tensor], list[float]]:
    """Minimise an objective over coefficients.

    Args:
        bank: the sources, in float32.
        objective: of the changes by tensor name.
        start: first values of the parameters.
        expand: makes coefficients of the parameters.
        config: settings.

    Returns:
        The parameters and the loss at each step.

    Raises:
        WeightgenError: if the loss stops being a number.
    """
    parameters = [value.detach().clone().requires_grad_() for value in start]
    optimizer = torch.optim.Adam(parameters, lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, config.steps))
    losses = []
    for step in range(config.steps):
        deltas = {name: delta.values() for name, delta in bank.mix(expand(parameters)).items()}
        loss = objective_at(objective, step)(deltas)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()
        rate = schedule.get_last_lr()[0]
        with torch.no_grad():
            for parameter, first in zip(parameters, start, strict=True):
                parameter -= rate * config.weight_decay * (parameter - first)
        schedule.step()
        losses.append(loss.item())
        if not torch.isfinite(loss):
            raise WeightgenError(f"the objective is {loss.item()} at step {step}", "use a smaller lr")
    return [parameter.detach() for parameter in parameters], losses
