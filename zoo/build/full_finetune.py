"""Recipe: full fine-tunes. Either of a text encoder on text tasks, or of a small network on images.

All members start from the same weights, which makes their zoo far easier to learn from than one of independent starts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from zoo import formats
from zoo.architectures import Architecture, family
from zoo.build.encoder import EncoderConfig
from zoo.build.holdout import HoldoutConfig
from zoo.build.image_classifiers import ImagesConfig
from zoo.build.images import load_all
from zoo.build.per_task import PerTask, by_task, unstacked
from zoo.build.registry import Data, Member, MemberName, Recipe, register_recipe
from zoo.build.text_recipe import TextRecipe, TextsConfig
from zoo.build.text_training import TextTrainingConfig
from zoo.build.vectorised import TrainingConfig, accuracies, initialise, train_many
from zoo.config import StrictConfig
from zoo.errors import UsageError
from zoo.kinds.dense import from_state_dict
from zoo.seeds import seed_of
from zoo.tasks import TRAIN, VAL, TaskData
from zoo.types import Task, Weights


class TextFinetuneConfig(StrictConfig):
    """A text encoder, all of whose weights are trained, without a head."""

    data: TextsConfig
    encoder: EncoderConfig = EncoderConfig()
    training: TextTrainingConfig = TextTrainingConfig(lr=5e-5)


class NetworkFinetuneConfig(StrictConfig):
    """A network of a family of ``zoo.architectures`` on images."""

    data: ImagesConfig = ImagesConfig()
    architecture: dict[str, Any]
    initial: str | None = Field(default=None, description="file of the weights to start from; a random start if none")
    training: TrainingConfig = TrainingConfig()


class FullFinetuneConfig(StrictConfig):
    """The recipe ``full_finetune``; exactly one of ``text`` and ``network`` is given."""

    recipe: Literal["full_finetune"] = "full_finetune"
    seed: int = 0
    text: TextFinetuneConfig | None = None
    network: NetworkFinetuneConfig | None = None
    tasks: HoldoutConfig = HoldoutConfig()
    members_per_task: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.text is None) == (self.network is None):
            raise ValueError("give exactly one of text and network")
        return self


class _Encoders(TextRecipe):
    def __init__(self, config: FullFinetuneConfig, text: TextFinetuneConfig) -> None:
        super().__init__(text.data, config.tasks, text.encoder, text.training, config.members_per_task, config.seed)

    @functools.cached_property
    def _initial(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.encoder.model.state_dict().items()}

    def reset(self) -> None:
        self.encoder.model.load_state_dict(self._initial)

    def start(self, lineage: str) -> list[nn.Parameter]:
        self.reset()
        return [p for p in self.encoder.model.parameters() if p.requires_grad]

    def result(self) -> tuple[Weights, dict[str, bytes]]:
        state = {name: value.detach().clone() for name, value in self.encoder.model.state_dict().items()}
        return from_state_dict(state, base_model=self.encoder.base_model), {}


class _Networks(PerTask):
    def __init__(self, config: FullFinetuneConfig, network: NetworkFinetuneConfig) -> None:
        self.config, self.network = config, network
        data, seed = network.data, seed_of(config.seed, "examples") % 2**32
        found = load_all(data.sources, data.validation, data.test, seed, data.size)
        outputs = family(self.architecture).outputs(self.architecture).size
        if wrong := [d for d in found if len(d.class_names) != outputs]:
            raise UsageError(
                f"the network has {outputs} outputs, {wrong[0].name} has {len(wrong[0].class_names)} classes",
                "fine-tune on data sets of as many classes",
            )
        self._images = {d.name: d for d in found}
        super().__init__(found, config.tasks, config.members_per_task, config.seed)

    @property
    def architecture(self) -> Architecture:
        return self.network.architecture

    @functools.cached_property
    def _initial(self) -> dict[str, Tensor]:
        fresh = initialise(self.architecture, [seed_of(self.config.seed, "start")])
        expected = {name: value[0] for name, value in fresh.items()}
        if self.network.initial is None:
            return expected
        found = formats.read_tensors(Path(self.network.initial)).tensors
        if {name: value.shape for name, value in found.items()} != {n: v.shape for n, v in expected.items()}:
            raise UsageError(f"{self.network.initial} does not fit network.architecture", "give its own architecture")
        return {name: found[name].float() for name in expected}

    def train(self, members: Sequence[MemberName]) -> Iterator[Member]:
        return by_task(members, self._train_on)

    def _train_on(self, name: str, lineages: Sequence[str]) -> Iterator[Member]:
        data, count, network = self._images[name], len(lineages), self.network
        view = TaskData.select(data.tensors(), range(len(data.class_names)))
        (x, y), (val_x, val_y) = view.stored(TRAIN), view.stored(VAL)
        seeds = [seed_of(self.config.seed, lineage) for lineage in lineages]
        stacked = train_many(
            self.architecture, [x] * count, [y] * count, seeds, network.training, initial=self._initial
        )
        scores = {"val_accuracy": accuracies(self.architecture, stacked, [val_x] * count, [val_y] * count)}
        return unstacked([self.task_of[name]] * count, lineages, stacked, scores, self.architecture)


@register_recipe("full_finetune", FullFinetuneConfig)
class FullFinetune(Recipe):
    """Fine-tunes of one starting point on several tasks."""

    def __init__(self, config: FullFinetuneConfig) -> None:
        if config.text is not None:
            self.inner: Recipe = _Encoders(config, config.text)
        else:
            assert config.network is not None
            self.inner = _Networks(config, config.network)

    def datasets(self) -> Sequence[Data]:
        """The data of the text tasks, or the images."""
        return self.inner.datasets()

    def tasks(self) -> Sequence[Task]:
        """One task a data set."""
        return self.inner.tasks()

    def members(self) -> Sequence[MemberName]:
        """Pairs of lineage and task: ``<task>/seed<k>``."""
        return self.inner.members()

    def groups(self, size: int) -> list[Sequence[MemberName]]:
        """Encoders one by one; networks on one data set together."""
        return self.inner.groups(size)

    def train(self, members: Sequence[MemberName]) -> Iterator[Member]:
        """Train the given members, each from the same start."""
        return self.inner.train(members)
