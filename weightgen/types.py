"""What generators consume and produce during training and sampling."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.datasets import Examples
from zoo.types import Layout


@dataclass(frozen=True, eq=False)
class Vectors:
    """Texts of a batch of tasks, each as the vector of a frozen text encoder.

    Attributes:
        x: one vector a text, zero where masked.
        mask: true where there is a text.
    """

    x: Float[Tensor, "b k e"]
    mask: Bool[Tensor, "b k"]


@dataclass(frozen=True)
class TaskText:
    """A text classification task in words, as a user knows it before there are labels.

    Attributes:
        description: one or two sentences, or nothing.
        labels: each label in words.
        texts: unlabelled examples.
    """

    description: str
    labels: tuple[str, ...]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class LabelledTexts:
    """A text classification task with examples, to learn from.

    Attributes:
        text: the task in words.
        tokens: token ids of the examples.
        y: label of each.
    """

    text: TaskText
    tokens: Sequence[Sequence[int]]
    y: Int[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Condition:
    """What the user knows about the wanted networks, for a batch of tasks; parts that are not known are ``None``.

    Attributes:
        examples: labelled examples.
        description: sentences that describe the task.
        labels: the name or verbalisation of each class, in the order of the classes.
        texts: unlabelled example texts.
        architecture: sentences that say which network is wanted (the instruction of IGPG).
        words: the tasks themselves, for generators that run the base model on them.
    """

    examples: Examples | None = None
    description: Vectors | None = None
    labels: Vectors | None = None
    texts: Vectors | None = None
    architecture: Vectors | None = None
    words: tuple[TaskText, ...] = ()

    def parts(self) -> dict[str, Any]:
        """The parts that are known as tensors, by name."""
        named = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "words"}
        return {name: part for name, part in named.items() if part is not None}

    def __len__(self) -> int:
        return next((len(part.x) for part in self.parts().values()), len(self.words))

    def without(self, names: Collection[str]) -> Condition:
        """The same knowledge less some parts."""
        return dataclasses.replace(self, **dict.fromkeys(names))

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """Apply a function to every tensor."""
        parts = self.parts()
        changed = {name: type(part)(change(part.x), change(part.mask)) for name, part in parts.items()}
        return dataclasses.replace(self, **changed)

    def repeat(self, times: int) -> Condition:
        """Every task ``times`` times in a row."""
        words = tuple(task for task in self.words for _ in range(times))
        return dataclasses.replace(self.map(lambda tensor: tensor.repeat_interleave(times, 0)), words=words)


class Queries(abc.ABC):
    """Labelled examples on which generated networks are judged while training; disjoint in role from the condition."""

    @abc.abstractmethod
    def loss(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, " b"]:
        """Task loss of ``b`` networks, each on the examples of its own task; differentiable in the weights.

        Args:
            tensors: state dict whose values have a leading axis of size ``b``.
        """

    @abc.abstractmethod
    def split(self, sizes: Sequence[int]) -> list[Queries]:
        """The examples of every task in parts of these sizes, one after the other; together they are all."""

    @abc.abstractmethod
    def to(self, device: torch.device) -> Queries:
        """The same examples on another device."""


@dataclass(frozen=True, eq=False)
class Batch:
    """One training batch.

    Attributes:
        layout: shared by all networks of the batch.
        values: tokens of ``b`` networks; none where tasks were made at random, so that no network was trained on them.
        task: number of each network's task (classes and their order), to know which networks belong together.
        seed: decides every random number that the loss draws, so that a step can be repeated exactly.
        condition: what is known about each network's task, if the stage asked for it.
        queries: examples of each network's task to compute a behavioural loss on, if the stage asked for them.
    """

    layout: Layout
    values: Float[Tensor, "b t d"]
    task: Int[Tensor, " b"]
    seed: int
    condition: Condition | None = None
    queries: Queries | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """The same batch on another device; the trainer calls it."""
        return dataclasses.replace(
            self,
            values=self.values.to(device, non_blocking=non_blocking),
            task=self.task.to(device, non_blocking=non_blocking),
            condition=None if self.condition is None else self.condition.map(lambda tensor: tensor.to(device)),
            queries=None if self.queries is None else self.queries.to(device),
        )

    def generator(self) -> torch.Generator:
        """A fresh random generator for this batch."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True, eq=False)
class Loss:
    """A scalar to minimise and the numbers it is made of, for logs."""

    total: Float[Tensor, ""]
    parts: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
