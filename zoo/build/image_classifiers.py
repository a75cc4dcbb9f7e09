"""Recipe: small convolutional networks on labelled images, many seeds a data set, as in the published model zoos.

Every member has its own initialisation, order of examples and, if asked for, learning rate and weight decay. Method
and sizes follow Schuerholt et al. 2022 (arXiv 2209.14764).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from zoo.architectures import Architecture, family
from zoo.build.holdout import HoldoutConfig, assign
from zoo.build.images import load_all
from zoo.build.registry import Data, Member, MemberName, Recipe, register_recipe
from zoo.build.sources import LabelledData
from zoo.build.vectorised import Sampled, TrainingConfig, accuracies, train_stages
from zoo.config import StrictConfig
from zoo.kinds.dense import from_state_dict
from zoo.seeds import seed_of
from zoo.tasks import TRAIN, VAL, TaskData
from zoo.threads import torch_threads
from zoo.types import Task

Range = tuple[float, float]


class ImagesConfig(StrictConfig):
    """Which images, and how they are split."""

    sources: list[str] = Field(default=["sklearn-digits"], min_length=1, description="names, files or folders of files")
    size: int | None = Field(default=None, ge=1, description="height and width to resize to")
    validation: float = Field(default=0.15, gt=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1, description="only where a source has no test part")


class ConvNetConfig(StrictConfig):
    """A convolutional network; inputs and outputs follow from the data. See ``zoo.architectures.cnn``."""

    channels: list[int] = Field(default=[8, 6, 4], min_length=1)
    kernel: int | list[int] = Field(default=[5, 5, 2])
    pool: int | list[int] = Field(default=[2, 2, 1])
    hidden: list[int] = Field(default=[20])
    activation: Literal["tanh", "relu", "gelu"] = "tanh"


class SampledConfig(StrictConfig):
    """Ranges that settings of a member are drawn from, evenly in the logarithm; without one, ``training`` holds."""

    lr: Range | None = None
    weight_decay: Range | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name, bounds in self:
            if bounds is not None and not 0 < bounds[0] <= bounds[1]:
                raise ValueError(f"sampled.{name} is {list(bounds)}, it must be [low, high] above 0")
        return self


class ImageClassifiersConfig(StrictConfig):
    """The recipe ``image_classifiers``."""

    recipe: Literal["image_classifiers"] = "image_classifiers"
    seed: int = 0
    data: ImagesConfig = ImagesConfig()
    tasks: HoldoutConfig = HoldoutConfig()
    network: ConvNetConfig = ConvNetConfig()
    members_per_task: int = Field(default=50, ge=1)
    training: TrainingConfig = TrainingConfig(epochs=10, lr=3e-3)
    sampled: SampledConfig = SampledConfig()
    same_batches: bool = Field(default=False, description="all members of a task see the same batches: faster")
    keep_epochs: list[int] = Field(default=[], description="epochs whose networks are kept beside the last")
    group: int = Field(default=16, ge=1, description="networks trained and stored together; 16 suit a processor")

    @model_validator(mode="after")
    def _epochs_exist(self) -> Self:
        if wrong := [epoch for epoch in self.keep_epochs if not 1 <= epoch <= self.training.epochs]:
            raise ValueError(f"keep_epochs has {wrong[0]}, training ends after epoch {self.training.epochs}")
        return self


@register_recipe("image_classifiers", ImageClassifiersConfig)
class ImageClassifiers(Recipe):
    """Independently initialised networks on each of some data sets; a task is one data set with all its classes."""

    def __init__(self, config: ImageClassifiersConfig) -> None:
        self.config = config
        data, seed = config.data, seed_of(config.seed, "examples") % 2**32
        self._data = {d.name: d for d in load_all(data.sources, data.validation, data.test, seed, data.size)}
        splits = assign(list(self._data), config.tasks, seed_of(config.seed, "tasks"))
        self._tasks = {
            name: Task(name, d.description, name, tuple(range(len(d.class_names))), d.class_names, splits[name])
            for name, d in self._data.items()
        }
        for name in self._data:
            family(self.architecture(name)).groups(self.architecture(name))  # images of this size fit

    def architecture(self, name: str) -> Architecture:
        """The network for a data set."""
        data = self._data[name]
        shape = list(data.x.shape[1:])
        shape = [1, *shape] if len(shape) == 2 else shape
        return {"family": "cnn", "input": shape, **dict(self.config.network), "classes": len(data.class_names)}

    def datasets(self) -> Sequence[Data]:
        """All data sets."""
        return list(self._data.values())

    def tasks(self) -> Sequence[Task]:
        """One task a data set."""
        return list(self._tasks.values())

    def members(self) -> Sequence[MemberName]:
        """Pairs of lineage and task: ``<task>/seed<k>``."""
        return [(f"{name}/seed{k}", name) for name in self._tasks for k in range(self.config.members_per_task)]

    def groups(self, size: int) -> list[Sequence[MemberName]]:
        """Groups within one data set."""
        per, members, group = self.config.members_per_task, self.members(), self.config.group
        starts = [start for first in range(0, len(members), per) for start in range(first, first + per, group)]
        return [members[s : min(s + group, (s // per + 1) * per)] for s in starts]

    def train(self, members: Sequence[MemberName]) -> Iterator[Member]:
        """Train the given members, those of one data set together."""
        for name in dict.fromkeys(task for _, task in members):
            with torch_threads(1):  # threads wait for each other more than they help; use more processes
                trained = list(self._train_on(self._data[name], [lineage for lineage, task in members if task == name]))
            yield from trained

    def _train_on(self, data: LabelledData, lineages: Sequence[str]) -> Iterator[Member]:
        config, architecture = self.config.training, self.architecture(data.name)
        (x, y), val = self._parts(data.name)
        per_epoch = max(1, round(len(y) / config.batch_size))
        sampled, count = self._sample(lineages), len(lineages)
        stages = train_stages(
            architecture,
            [x] * count,
            [y] * count,
            [seed_of(self.config.seed, lineage) for lineage in lineages],
            config,
            total=config.epochs * per_epoch,
            keep=[epoch * per_epoch for epoch in self.config.keep_epochs],
            sampled=sampled,
            common_order=seed_of(self.config.seed, "batches", data.name) if self.config.same_batches else None,
        )
        some = (x[: len(val[1])], y[: len(val[1])])
        for step, stacked in stages:
            scores = {
                "train_accuracy": accuracies(architecture, stacked, [some[0]] * count, [some[1]] * count),
                "val_accuracy": accuracies(architecture, stacked, [val[0]] * count, [val[1]] * count),
                "epoch": torch.full((count,), step / per_epoch),
                "lr": sampled.lr,
                "weight_decay": sampled.weight_decay,
            }
            for i, lineage in enumerate(lineages):
                state = {key: value[i].clone() for key, value in stacked.items()}
                metrics = {key: round(value[i].item(), 9) for key, value in scores.items()}
                yield self._member(data.name, lineage, state, metrics, architecture)

    def _member(
        self, name: str, lineage: str, state: dict[str, Tensor], metrics: dict[str, float], architecture: Architecture
    ) -> Member:
        if not all(bool(torch.isfinite(t).all()) for t in state.values()):
            return Member(lineage, self._tasks[name], None, metrics, "training diverged (non-finite weights)")
        weights = from_state_dict(state, architecture=architecture)
        return Member(lineage, self._tasks[name], weights, metrics, None)

    @functools.lru_cache(maxsize=1)  # noqa: B019 - one recipe a build
    def _parts(self, name: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Training and validation examples of a data set, as they are stored."""
        data = self._data[name]
        view = TaskData.select(data.tensors(), range(len(data.class_names)))
        return view.stored(TRAIN), view.stored(VAL)

    def _sample(self, lineages: Sequence[str]) -> Sampled:
        """Settings of each member; they depend on nothing but its lineage."""
        values: dict[str, list[float]] = {"lr": [], "weight_decay": []}
        for lineage in lineages:
            rng = torch.Generator().manual_seed(seed_of(self.config.seed, "settings", lineage))
            for key, chosen in values.items():
                share = torch.rand((), generator=rng).item()
                bounds: Range | None = getattr(self.config.sampled, key)
                fixed = getattr(self.config.training, key)
                chosen.append(fixed if bounds is None else _between(bounds, share))
        return Sampled(torch.tensor(values["lr"]), torch.tensor(values["weight_decay"]))


def _between(bounds: Range, share: float) -> float:
    low, high = map(math.log, bounds)
    return math.exp(low + share * (high - low))
