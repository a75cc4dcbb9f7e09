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
            parameters: tensors of shape [m, ...] that are changed in place.
            rates: learning rate of each network.
            weight_decay: decoupled weight decay of each network.
        """
        self.parameters = list(parameters)
        self.rates, self.weight_decay = rates, weight_decay
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
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
        rates = self.rates * factor
        for p, g, (mean, square) in zip(self.parameters, gradients, self.moments, strict=True):
            shape = [-1] + [1] * (p.ndim - 1)
            mean.lerp_(g, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            p.mul_(1 - (rates * self.weight_decay).view(shape))
            p.sub_(mean / (square.sqrt() / second**0.5).add_(EPSILON) * (rates / first).view(shape))
