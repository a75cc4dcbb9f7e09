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
from zoo.build.conv_nets import ConvNetConfig
from zoo.build.holdout import HoldoutConfig
from zoo.build.images import load_all
from zoo.build.per_task import PerTask, by_task, unstacked
from zoo.build.registry import Member, MemberName, register_recipe
from zoo.build.vectorised import Sampled, TrainingConfig, accuracies, train_stages
from zoo.config import StrictConfig
from zoo.seeds import seed_of
from zoo.tasks import TRAIN, VAL, TaskData

Range = tuple[float, float]


class ImagesConfig(StrictConfig):
    """Which images, and how they are split."""

    sources: list[str] = Field(default=["sklearn-digits"], min_length=1, description="names, files or folders of files")
    size: int | None = Field(default=None, ge=1, description="height and width to resize to")
    validation: float = Field(default=0.15, gt=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1, description="only where a source has no test part")


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
class ImageClassifiers(PerTask):
    """Independently initialised networks on each of some data sets; a task is one data set with all its classes."""

    def __init__(self, config: ImageClassifiersConfig) -> None:
        self.config = config
        data, seed = config.data, seed_of(config.seed, "examples") % 2**32
        found = load_all(data.sources, data.validation, data.test, seed, data.size)
        self._images = {d.name: d for d in found}
        super().__init__(found, config.tasks, config.members_per_task, config.seed, config.group)
        for name in self._images:
            family(self.architecture(name)).groups(self.architecture(name))  # images of this size fit

    def architecture(self, name: str) -> Architecture:
        """The network for a data set."""
        data = self._images[name]
        shape = list(data.x.shape[1:])
        shape = [1, *shape] if len(shape) == 2 else shape
        return {"family": "cnn", "input": shape, **dict(self.config.network), "classes": len(data.class_names)}

    def train(self, members: Sequence[MemberName]) -> Iterator[Member]:
        """Train the given members, those of one data set together."""
        return by_task(members, self._train_on)

    def _train_on(self, name: str, lineages: Sequence[str]) -> Iterator[Member]:
        config, architecture = self.config.training, self.architecture(name)
        (x, y), val = self._parts(name)
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
            common_order=seed_of(self.config.seed, "batches", name) if self.config.same_batches else None,
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
            yield from unstacked([self.task_of[name]] * count, lineages, stacked, scores, architecture)

    @functools.lru_cache(maxsize=1)  # noqa: B019 - one recipe a build
    def _parts(self, name: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Training and validation examples of a data set, as they are stored."""
        data = self._images[name]
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
