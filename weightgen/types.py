"""What generators consume and produce during training and sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.datasets import Examples


@dataclass(frozen=True, eq=False)
class Condition:
    """What the user knows about the wanted networks; parts that are not known are ``None``.

    Attributes:
        examples: labelled examples, a batch of tasks.
    """

    examples: Examples | None = None

    def __len__(self) -> int:
        return 0 if self.examples is None else len(self.examples.x)

    def repeat(self, times: int) -> Condition:
        """Every task ``times`` times in a row."""
        if self.examples is None:
            return self
        x, mask = self.examples.x, self.examples.mask
        return Condition(Examples(x.repeat_interleave(times, 0), mask.repeat_interleave(times, 0)))


@dataclass(frozen=True, eq=False)
class Queries:
    """Labelled examples on which generated networks are judged while training; disjoint in role from the condition."""

    x: Float[Tensor, "b q ..."]
    y: Int[Tensor, "b q"]


@dataclass(frozen=True, eq=False)
class Batch:
    """One training batch.

    Attributes:
        values: tokens of ``b`` networks of one layout.
        task: number of each network's task (classes and their order), to know which networks belong together.
        seed: decides every random number that the loss draws, so that a step can be repeated exactly.
        condition: what is known about each network's task, if the stage asked for it.
        queries: examples of each network's task to compute a behavioural loss on, if the stage asked for them.
    """

    values: Float[Tensor, "b t d"]
    task: Int[Tensor, " b"]
    seed: int
    condition: Condition | None = None
    queries: Queries | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """The same batch on another device; the trainer calls it."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        condition, queries = self.condition, self.queries
        if condition is not None and condition.examples is not None:
            condition = Condition(Examples(move(condition.examples.x), move(condition.examples.mask)))
        if queries is not None:
            queries = Queries(move(queries.x), move(queries.y))
        return Batch(move(self.values), move(self.task), self.seed, condition, queries)

    def generator(self) -> torch.Generator:
        """A fresh random generator for this batch."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True, eq=False)
class Loss:
    """A scalar to minimise and the numbers it is made of, for logs."""

    total: Float[Tensor, ""]
    parts: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
