"""Subjects: what the networks of one layout are about. They draw conditions and queries, and score."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightgen.types import Condition, LabelledTexts, Queries
from zoo.errors import UsageError
from zoo.types import Layout, Task


class Subject(abc.ABC):
    """Tasks that networks of one layout solve, with examples of one part of their data sets.

    Attributes:
        tasks: tasks by number.
        input_shape: shape of one example; empty where examples are texts.
    """

    tasks: Sequence[Task]
    input_shape: tuple[int, ...]

    @property
    @abc.abstractmethod
    def classes(self) -> int | None:
        """Number of classes, if it is the same in all tasks and the order of the classes may be changed."""

    def some_labels(self, tasks: Int[Tensor, " b"], generator: torch.Generator) -> Int[Tensor, "b c"] | None:
        """Some classes of each task, as ``order`` of ``condition`` and ``queries``, where a task may have fewer."""
        return None

    @abc.abstractmethod
    def condition(
        self,
        tasks: Int[Tensor, " b"],
        shots: int,
        generator: torch.Generator,
        order: Int[Tensor, "b c"] | None = None,
    ) -> Condition:
        """What is known about some tasks.

        Args:
            tasks: number of each task.
            shots: examples a class.
            generator: source of randomness.
            order: renames the classes of each task: new class ``i`` is old class ``order[i]``.
        """

    @abc.abstractmethod
    def queries(
        self,
        tasks: Int[Tensor, " b"],
        count: int,
        generator: torch.Generator,
        order: Int[Tensor, "b c"] | None = None,
    ) -> Queries:
        """Draw ``count`` labelled examples a task; the other arguments as in ``condition``."""

    @abc.abstractmethod
    def identity(self, tasks: Int[Tensor, " b"], order: Int[Tensor, "b c"] | None = None) -> Int[Tensor, " b"]:
        """A number that is equal for equal tasks with equal classes in equal order, and differs otherwise."""

    def labelled(self) -> Sequence[LabelledTexts]:
        """The tasks with their examples, if these are texts."""
        return ()

    def under(self, layout: Layout) -> Subject:
        """The same tasks for networks of another layout.

        Raises:
            UsageError: if the tasks do not leave it open which networks solve them.
        """
        raise UsageError(f"these tasks are about one layout, not {layout.fingerprint[:12]}", "use a zoo of adapters")

    @abc.abstractmethod
    def score(self, tensors: Mapping[str, Tensor], task: int) -> Float[Tensor, " m"]:
        """How good ``m`` networks are at one task, on all of its examples, in [0, 1].

        Args:
            tensors: state dict whose values have a leading axis of size ``m``.
            task: number of the task.
        """
