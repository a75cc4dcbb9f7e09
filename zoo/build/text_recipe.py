"""What recipes over text classification tasks share: the tasks, their splits, the accuracy before training."""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterator, Sequence

import torch
from pydantic import Field
from torch import nn

from zoo.build.encoder import EncoderConfig, TextEncoder
from zoo.build.holdout import HoldoutConfig
from zoo.build.per_task import DIVERGED, PerTask
from zoo.build.registry import Member, MemberName
from zoo.build.text_tasks import load_text_tasks
from zoo.build.text_training import TextTrainingConfig, finetune, text_scores
from zoo.config import StrictConfig
from zoo.seeds import seed_of
from zoo.types import Weights


class TextsConfig(StrictConfig):
    """Which text tasks, and the share of the training examples for validation where a source states none."""

    sources: list[str] = Field(min_length=1, description="files, or folders of files")
    validation: float = Field(default=0.15, gt=0, lt=1)


class TextRecipe(PerTask):
    """Members are an encoder, or a part of one, fine-tuned on one task each; one after the other."""

    def __init__(
        self,
        data: TextsConfig,
        tasks: HoldoutConfig,
        encoder: EncoderConfig,
        training: TextTrainingConfig,
        members_per_task: int,
        seed: int,
    ) -> None:
        self.training, self.seed, self.encoder_config = training, seed, encoder
        found = load_text_tasks(data.sources, data.validation, seed_of(seed, "examples") % 2**32)
        self.texts = {task.name: task for task in found}
        super().__init__(found, tasks, members_per_task, seed, group=1)  # each is stored as soon as it is trained

    @functools.cached_property
    def encoder(self) -> TextEncoder:
        """The encoder, loaded when the first member is trained."""
        return TextEncoder(self.encoder_config)

    def train(self, members: Sequence[MemberName]) -> Iterator[Member]:
        """Train the members one after the other."""
        for lineage, name in members:
            text = self.texts[name]
            before = self._as_it_is(name)
            parameters = self.start(lineage)
            loss = finetune(self.encoder, parameters, text, self.training, seed_of(self.seed, lineage))
            scores = {f"val_{key}": value for key, value in text_scores(self.encoder, text).items()}
            metrics = {k: round(v, 6) for k, v in {**scores, **before, "train_loss": loss}.items()}
            if not all(bool(torch.isfinite(p).all()) for p in parameters):
                yield Member(lineage, self.task_of[name], None, {}, DIVERGED)
                continue
            weights, extra = self.result()
            yield Member(lineage, self.task_of[name], weights, metrics, None, extra)

    @functools.lru_cache(maxsize=1)  # noqa: B019 - members of one task follow each other
    def _as_it_is(self, name: str) -> dict[str, float]:
        with torch.no_grad():
            self.reset()
            scores = text_scores(self.encoder, self.texts[name])
        return {f"base_val_{key}": value for key, value in scores.items()}

    @abc.abstractmethod
    def reset(self) -> None:
        """Make the encoder compute what it computed before training."""

    @abc.abstractmethod
    def start(self, lineage: str) -> list[nn.Parameter]:
        """Put the parameters of a new member into the encoder and return them."""

    @abc.abstractmethod
    def result(self) -> tuple[Weights, dict[str, bytes]]:
        """The trained weights, and small files that go with them."""
