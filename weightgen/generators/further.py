"""Written networks trained a little further, so that a generator learns to write good starts (MAML, arXiv 1703.03400).

First order: the gradient at the trained network goes to the written one as if training had moved it by a fixed amount.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from weightgen.types import Queries
from zoo.config import StrictConfig


class FurtherConfig(StrictConfig):
    """In some steps the task loss is that after a few updates of Adam on other examples of the task."""

    share: float = Field(default=0.0, ge=0, le=1, description="of the steps; 0: none")
    steps: int = Field(default=5, ge=1, description="updates")
    batch_size: int = Field(default=32, ge=1, description="examples an update")
    lr: float = Field(default=3e-3, gt=0)

    @property
    def examples(self) -> int:
        """Examples a task that the updates take."""
        return self.steps * self.batch_size if self.share else 0


def trained_further(tensors: Mapping[str, Tensor], practice: Sequence[Queries], lr: float) -> dict[str, Tensor]:
    """Train networks by Adam.

    Args:
        tensors: state dict whose values have a leading axis over networks.
        practice: examples of each update.
        lr: learning rate.

    Returns:
        The trained networks; their derivative by the given ones is taken to be 1.
    """
    with torch.enable_grad():
        moved = {name: value.detach().clone().requires_grad_() for name, value in tensors.items()}
        optimizer = torch.optim.Adam(moved.values(), lr)
        for examples in practice:
            loss = examples.loss(moved).sum()  # each network by its own loss alone
            gradients = torch.autograd.grad(loss, list(moved.values()))
            for value, gradient in zip(moved.values(), gradients, strict=True):
                value.grad = gradient
            optimizer.step()
    return {name: value + (moved[name] - value).detach() for name, value in tensors.items()}
