"""How likely a generator finds the networks of a zoo: what it was never shown the like of stands out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from weightgen.checkpoint import load_generator, read_history
from weightgen.generators import Generator
from weightgen.generators.problem import Form
from weightgen.progress import Progress
from weightgen.subjects.make import TextWords, subject_of
from weightgen.training_data import Split, TrainingData
from weightgen.types import Condition
from zoo.datasets import Members, load_groups
from zoo.errors import UsageError
from zoo.seeds import seed_of
from zoo.tasks import TRAIN
from zoo.types import Layout
from zoo.zoo import Zoo

BATCH = 32
"""Networks that are scored at once."""
OUTLIER = 5.0
"""Deviations from the median of its peers from which a network stands out, if the generator has no limit of its own."""
USUAL = 0.99
"""Share of the validation networks that a generator finds usual, when it is trained."""


@runtime_checkable
class Scorer(Protocol):
    """A generator that knows how likely networks are."""

    def score(self, values: Float[Tensor, "b t d"], condition: Condition, layout: Layout) -> Float[Tensor, " b"]:
        """Bits a code of each network."""
        ...


@dataclass(frozen=True)
class Scored:
    """The score of one record.

    Attributes:
        id: of the record.
        bits: bits a code.
        deviations: how far above the median of the networks of its layout and split, in robust standard deviations.
        limit: bits that are usual for networks of its layout that were not learned from, if the generator knows that.
    """

    id: str
    bits: float
    deviations: float
    limit: float | None = None

    @property
    def stands_out(self) -> bool:
        """Whether it costs more than is usual, or, where no limit is known, far more than its peers."""
        return self.deviations > OUTLIER if self.limit is None else self.bits > self.limit


@torch.no_grad()
def usual_bits(generator: Generator, data: TrainingData) -> dict[str, float]:
    """Bits a code that ``USUAL`` of the validation networks cost at most, by fingerprint of the layout."""
    limits: dict[str, float] = {}
    if not isinstance(generator, Scorer):
        return limits
    for held in data.held:
        rng = torch.Generator().manual_seed(seed_of(data.config.seed, "usual"))
        found = []
        for pick in torch.arange(len(held.val.values)).split(BATCH):
            condition = held.support.condition(held.val.task_of[pick], data.config.shots, rng)
            found.append(generator.score(held.val.values[pick], condition, held.form.layout))
        limits[held.form.layout.fingerprint] = round(torch.cat(found).quantile(USUAL).item(), 6)
    return limits


def score_zoo(folder: Path, zoo: Zoo, progress: Progress | None = None) -> list[Scored]:
    """Score every network of a zoo whose layout a generator writes, given examples of its task.

    Args:
        folder: of the generator.
        zoo: whose networks are scored, with the tasks they were trained on.
        progress: called with (stage, done, total).

    Raises:
        UsageError: if the generator knows no likelihoods, or writes no layout of the zoo.
    """
    generator = load_generator(folder)
    if not isinstance(generator, Scorer):
        raise UsageError(f"the generator {folder} ({generator.name}) knows no likelihoods", "give one of: igpg")
    scored: list[Scored] = []
    limits = read_history(folder).get("usual_bits", {})
    for split in ("train", "val", "test"):
        if not any(True for _ in zoo.records(split=split)):
            continue
        for members in load_groups(zoo, split):
            form = generator.problem.form(members.layout)
            if form is not None:
                bits = torch.cat(list(_bits(generator, form, members, zoo, progress)))
                limit = limits.get(form.layout.fingerprint)
                scored += compare([record.id for record in members.records], bits, limit)
    if not scored:
        raise UsageError(
            f"the generator {folder} writes no layout of the zoo {zoo.path}", "give one that learned from it"
        )
    return scored


def _bits(
    generator: Generator, form: Form, members: Members, zoo: Zoo, progress: Progress | None
) -> Iterator[Float[Tensor, " b"]]:
    assert isinstance(generator, Scorer)
    config, problem = generator.config, generator.problem
    if form.reference is not None:
        members = members.aligned(form.reference)
    elif config.align and form.layout.kind != "dense":
        members = members.canonical()
    split = Split.of(zoo, members, problem.tokenizer)
    words = None if problem.text_encoder is None else TextWords(problem.text_encoder)
    subject = subject_of(zoo, form.layout, split.tasks, TRAIN, config, words=words)
    rng = torch.Generator().manual_seed(seed_of(config.seed, "score"))
    for pick in torch.arange(len(members)).split(BATCH):
        condition = subject.condition(split.task_of[pick], config.shots, rng)
        yield generator.score(split.values[pick], condition, form.layout)
        if progress:
            progress("score", int(pick[-1]) + 1, len(members))


def compare(ids: list[str], bits: Float[Tensor, " n"], limit: float | None = None) -> list[Scored]:
    """Deviations by median and median absolute deviation, which outliers do not move."""
    above = bits - bits.median()
    spread = 1.4826 * above.abs().median().clamp(min=1e-6)
    far = (above / spread).tolist()
    return [Scored(id, cost, apart, limit) for id, cost, apart in zip(ids, bits.tolist(), far, strict=True)]
