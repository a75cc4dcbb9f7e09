"""Classifiers of images, or of anything else that comes as one tensor an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from weightgen.augment import AugmentConfig, augment
from weightgen.subjects import Subject
from weightgen.types import Condition, Queries, Vectors
from zoo.architectures import Architecture
from zoo.datasets import ExampleBank, Examples
from zoo.networks import logits_many
from zoo.types import Task

SCORED = 2048
"""Examples that a network is run on at once."""


@dataclass(frozen=True, eq=False)
class ImageQueries(Queries):
    """Labelled examples of each task of a batch."""

    architecture: Architecture
    x: Float[Tensor, "b q ..."]
    y: Int[Tensor, "b q"]

    def loss(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, " b"]:
        """Cross-entropy."""
        logits = logits_many(self.architecture, tensors, self.x)
        return F.cross_entropy(logits.flatten(0, 1), self.y.flatten(), reduction="none").view_as(self.y).mean(1)

    def split(self, sizes: Sequence[int]) -> list[Queries]:
        """In parts."""
        parts = zip(self.x.split(list(sizes), 1), self.y.split(list(sizes), 1), strict=True)
        return [ImageQueries(self.architecture, x, y) for x, y in parts]

    def to(self, device: torch.device) -> ImageQueries:
        """On another device."""
        return ImageQueries(self.architecture, self.x.to(device), self.y.to(device))


class ImageSubject(Subject):
    """Tasks whose examples are in a bank."""

    def __init__(
        self,
        architecture: Architecture,
        bank: ExampleBank,
        tasks: Sequence[Task],
        *,
        vary: AugmentConfig | None = None,
        words: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        """Keep the parts.

        Args:
            architecture: of the networks.
            bank: examples.
            tasks: tasks, in the order of the bank's.
            vary: random changes of all examples; none by default.
            words: what is known of each task in words, see ``subjects.make.TextWords.of_task``.
        """
        self.architecture, self.bank, self.tasks = architecture, bank, tuple(tasks)
        self.input_shape = tuple(bank.x.shape[1:])
        self._vary = AugmentConfig() if vary is None else vary
        self._words = words

    @property
    def classes(self) -> int | None:
        """All tasks have the same number of them."""
        return self.bank.classes.shape[1]

    def shaped(self, architecture: Architecture, told: Float[Tensor, "1 e"] | None) -> ImageSubject:
        """The same tasks for networks of another architecture.

        Args:
            architecture: with the same inputs and outputs.
            told: what it is called, as a vector, if tasks are known in words.
        """
        words = self._words
        if words is not None and told is not None:
            words = {name: {**known, "architecture": told} for name, known in words.items()}
        return ImageSubject(architecture, self.bank, self.tasks, vary=self._vary, words=words)

    def condition(
        self,
        tasks: Int[Tensor, " b"],
        shots: int,
        generator: torch.Generator,
        order: Int[Tensor, "b c"] | None = None,
    ) -> Condition:
        """Labelled examples, and words if there are any."""
        support = self.bank.support(tasks, shots, generator, order)
        examples = Examples(self.varied(support.x, generator), support.mask)
        if self._words is None:
            return Condition(examples)
        chosen = [self._words[self.tasks[i].name] for i in tasks.tolist()]
        labels = torch.stack([words["labels"] for words in chosen])
        if order is not None:
            labels = labels.gather(1, order[..., None].expand(-1, -1, labels.shape[-1]))
        description, architecture = (
            _vectors(torch.stack([words[part] for words in chosen])) for part in ("description", "architecture")
        )
        return Condition(examples, description=description, labels=_vectors(labels), architecture=architecture)

    def queries(
        self,
        tasks: Int[Tensor, " b"],
        count: int,
        generator: torch.Generator,
        order: Int[Tensor, "b c"] | None = None,
    ) -> ImageQueries:
        """Labelled examples."""
        x, y = self.bank.queries(tasks, count, generator, order)
        return ImageQueries(self.architecture, self.varied(x, generator), y)

    def identity(self, tasks: Int[Tensor, " b"], order: Int[Tensor, "b c"] | None = None) -> Int[Tensor, " b"]:
        """That of the bank."""
        return self.bank.identity(tasks, order)

    @torch.no_grad()
    def score(self, tensors: Mapping[str, Tensor], task: int) -> Float[Tensor, " m"]:
        """Accuracy."""
        x, y = self.bank.all(task)
        count = len(next(iter(tensors.values())))
        right = torch.zeros(count)
        for some, labels in zip(x.split(SCORED), y.split(SCORED), strict=True):
            logits = logits_many(self.architecture, tensors, some.expand(count, *some.shape))
            right += (logits.argmax(-1) == labels).float().sum(-1)
        return right / len(y)

    def varied(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Examples changed at random; their leading axes are those of a batch of tasks."""
        rank = x.ndim - len(self.input_shape)
        return augment(x.flatten(0, rank - 1), self._vary, generator).view_as(x)


def _vectors(x: Float[Tensor, "b k e"]) -> Vectors:
    return Vectors(x, torch.ones(x.shape[:2], dtype=torch.bool))
