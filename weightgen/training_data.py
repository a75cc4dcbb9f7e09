"""A zoo, seen by the trainer: batches of networks with conditions and queries of their tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightgen.augment import augment
from weightgen.generators import Generator, GeneratorConfig, Problem, Stage
from weightgen.types import Batch, Condition, Queries
from zoo.architectures import family
from zoo.datasets import ExampleBank, Examples, Members, bank_of, load_members, reference_of
from zoo.errors import BadArtefact
from zoo.networks import architecture_of, logits_many
from zoo.seeds import seed_of
from zoo.split import check_splits
from zoo.symmetry import rename_outputs
from zoo.tasks import TRAIN, VAL
from zoo.tokens import Tokenizer
from zoo.types import Task
from zoo.zoo import Zoo


def _tokens(members: Members, tokenizer: Tokenizer) -> Float[Tensor, "n t d"]:
    return torch.stack([tokenizer.encode(weights).values for weights in members.weights()])


def _tasks_of(zoo: Zoo, members: Members) -> tuple[list[Task], Int[Tensor, " n"]]:
    """Distinct tasks of some members, and the number of each member's task."""
    if nameless := [record.id for record in members.records if record.task is None]:
        raise BadArtefact(f"the record {nameless[0]} of {zoo.path} names no task", "build a zoo from a recipe")
    names = sorted({record.task for record in members.records if record.task is not None})
    number = {name: i for i, name in enumerate(names)}
    return [zoo.task(name) for name in names], torch.tensor([number[r.task] for r in members.records if r.task])


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a zoo, in the frame of the problem.

    Attributes:
        members: networks (aligned, if the generator wants them so).
        values: their tokens.
        tasks: distinct tasks.
        task_of: number of each member's task.
    """

    members: Members
    values: Float[Tensor, "n t d"]
    tasks: Sequence[Task]
    task_of: Int[Tensor, " n"]


class TrainingData:
    """Train and validation split of a zoo, ready for a generator. The test split is never read here."""

    def __init__(self, zoo: Zoo, config: GeneratorConfig) -> None:
        """Load, align and tokenise.

        Raises:
            BadArtefact: if there is no train or validation split, a network names no task, or relatives cross splits.
        """
        check_splits(zoo.records())
        train, val = load_members(zoo, "train"), load_members(zoo, "val")
        reference = reference_of(train) if config.align else None
        if reference is not None:
            train, val = train.aligned(reference), val.aligned(reference)
        tokenizer = Tokenizer.fit(train.weights(), config.token_width)
        self.train = Split(train, _tokens(train, tokenizer), *_tasks_of(zoo, train))
        self.val = Split(val, _tokens(val, tokenizer), *_tasks_of(zoo, val))
        self.config = config
        self._bank = bank_of(zoo, self.train.tasks, TRAIN)
        self._val_support = bank_of(zoo, self.val.tasks, VAL, half=0)
        self._val_bank: ExampleBank = bank_of(zoo, self.val.tasks, VAL, half=1)
        architecture = architecture_of(train.layout)
        self._outputs = family(architecture).outputs(architecture)
        self.problem = Problem(train.layout, tokenizer, reference, tuple(self._bank.x.shape[1:]))

    def batch(self, stage: Stage, step: int) -> Batch:
        """The batch of one step; the same whenever it is asked for."""
        seed = seed_of(self.config.seed, stage.name, step)
        generator = torch.Generator().manual_seed(seed)
        pick = torch.randint(len(self.train.values), (stage.config.batch_size,), generator=generator)
        task, values, order = self.train.task_of[pick], self.train.values[pick], None
        if self.config.rename_classes:
            order = torch.rand(len(pick), self._outputs.size, generator=generator).argsort(-1)
            tensors = self.problem.tokenizer.tensors(values, self.problem.layout)
            renamed = rename_outputs(tensors, self._outputs, order)
            values = self.problem.tokenizer.values(renamed, self.problem.layout)
        condition = queries = None
        if stage.condition:
            support = self._bank.support(task, self.config.shots, generator, order)
            condition = Condition(Examples(self._vary(support.x, generator), support.mask))
        if stage.queries:
            x, y = self._bank.queries(task, stage.queries, generator, order)
            queries = Queries(self._vary(x, generator), y)
        return Batch(values, self._bank.identity(task, order), seed, condition, queries)

    def _vary(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Augment examples whose leading axes are those of a batch of tasks."""
        rank = x.ndim - len(self.problem.input_shape)
        return augment(x.flatten(0, rank - 1), self.config.augment, generator).view_as(x)

    @torch.no_grad()
    def validate(self, generator: Generator, ability: str, rounds: int = 5) -> float:
        """Mean accuracy, on validation images of the validation tasks, of networks from the generator.

        As for a user, the examples that networks are generated from were seen by no one before: they come from one half
        of the validation images, the accuracy from the other.

        Args:
            generator: the model.
            ability: ``"reconstruct"`` (encode and decode validation networks) or ``"sample"`` (generate for the
                validation tasks).
            rounds: independent draws of condition and noise; only for ``"sample"``.
        """
        if ability == "reconstruct":
            return self._accuracy(generator, generator.reconstruct(self.val.values), self.val.task_of)
        tasks = torch.arange(len(self.val.tasks))
        scores = []
        for i in range(rounds):
            rng = torch.Generator().manual_seed(seed_of(self.config.seed, "validate", i))
            condition = Condition(self._val_support.support(tasks, self.config.shots, rng))
            scores.append(self._accuracy(generator, generator.write(condition, rng), tasks))
        return sum(scores) / len(scores)

    @torch.no_grad()
    def reconstruction_error(self, generator: Generator) -> float:
        """Squared error of encoded and decoded validation networks, in units of the variance of the weights.

        Averaged over the (layer, role) pairs; 1 is what their mean value would give.
        """
        values, mask = self.val.values, generator.mask
        error = (generator.reconstruct(values) - values).square()
        ratios = []
        for pair in generator.position[:, :2].unique(dim=0):
            here = (generator.position[:, :2] == pair).all(-1)
            chosen = mask[here].expand(len(values), -1, -1)
            ratios.append(error[:, here][chosen].mean() / values[:, here][chosen].var())
        return torch.stack(ratios).mean().item()

    def _accuracy(self, generator: Generator, values: Float[Tensor, "n t d"], task_of: Int[Tensor, " n"]) -> float:
        tensors = self.problem.tokenizer.tensors(values, self.problem.layout)
        total = 0.0
        for i, task in enumerate(task_of.tolist()):
            x, y = self._val_bank.all(task)
            logits = logits_many(generator.architecture, {k: v[i : i + 1] for k, v in tensors.items()}, x[None])[0]
            total += (logits.argmax(-1) == y).float().mean().item()
        return total / len(task_of)
