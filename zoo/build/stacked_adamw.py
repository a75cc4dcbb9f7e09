"""AdamW with a learning rate of its own for each of many stacked networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class StackedAdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) on tensors whose first axis counts networks."""

    def __init__(
        self, parameters: Sequence[Tensor], rates: Float[Tensor, " m"], weight_decay: Float[Tensor, " m"]
    ) -> None:
        """Start with moments of zero.

        Args:
            parameters: tensors of shape [m, ...] that ``step`` writes; nobody else may change them.
            rates: learning rate of each network.
            weight_decay: decoupled weight decay of each network.
        """
        self.parameters = list(parameters)
        self.rates, self.weight_decay = rates[:, None], weight_decay[:, None]
        self.values = _joined(self.parameters)
        self.mean, self.square = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self.count = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], factor: float = 1.0) -> None:
        """Make one update.

        Args:
            gradients: of each of the parameters.
            factor: what a schedule multiplies every learning rate by.
        """
        self.count += 1
        first, second = (1 - beta**self.count for beta in BETAS)
        rates, gradient = self.rates * factor, _joined(gradients)
        self.mean.lerp_(gradient, 1 - BETAS[0])
        self.square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        change = self.mean / (self.square.sqrt() / second**0.5).add_(EPSILON)
        self.values.mul_(1 - rates * self.weight_decay).sub_(change.mul_(rates / first))
        parts = self.values.split([p[0].numel() for p in self.parameters], 1)
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))


def _joined(tensors: Sequence[Tensor]) -> Float[Tensor, "m d"]:
    """All tensors of a network in one row: few operations on long rows are faster than many on short ones."""
    return torch.cat([t.detach().reshape(len(t), -1) for t in tensors], 1)
