"""Recipe: linear or MLP heads on frozen features, many at once.

Features come from files (``x`` [examples, features]), or from a text encoder over text tasks. Every task has heads of
its own; all heads of a task are trained together.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from zoo.architectures import Architecture
from zoo.build.encoder import EncoderConfig, TextEncoder
from zoo.build.holdout import HoldoutConfig
from zoo.build.images import load_all
from zoo.build.per_task import PerTask, by_task, unstacked
from zoo.build.registry import Member, MemberName, register_recipe
from zoo.build.sources import LabelledData
from zoo.build.text_tasks import TextTask, load_text_tasks
from zoo.build.vectorised import TrainingConfig, accuracies, train_many
from zoo.config import StrictConfig
from zoo.errors import UsageError
from zoo.seeds import seed_of
from zoo.tasks import TRAIN, VAL, TaskData


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
class FeatureHeads(PerTask):
    """Independently initialised heads on each of some tasks."""

    def __init__(self, config: FeatureHeadsConfig) -> None:
        self.config = config
        data, seed = config.data, seed_of(config.seed, "examples") % 2**32
        found: Sequence[LabelledData | Features]
        if data.encoder is None:
            found = load_all(data.sources, data.validation, data.test, seed, None)
            if wrong := [d for d in found if d.x.ndim != 2]:
                shape = list(wrong[0].x.shape)
                raise UsageError(f"{wrong[0].name} has inputs of shape {shape}", "give features [examples, features]")
        else:
            texts, encoder = load_text_tasks(data.sources, data.validation, seed), TextEncoder(data.encoder)
            found = [Features(task, encoder) for task in texts]
        self._examples = {d.name: d for d in found}
        super().__init__(found, config.tasks, config.members_per_task, config.seed)

    def train(self, members: Sequence[MemberName]) -> Iterator[Member]:
        """Train the given members, those of one task together."""
        return by_task(members, self._train_on)

    def _train_on(self, name: str, lineages: Sequence[str]) -> Iterator[Member]:
        data, count = self._examples[name], len(lineages)
        tensors = data.tensors()
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
        base = data.encoder.base_model if isinstance(data, Features) else None
        return unstacked([self.task_of[name]] * count, lineages, stacked, scores, architecture, base)
