"""A zoo, seen by the trainer: batches of networks with conditions and queries of their tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightgen.generators import Generator, GeneratorConfig, Stage
from weightgen.generators.problem import Form, Problem, TokenSet
from weightgen.mix import MixConfig
from weightgen.shapes import ShapesConfig
from weightgen.subjects import Subject
from weightgen.subjects.images import ImageSubject
from weightgen.subjects.make import TextWords, subject_of
from weightgen.subjects.mixed import MixedTasks
from weightgen.types import Batch
from zoo.architectures import family
from zoo.datasets import Members, load_groups, reference_of
from zoo.errors import BadArtefact, UsageError
from zoo.kinds.dense import layout_of
from zoo.networks import architecture_of
from zoo.seeds import seed_of
from zoo.split import check_splits
from zoo.symmetry import rename_outputs
from zoo.tasks import TRAIN, VAL
from zoo.tokens import Tokenizer
from zoo.types import Task
from zoo.zoo import Zoo

RECONSTRUCTED = 256
"""Validation networks a layout that reconstruction is measured on."""
ADAPTER_ROUNDS = 1
"""Draws of conditions that adapters are validated on: each runs the base model on all validation texts."""


def _tasks_of(zoo: Zoo, members: Members) -> tuple[list[Task], Int[Tensor, " n"]]:
    """Distinct tasks of some members, and the number of each member's task."""
    if nameless := [record.id for record in members.records if record.task is None]:
        raise BadArtefact(f"the record {nameless[0]} of {zoo.path} names no task", "build a zoo from a recipe")
    names = sorted({record.task for record in members.records if record.task is not None})
    number = {name: i for i, name in enumerate(names)}
    return [zoo.task(name) for name in names], torch.tensor([number[r.task] for r in members.records if r.task])


@dataclass(frozen=True, eq=False)
class Split:
    """The networks of one layout in one split, in the frame of the problem.

    Attributes:
        members: networks (in one frame, if the generator wants them so).
        values: their tokens.
        tasks: distinct tasks.
        task_of: number of each member's task.
    """

    members: Members
    values: Float[Tensor, "n t d"]
    tasks: Sequence[Task]
    task_of: Int[Tensor, " n"]

    @classmethod
    def of(cls, zoo: Zoo, members: Members, tokenizer: Tokenizer) -> Split:
        """Tokenise some members."""
        values = torch.stack([tokenizer.encode(weights).values for weights in members.weights()])
        return cls(members, values, *_tasks_of(zoo, members))

    def scores(self) -> Float[Tensor, " n"]:
        """Validation accuracy of each network as the zoo records it; 0 where it does not."""
        return torch.tensor([float(record.metrics.get("val_accuracy", 0.0)) for record in self.members.records])


@dataclass(frozen=True, eq=False)
class Group:
    """All that is learned from of one layout.

    Attributes:
        form: the layout, and the frame its networks are in.
        train: training networks.
        subject: their tasks, with training examples.
    """

    form: Form
    train: Split
    subject: Subject


@dataclass(frozen=True, eq=False)
class Held:
    """What a generator is measured on while it is developed, of one layout.

    Attributes:
        form: the layout.
        val: validation networks.
        support: their tasks, with examples that conditions are drawn from.
        judge: their tasks, with the examples that networks are scored on; disjoint from those of ``support``.
    """

    form: Form
    val: Split
    support: Subject
    judge: Subject


class TrainingData:
    """Train and validation split of a zoo, ready for a generator. The test split is never read here."""

    def __init__(self, zoo: Zoo, config: GeneratorConfig) -> None:
        """Load, bring into one frame and tokenise.

        Raises:
            BadArtefact: if there is no train or validation split, a network names no task, or relatives cross splits.
        """
        check_splits(zoo.records(), whole_tasks=config.whole_tasks)
        self.config = config
        self.words = words = None if config.text_encoder is None else TextWords(config.text_encoder)
        train = load_groups(zoo, "train", without=config.leave_out)
        val = load_groups(zoo, "val", without=config.leave_out)
        references = {one.layout.fingerprint: self._reference(one) for one in train}
        framed = [self._framed(one, references[one.layout.fingerprint]) for one in train]
        tokenizer = Tokenizer.fit((weights for one in framed for weights in one.weights()), config.token_width)
        self.groups: list[Group] = []
        for one in framed:
            split = Split.of(zoo, one, tokenizer)
            subject = subject_of(zoo, one.layout, split.tasks, TRAIN, config, words=words, vary=True)
            form = Form(one.layout, references[one.layout.fingerprint], subject.input_shape)
            self.groups.append(Group(form, split, subject))
        forms = {group.form.layout.fingerprint: group.form for group in self.groups}
        self.held: list[Held] = []
        for one in val:
            form = forms.get(one.layout.fingerprint)
            if form is None:
                continue  # nothing of this layout is learned from
            split = Split.of(zoo, self._framed(one, form.reference), tokenizer)
            support, judge = (
                subject_of(zoo, one.layout, split.tasks, VAL, config, half=half, words=words) for half in (0, 1)
            )
            self.held.append(Held(form, split, support, judge))
        if not self.held:
            raise BadArtefact(
                f"no validation network of {zoo.path} has a layout that is learned from",
                "give the recipe validation tasks",
            )
        encoder, size = (None, 0) if words is None else (config.text_encoder, words.size)
        self.problem = Problem(tuple(forms.values()), tokenizer, size, encoder)
        sizes = torch.tensor([float(len(group.train.values)) for group in self.groups])
        self._chance = sizes / sizes.sum()
        self._mixed: dict[str, MixedTasks] = {}

    def _reference(self, members: Members) -> dict[str, Tensor] | None:
        dense = members.layout.kind == "dense"
        return reference_of(members) if self.config.align and dense else None

    def _framed(self, members: Members, reference: Mapping[str, Tensor] | None) -> Members:
        if reference is not None:
            return members.aligned(reference)
        return members.canonical() if self.config.align and members.layout.kind != "dense" else members

    def token_sets(self) -> list[TokenSet]:
        """Tokens of all training networks, by layout."""
        return [
            TokenSet(
                group.train.values,
                group.form.layout,
                group.subject.identity(group.train.task_of),
                group.train.scores(),
            )
            for group in self.groups
        ]

    def task_names(self) -> dict[str, list[str]]:
        """Names of the tasks of both splits."""
        return {
            "train_tasks": sorted({task.name for group in self.groups for task in group.train.tasks}),
            "val_tasks": sorted({task.name for held in self.held for task in held.val.tasks}),
        }

    def batch(self, stage: Stage, step: int) -> Batch:
        """The batch of one step, of one layout; the same whenever it is asked for."""
        seed = seed_of(self.config.seed, stage.name, step)
        generator = torch.Generator().manual_seed(seed)
        group = self.groups[int(torch.multinomial(self._chance, 1, generator=generator))]
        train, subject, layout = group.train, group.subject, group.form.layout
        if stage.mix and torch.rand((), generator=generator) < stage.mix.share:
            tasks = self._mixed_tasks(group, stage.mix)
            made = tasks.draw(stage.config.batch_size, self.config.shots, stage.queries, generator)
            return Batch(layout, train.values[:0], train.task_of[:0], seed, *made)
        if stage.shapes and torch.rand((), generator=generator) < stage.shapes.share:
            return self._shaped(group, stage, stage.shapes, seed, generator)
        pick = torch.randint(len(train.values), (stage.config.batch_size,), generator=generator)
        task, values, order = train.task_of[pick], train.values[pick], None
        if self.config.rename_classes and subject.classes is not None:
            order = torch.rand(len(pick), subject.classes, generator=generator).argsort(-1)
            architecture = architecture_of(layout)
            tensors = self.problem.tokenizer.tensors(values, layout)
            renamed = rename_outputs(tensors, family(architecture).outputs(architecture), order)
            values = self.problem.tokenizer.values(renamed, layout)
        if self.config.some_labels and stage.queries:
            order = subject.some_labels(task, generator)
        condition = queries = None
        if stage.condition:
            condition = subject.condition(task, self.config.shots, generator, order)
        if stage.queries:
            queries = subject.queries(task, stage.queries, generator, order)
        return Batch(layout, values, subject.identity(task, order), seed, condition, queries)

    def _shaped(self, group: Group, stage: Stage, config: ShapesConfig, seed: int, generator: torch.Generator) -> Batch:
        """Tasks of one layout for networks of a shape made at random, of which none was trained."""
        if not isinstance(group.subject, ImageSubject):
            raise UsageError("only perceptrons can be made in other shapes", "set behaviour.shapes.share to 0")
        made = config.like(architecture_of(group.form.layout), generator)
        told = None if self.words is None else self.words.vectors([family(made).describe(made)])
        subject = group.subject.shaped(made, told)
        task, order = torch.randint(len(subject.tasks), (stage.config.batch_size,), generator=generator), None
        if self.config.rename_classes and subject.classes is not None:
            order = torch.rand(len(task), subject.classes, generator=generator).argsort(-1)
        condition = subject.condition(task, self.config.shots, generator, order)
        queries = subject.queries(task, stage.queries, generator, order)
        return Batch(layout_of(made), group.train.values[:0], task[:0], seed, condition, queries)

    def _mixed_tasks(self, group: Group, config: MixConfig) -> MixedTasks:
        """Tasks of the form of one layout, made from the images of all."""
        key = group.form.layout.fingerprint
        if key not in self._mixed:
            pool = [one.subject for one in self.groups if isinstance(one.subject, ImageSubject)]
            if not isinstance(group.subject, ImageSubject):
                raise UsageError("tasks can be mixed from images only", "set behaviour.mix.share to 0")
            self._mixed[key] = MixedTasks(group.subject, pool, config)
        return self._mixed[key]

    @torch.no_grad()
    def validate(self, generator: Generator, ability: str, rounds: int = 5) -> float:
        """Mean score, on validation examples of the validation tasks, of networks from the generator.

        As for a user, the examples that networks are generated from were seen by no one before: they come from one half
        of the validation examples, the score from the other.

        Args:
            generator: the model.
            ability: ``"reconstruct"`` (encode and decode validation networks) or ``"sample"`` (generate for the
                validation tasks).
            rounds: independent draws of condition and noise; only for ``"sample"``.
        """
        scores = []
        for held in self.held:
            layout = held.form.layout
            if ability == "reconstruct":
                values, task_of = held.val.values[:RECONSTRUCTED], held.val.task_of[:RECONSTRUCTED]
                scores += self._scores(held, generator.reconstruct(values, layout), task_of)
                continue
            tasks = torch.arange(len(held.val.tasks))
            for i in range(min(rounds, ADAPTER_ROUNDS) if layout.kind == "lora" else rounds):
                rng = torch.Generator().manual_seed(seed_of(self.config.seed, "validate", i))
                if generator.learns_from == "texts":
                    scores += [self._own_score(held, generator, task, rng) for task in tasks.split(1)]
                    continue
                condition = held.support.condition(tasks, self.config.shots, rng)
                written = generator.strengthened(generator.write(condition, layout, rng), layout)
                scores += self._scores(held, written, tasks)
        return sum(scores) / len(scores)

    @torch.no_grad()
    def reconstruction_error(self, generator: Generator) -> float:
        """Squared error of encoded and decoded validation networks, in units of the variance of the weights.

        Averaged over the (layer, role) pairs of every layout; 1 is what their mean value would give.
        """
        ratios = []
        for held in self.held:
            values, frame = held.val.values[:RECONSTRUCTED], generator.frame(held.form.layout)
            error = (generator.reconstruct(values, held.form.layout) - values).square()
            for pair in frame.position[:, :2].unique(dim=0):
                here = (frame.position[:, :2] == pair).all(-1)
                chosen = frame.mask[here].expand(len(values), -1, -1)
                ratios.append(error[:, here][chosen].mean() / values[:, here][chosen].var().clamp(min=1e-12))
        return torch.stack(ratios).mean().item()

    def lend(self, generator: Generator) -> None:
        """Lend a generator the base model and the training tasks with their texts.

        Raises:
            UsageError: if it learns from texts and the zoo has none.
        """
        found = [
            pair for group in self.groups for pair in zip(group.subject.tasks, group.subject.labelled(), strict=False)
        ]
        tasks = list({task.name: one for task, one in found}.values())  # adapters of a task may have several layouts
        if generator.learns_from == "texts" and not tasks:
            raise UsageError(
                f"the generator {generator.name} learns from text tasks, the zoo has none",
                "build a zoo of adapters, or choose another generator",
            )
        if self.words is not None:
            generator.attach(self.words.encoder, tasks)

    def _own_score(self, held: Held, generator: Generator, task: Int[Tensor, " 1"], rng: torch.Generator) -> float:
        """Score for one task of a generator that chooses the layout."""
        condition = held.support.condition(task, self.config.shots, rng)
        layout = generator.layout_for(condition)
        tensors = {name: value[0] for name, value in generator.networks(condition, layout, self.config.seed).items()}
        return held.judge.under(layout).score(tensors, int(task)).item()

    def _scores(self, held: Held, values: Float[Tensor, "n t d"], task_of: Int[Tensor, " n"]) -> list[float]:
        tensors = self.problem.tokenizer.tensors(values, held.form.layout)
        one = [{name: value[i : i + 1] for name, value in tensors.items()} for i in range(len(values))]
        return [held.judge.score(network, task).item() for network, task in zip(one, task_of.tolist(), strict=True)]
