"""Recipe: networks that tell a few classes of a labelled data set apart, one task a subset of the classes.

Every member starts from its own random initialisation, so members of one task are no copies of each other. The
data set is split once into train, validation and test examples before any task is made.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from zoo.architectures import Architecture, family
from zoo.build.conv_nets import ConvNetConfig, ResidualConfig
from zoo.build.per_task import unstacked
from zoo.build.registry import Data, Member, MemberName, Recipe, register_recipe
from zoo.build.sources import LabelledData, load_source
from zoo.build.vectorised import TrainingConfig, accuracies, train_many
from zoo.config import StrictConfig
from zoo.errors import UsageError
from zoo.seeds import seed_of
from zoo.split import split_tasks
from zoo.tasks import TRAIN, VAL, TaskData
from zoo.threads import torch_threads
from zoo.types import Task


class DataConfig(StrictConfig):
    """Which data set, and how its examples are split."""

    source: str = "sklearn-digits"
    validation: float = Field(default=0.15, gt=0, lt=1)
    test: float = Field(default=0.25, gt=0, lt=1)

    @model_validator(mode="after")
    def _leave_some_for_training(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"data.validation + data.test is {self.validation + self.test:g}, it must be below 1")
        return self


class SubsetConfig(StrictConfig):
    """Size of a task, and how many whole tasks are held out."""

    classes: int = Field(default=5, ge=2)
    held_out: int = Field(default=50, ge=1)
    validation: int = Field(default=20, ge=1)


class NetworkConfig(StrictConfig):
    """A multi-layer perceptron, or several of different shapes, and plain and residual convolutional networks beside.

    Inputs and outputs follow from the data.
    """

    hidden: list[int] | list[list[int]] = Field(
        default=[16], min_length=1, description="sizes, or a list of such lists"
    )
    activation: Literal["tanh", "relu", "gelu"] = "tanh"
    convolutional: list[ConvNetConfig] = Field(default=[], description="networks for tasks of images")
    residual: list[ResidualConfig] = Field(default=[], description="further networks for tasks of images")

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Sizes of the hidden layers of each network, by the part of a lineage that tells them apart."""
        several = [sizes for sizes in self.hidden if isinstance(sizes, list)]
        if not several:
            return {"": [size for size in self.hidden if isinstance(size, int)]}
        return {f"{'-'.join(map(str, sizes)) or 'linear'}/": sizes for sizes in several}


class ClassSubsetsConfig(StrictConfig):
    """The recipe ``class_subsets``."""

    recipe: Literal["class_subsets"] = "class_subsets"
    seed: int = 0
    data: DataConfig = DataConfig()
    tasks: SubsetConfig = SubsetConfig()
    network: NetworkConfig = NetworkConfig()
    members_per_task: int = Field(default=2, ge=1)
    training: TrainingConfig = TrainingConfig()


@register_recipe("class_subsets", ClassSubsetsConfig)
class ClassSubsets(Recipe):
    """All subsets of a fixed number of classes, several independently initialised networks each."""

    def __init__(self, config: ClassSubsetsConfig) -> None:
        self.config = config
        self.data: LabelledData = load_source(
            config.data.source, config.data.validation, config.data.test, seed_of(config.seed, "examples") % 2**32
        )
        available = len(self.data.class_names)
        if config.tasks.classes > available:
            raise UsageError(
                f"tasks.classes is {config.tasks.classes}, {self.data.name} has {available} classes", "lower it"
            )
        self._tasks = {task.name: task for task in self._make_tasks()}

    def architectures(self) -> dict[str, Architecture]:
        """The networks that are trained on every task, by the part of a lineage that tells them apart."""
        network, (inputs, classes) = self.config.network, (self.data.x[0].numel(), self.config.tasks.classes)
        found: dict[str, Architecture] = {
            name: {"family": "mlp", "sizes": [inputs, *sizes, classes], "activation": network.activation}
            for name, sizes in network.shapes.items()
        }
        for conv in network.convolutional:
            architecture = {"family": "cnn", "input": self._image_shape(), **dict(conv), "classes": classes}
            sizes = "-".join(map(str, [*conv.channels, *conv.hidden]))
            found[f"cnn-{sizes}/"] = architecture
            family(architecture).groups(architecture)  # images of this size fit
        for residual in network.residual:
            about = {"norm": False, "activation": network.activation, "classes": classes}
            architecture = {"family": "resnet", "channels": self._image_shape()[0], **dict(residual), **about}
            sizes = "-".join(map(str, [*residual.blocks, *residual.widths]))
            found[f"resnet-{sizes}/"] = architecture
            family(architecture).groups(architecture)  # widths and blocks fit
        return found

    def _image_shape(self) -> list[int]:
        """Channels, height and width of an example."""
        shape = list(self.data.x.shape[1:])
        if len(shape) not in (2, 3):
            raise UsageError(
                f"examples of {self.data.name} have the shape {shape}, they are no images",
                "leave network.convolutional and network.residual out",
            )
        return shape if len(shape) == 3 else [1, *shape]

    def _make_tasks(self) -> Iterator[Task]:
        names = self.data.class_names
        subsets = list(itertools.combinations(range(len(names)), self.config.tasks.classes))
        titles = {subset: f"{self.data.name}/{'-'.join(names[c] for c in subset)}" for subset in subsets}
        splits = split_tasks(
            list(titles.values()),
            test=self.config.tasks.held_out,
            val=self.config.tasks.validation,
            seed=seed_of(self.config.seed, "tasks"),
        )
        for subset, title in titles.items():
            chosen = tuple(names[c] for c in subset)
            text = f"tell {', '.join(chosen[:-1])} and {chosen[-1]} apart ({self.data.description})"
            yield Task(title, text, self.data.name, subset, chosen, splits[title])

    def datasets(self) -> Sequence[Data]:
        """The one data set of all tasks."""
        return [self.data]

    def tasks(self) -> Sequence[Task]:
        """All subsets, each with its split."""
        return list(self._tasks.values())

    def members(self) -> Sequence[MemberName]:
        """Pairs of lineage and task: ``<task>/seed<k>``, with several networks ``<task>/<sizes>/seed<k>``."""
        count = range(self.config.members_per_task)
        return [
            (f"{name}/{shape}seed{k}", name) for shape in self.architectures() for name in self._tasks for k in count
        ]

    def train(self, members: Sequence[MemberName]) -> Iterator[Member]:
        """Train the given members together; each is the same whatever its neighbours are."""
        with torch_threads(1):
            for shape, architecture in self.architectures().items():
                alike = [(lineage, name) for lineage, name in members if lineage.startswith(f"{name}/{shape}seed")]
                if alike:
                    yield from self._train(alike, architecture)

    def _train(self, members: Sequence[MemberName], architecture: Architecture) -> Iterator[Member]:
        names = {name for _, name in members}
        selected = {name: TaskData.select(self.data.tensors(), self._tasks[name].classes) for name in names}
        views = [selected[name] for _, name in members]
        steps = self._steps()
        stacked = train_many(
            architecture,
            [v.stored(TRAIN)[0] for v in views],
            [v.stored(TRAIN)[1] for v in views],
            [seed_of(self.config.seed, lineage) for lineage, _ in members],
            self.config.training,
            steps=steps,
        )
        scores = {
            f"{label}_accuracy": accuracies(
                architecture, stacked, [v.stored(p)[0] for v in views], [v.stored(p)[1] for v in views]
            )
            for label, p in (("train", TRAIN), ("val", VAL))
        }
        tasks, lineages = [self._tasks[name] for _, name in members], [lineage for lineage, _ in members]
        return unstacked(tasks, lineages, stacked, scores, architecture)

    def _steps(self) -> int:
        """Updates of every member: epochs over the mean size of a task, the same for all."""
        share = self.config.tasks.classes / len(self.data.class_names)
        size = int((self.data.part == TRAIN).sum()) * share
        return max(1, round(self.config.training.epochs * size / self.config.training.batch_size))
