"""Recipe: linear or MLP heads on frozen features, many at once.

Features come from files (``x`` [examples, features]), or from a text encoder over text tasks. Every task has heads of
its own; all heads of a task are trained together.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from zoo.architectures import Architecture
from zoo.build.encoder import EncoderConfig, TextEncoder
from zoo.build.holdout import HoldoutConfig, assign
from zoo.build.images import load_all
from zoo.build.registry import Data, Member, MemberName, Recipe, register_recipe
from zoo.build.sources import LabelledData
from zoo.build.text_tasks import TextTask, load_text_tasks
from zoo.build.vectorised import TrainingConfig, accuracies, train_many
from zoo.config import StrictConfig
from zoo.errors import UsageError
from zoo.kinds.dense import from_state_dict
from zoo.seeds import seed_of
from zoo.tasks import TRAIN, VAL, TaskData
from zoo.threads import torch_threads
from zoo.types import Task


class FeaturesConfig(StrictConfig):
    """Which features, and how they are split."""

    sources: list[str] = Field(min_length=1, description="files or folders: of features, or of texts for the encoder")
    encoder: EncoderConfig | None = Field(default=None, description="makes features of texts")
    validation: float = Field(default=0.15, gt=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1, description="only where a source has no test part")


class HeadConfig(StrictConfig):
    """A multi-layer perceptron; without hidden layers a linear head. Inputs and outputs follow from the data."""

    hidden: list[int] = Field(default=[])
    activation: Literal["tanh", "relu", "gelu"] = "relu"


class FeatureHeadsConfig(StrictConfig):
    """The recipe ``feature_heads``."""

    recipe: Literal["feature_heads"] = "feature_heads"
    seed: int = 0
    data: FeaturesConfig
    tasks: HoldoutConfig = HoldoutConfig()
    head: HeadConfig = HeadConfig()
    members_per_task: int = Field(default=8, ge=1)
    training: TrainingConfig = TrainingConfig()


@dataclass(frozen=True, eq=False)
class Features:
    """Labelled examples whose features are made when they are first needed.

    Attributes:
        texts: what they are made from.
        encoder: what makes them.
    """

    texts: TextTask
    encoder: TextEncoder

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.texts.name

    @property
    def description(self) -> str:
        """Sentence on the task."""
        return self.texts.description

    @property
    def license(self) -> str | None:
        """Licence of the texts."""
        return self.texts.license

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return self.texts.label_names

    @property
    def part(self) -> Int[Tensor, " n"]:
        """Part of each example."""
        return self.texts.part

    @functools.lru_cache(maxsize=4)  # noqa: B019 - features of few tasks at a time
    def tensors(self) -> dict[str, Tensor]:
        """Features, labels and parts, as the zoo stores them."""
        return {"x": self.encoder.encode(self.texts.texts), "y": self.texts.y, "part": self.texts.part}


@register_recipe("feature_heads", FeatureHeadsConfig)
class FeatureHeads(Recipe):
    """Independently initialised heads on each of some tasks."""

    def __init__(self, config: FeatureHeadsConfig) -> None:
        self.config = config
        data, seed = config.data, seed_of(config.seed, "examples") % 2**32
        self._data: dict[str, LabelledData | Features]
        if data.encoder is None:
            found = load_all(data.sources, data.validation, data.test, seed, None)
            if wrong := [d for d in found if d.x.ndim != 2]:
                shape = list(wrong[0].x.shape)
                raise UsageError(f"{wrong[0].name} has inputs of shape {shape}", "give features [examples, features]")
            self._data = {d.name: d for d in found}
        else:
            texts, encoder = load_text_tasks(data.sources, data.validation, seed), TextEncoder(data.encoder)
            self._data = {task.name: Features(task, encoder) for task in texts}
        splits = assign(list(self._data), config.tasks, seed_of(config.seed, "tasks"))
        self._tasks = {
            name: Task(name, d.description, name, tuple(range(len(d.class_names))), d.class_names, splits[name])
            for name, d in self._data.items()
        }

    def datasets(self) -> Sequence[Data]:
        """Features of all tasks."""
        return list(self._data.values())

    def tasks(self) -> Sequence[Task]:
        """One task a source."""
        return list(self._tasks.values())

    def members(self) -> Sequence[MemberName]:
        """Pairs of lineage and task: ``<task>/seed<k>``."""
        return [(f"{name}/seed{k}", name) for name in self._tasks for k in range(self.config.members_per_task)]

    def groups(self, size: int) -> list[Sequence[MemberName]]:
        """All members of one task together."""
        per, members = self.config.members_per_task, self.members()
        return [members[start : start + per] for start in range(0, len(members), per)]

    def train(self, members: Sequence[MemberName]) -> Iterator[Member]:
        """Train the given members, those of one task together."""
        for name in dict.fromkeys(task for _, task in members):
            tensors = self._data[name].tensors()
            with torch_threads(1):
                trained = list(self._train_on(name, tensors, [lineage for lineage, task in members if task == name]))
            yield from trained

    def _train_on(self, name: str, tensors: dict[str, Tensor], lineages: Sequence[str]) -> Iterator[Member]:
        data, count = self._data[name], len(lineages)
        view = TaskData.select(tensors, range(len(data.class_names)))
        sizes = [tensors["x"].shape[1], *self.config.head.hidden, len(data.class_names)]
        architecture: Architecture = {"family": "mlp", "sizes": sizes, "activation": self.config.head.activation}
        (x, y), (val_x, val_y) = view.stored(TRAIN), view.stored(VAL)
        seeds = [seed_of(self.config.seed, lineage) for lineage in lineages]
        stacked = train_many(architecture, [x] * count, [y] * count, seeds, self.config.training)
        scores = {
            "train_accuracy": accuracies(architecture, stacked, [x] * count, [y] * count),
            "val_accuracy": accuracies(architecture, stacked, [val_x] * count, [val_y] * count),
        }
        for i, lineage in enumerate(lineages):
            state = {key: value[i].clone() for key, value in stacked.items()}
            metrics = {key: round(value[i].item(), 6) for key, value in scores.items()}
            if not all(bool(torch.isfinite(t).all()) for t in state.values()):
                yield Member(lineage, self._tasks[name], None, metrics, "training diverged (non-finite weights)")
            else:
                weights = from_state_dict(state, architecture=architecture)
                yield Member(lineage, self._tasks[name], weights, metrics, None)
