"""What every method of a comparison is given: the same tasks, the same examples, the same test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from zoo.architectures import Architecture
from zoo.build.vectorised import TrainingConfig
from zoo.datasets import ExampleBank, Examples, Members, bank_of, load_members
from zoo.errors import BadArtefact
from zoo.networks import architecture_of, logits_many
from zoo.seeds import seed_of
from zoo.tasks import TEST, TRAIN, VAL
from zoo.types import Task

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from zoo.zoo import Zoo

Stacked = Mapping[str, "Tensor"]
"""State dict whose values have the leading axes tasks and candidates."""


@dataclass(frozen=True, eq=False)
class Setting:
    """Held-out tasks and the training networks that methods may use.

    Attributes:
        tasks: held-out tasks, none of which any network or generator was trained on.
        support: bank of the examples that conditions are drawn from (validation images: no network saw them).
        train_bank: training images of the held-out tasks; only for methods that train on the task.
        test_bank: test images; read by ``accuracy`` alone.
        raw: training networks of the zoo as they are.
        aligned: the same, hidden units aligned.
        train_tasks: distinct tasks of the training networks.
        train_support: bank of the training tasks' training images.
        val_tasks: tasks to choose settings of baselines on.
        val_support: condition examples of the validation tasks (one half of the validation images).
        val_bank: the other half of the validation images of the validation tasks.
        oracles: networks that were trained in full on the held-out tasks.
        shots: examples a class in a condition.
        training: optimiser settings that the zoo was trained with.
    """

    tasks: Sequence[Task]
    support: ExampleBank
    train_bank: ExampleBank
    test_bank: ExampleBank
    raw: Members
    aligned: Members
    train_tasks: Sequence[Task]
    train_support: ExampleBank
    val_tasks: Sequence[Task]
    val_support: ExampleBank
    val_bank: ExampleBank
    oracles: Members
    shots: int
    training: TrainingConfig

    @property
    def architecture(self) -> Architecture:
        """Architecture shared by all networks."""
        return architecture_of(self.raw.layout)

    def examples(self, seed: int) -> Examples:
        """The condition of every held-out task for one seed."""
        generator = torch.Generator().manual_seed(seed_of("evaluation", seed))
        return self.support.support(torch.arange(len(self.tasks)), self.shots, generator)

    @torch.no_grad()
    def predictions(self, networks: Stacked, bank: ExampleBank, task: int) -> Int[Tensor, "m n"]:
        """Predicted classes of ``m`` networks on all examples that a bank holds for one task."""
        x, _ = bank.all(task)
        count = len(next(iter(networks.values())))
        return logits_many(self.architecture, networks, x.expand(count, *x.shape)).argmax(-1)

    def accuracy(self, networks: Stacked, bank: ExampleBank | None = None) -> Float[Tensor, "tasks candidates"]:
        """Accuracy in [0, 1] of every candidate of every task on the test images, or on those of another bank."""
        bank = bank or self.test_bank
        rows = []
        for task in range(len(bank.tasks)):
            predicted = self.predictions({k: v[task] for k, v in networks.items()}, bank, task)
            rows.append((predicted == bank.all(task)[1]).float().mean(-1))
        return torch.stack(rows)

    @torch.no_grad()
    def support_accuracy(self, networks: Stacked, examples: Examples) -> Float[Tensor, "tasks candidates"]:
        """Accuracy on the given examples: the only thing a user without test data can choose by."""
        rows = []
        for task in range(len(self.tasks)):
            x, y = examples.flat(task)
            one = {k: v[task] for k, v in networks.items()}
            count = len(next(iter(one.values())))
            logits = logits_many(self.architecture, one, x.expand(count, *x.shape))
            rows.append((logits.argmax(-1) == y).float().mean(-1))
        return torch.stack(rows)


def _tasks_of(zoo: Zoo, members: Members) -> list[Task]:
    return [zoo.task(name) for name in sorted({r.task for r in members.records if r.task is not None})]


def make_setting(zoo: Zoo, reference: Stacked | None, shots: int) -> Setting:
    """Load what a comparison needs.

    Args:
        zoo: a built zoo with a test split.
        reference: alignment reference of the generator; fitted on the training networks if there is none.
        shots: examples a class in a condition.

    Raises:
        BadArtefact: if a split is missing, or the zoo was not made by a recipe.
    """
    from zoo.datasets import reference_of

    raw, oracles = load_members(zoo, "train"), load_members(zoo, "test")
    recipe = zoo.meta("recipe")
    if recipe is None:
        raise BadArtefact(f"the zoo {zoo.path} was not made by a recipe", "build one: weightgen zoo build RECIPE")
    tasks, train_tasks = _tasks_of(zoo, oracles), _tasks_of(zoo, raw)
    val_tasks = zoo.tasks(split="val")
    return Setting(
        tasks=tasks,
        support=bank_of(zoo, tasks, VAL),
        train_bank=bank_of(zoo, tasks, TRAIN),
        test_bank=bank_of(zoo, tasks, TEST),
        raw=raw,
        aligned=raw.aligned(reference if reference is not None else reference_of(raw)),
        train_tasks=train_tasks,
        train_support=bank_of(zoo, train_tasks, TRAIN),
        val_tasks=val_tasks,
        val_support=bank_of(zoo, val_tasks, VAL, half=0),
        val_bank=bank_of(zoo, val_tasks, VAL, half=1),
        oracles=oracles,
        shots=shots,
        training=TrainingConfig(**recipe["training"]),
    )
