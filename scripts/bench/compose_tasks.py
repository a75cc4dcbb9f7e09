"""Real text tasks and adapters for the benchmark of composition: which are held out, and how mixtures are scored."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from weightgen.compose import load
from weightgen.compose.objectives import OverExamples, text_classification
from zoo.build.encoder import EncoderConfig, TextEncoder
from zoo.build.text_tasks import TextTask, load_text_task
from zoo.build.text_training import text_scores
from zoo.seeds import seed_of
from zoo.tasks import TRAIN
from zoo.types import Weights

MOST_LABELS, LEAST_SHOTS, LEAST_TEST = 8, 16, 200
RELATED = (("rt_polarity", "sst5"),)  # sentences of the same reviews


@dataclass(frozen=True)
class Plan:
    """Which tasks are for what; drawn at random once, by names alone.

    Attributes:
        family: data source of every task.
        near: held-out tasks whose source gave other tasks too.
        lone: held-out tasks that are alone with their source.
        choose: tasks on which settings are chosen.
    """

    family: Mapping[str, str]
    near: tuple[str, ...]
    lone: tuple[str, ...]
    choose: tuple[str, ...]

    def sources(self, task: str, far: bool) -> list[str]:
        """Tasks whose adapters may be mixed for a task: none that is held out, none of its own source if ``far``."""
        banned = {task, *self.near, *self.lone}
        if far:
            banned |= {name for name, family in self.family.items() if family == self.family[task]}
        return [name for name in sorted(self.family) if name not in banned]


def make_plan(data: Path) -> Plan:
    """Draw the held-out tasks and those for choosing settings."""
    index = json.loads((data / "text_tasks" / "index.json").read_text())
    family = {one["name"]: one["source"]["repo"] for one in index}
    for first, *others in RELATED:
        family |= dict.fromkeys(others, family[first])
    counts = {name: list(family.values()).count(source) for name, source in family.items()}
    fit = [one["name"] for one in index if one["n_labels"] <= MOST_LABELS and one["n_test"] >= LEAST_TEST]
    fit = [name for name in fit if _smallest_class(load_task(data, name)) >= LEAST_SHOTS]
    fit.sort(key=lambda name: seed_of("held out", name))
    chosen: dict[bool, list[str]] = {True: [], False: []}
    for name in fit:
        row = chosen[counts[name] > 1]
        if family[name] not in {family[other] for other in row}:
            row.append(name)
    near, lone = chosen[True], chosen[False]
    return Plan(family, tuple(near[:4]), tuple(lone[:4]), tuple(near[4:6] + lone[4:6]))


def _smallest_class(task: TextTask) -> int:
    _, y = task.select(TRAIN)
    return int(torch.bincount(y, minlength=len(task.label_texts)).min())


def load_task(data: Path, name: str) -> TextTask:
    """One task."""
    return load_text_task(data / "text_tasks" / f"{name}.json.gz", 0.15, 0)


def load_adapters(data: Path, names: Sequence[str]) -> list[Weights]:
    """The adapters of some tasks, those of the first seed."""
    return [load(data / "lora_zoo" / f"{name}--seed0") for name in names]


def load_encoder() -> TextEncoder:
    """The base in half precision: this processor multiplies it several times faster."""
    return TextEncoder(EncoderConfig(dtype="bfloat16"))


def shots(task: TextTask, count: int, seed: int) -> tuple[list[str], Tensor]:
    """The first ``count`` examples of every label in a random order of the training examples."""
    texts, y = task.select(TRAIN)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed_of("shots", task.name, seed)))
    rows = [i for c in range(len(task.label_texts)) for i in order[y[order] == c][:count].tolist()]
    return [texts[i] for i in rows], y[rows]


def labelled(encoder: TextEncoder, task: TextTask, count: int, seed: int, batch: int = 0) -> OverExamples:
    """Cross-entropy on a few examples a label."""
    texts, y = shots(task, count, seed)
    return text_classification(encoder, texts, y, task.label_texts, batch=batch, seed=seed)


@contextlib.contextmanager
def changed(encoder: TextEncoder, deltas: Mapping[str, Tensor]) -> Iterator[None]:
    """The encoder with changes added, for a while."""
    parameters = dict(encoder.model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in deltas}
    with torch.no_grad():
        for name, delta in deltas.items():
            parameters[name].copy_(parameters[name] + delta)
        yield
        for name, value in before.items():
            parameters[name].copy_(value)


def score(encoder: TextEncoder, deltas: Mapping[str, Tensor], task: TextTask, part: int) -> dict[str, float]:
    """Accuracy and macro-F1 of a mixture on one part of a task."""
    with changed(encoder, deltas):
        return text_scores(encoder, task, part)
