"""Measure whether records of other tasks beat the base on a task: the pairs that calibration is learned from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from weightgen.retrieve.calibration import Pair, save_pairs
from weightgen.retrieve.fuse import compare, rank
from weightgen.retrieve.index import PAIRS, Index
from weightgen.retrieve.query import Filters, Query
from weightgen.retrieve.views import TEXTS
from weightgen.subjects.texts import AdaptedEncoder
from zoo.build.encoder import EncoderConfig, TextEncoder
from zoo.build.text_tasks import TextTask
from zoo.errors import UsageError
from zoo.networks import architecture_of, logits
from zoo.seeds import seed_of
from zoo.tasks import TRAIN, VAL, TaskData
from zoo.texts import unpack
from zoo.types import Record, Task
from zoo.zoo import Zoo


def query_of(zoo: Zoo, task: Task, seed: int, texts: int = TEXTS) -> Query:
    """What a user would know of a stored task: description, labels, unlabelled texts or labelled examples."""
    data = zoo.dataset(task.dataset)
    if "text_bytes" not in data:
        found = TaskData.select(data, task.classes)
        x, y = found.part(TRAIN)
        return Query(task.description, examples=(x, y)) if len(y) else Query(task.description)
    return text_query(_as_texts(task, data), seed, texts)


def text_query(task: TextTask, seed: int, texts: int = TEXTS) -> Query:
    """What a user would know of a text task: description, labels, and some training texts."""
    rows = (task.part == TRAIN).nonzero()[:, 0]
    rng = torch.Generator().manual_seed(seed_of("query", task.name, seed))
    chosen = rows[torch.randperm(len(rows), generator=rng)[:texts]]
    return Query(task.description, task.label_texts, tuple(task.texts[i] for i in chosen.tolist()))


def _as_texts(task: Task, data: Mapping[str, torch.Tensor]) -> TextTask:
    """A stored text task as it was read."""
    labels = tuple(unpack(data, "label"))
    texts, y = tuple(unpack(data)), data["y"].long()
    return TextTask(task.name, task.description, None, labels, labels, texts, y, data["part"])


@dataclass(frozen=True, eq=False)
class Judge:
    """Scores records on stored tasks; the share of right answers on examples of one part.

    Attributes:
        zoo: records and data.
        most: examples a task at most.
        part: 1 validation, 2 test.
        seed: decides which examples.
        encoder: half-precision encoder instead of the adapters' own base, if it is loaded already.
    """

    zoo: Zoo
    most: int = 128
    part: int = VAL
    seed: int = 0
    encoder: TextEncoder | None = None

    def scorer(self, task: Task, base_model: str | None) -> Callable[[Record | None], float | None]:
        """A function from a record (``None``: the base) to its accuracy, ``None`` where it cannot be run."""
        data = self.zoo.dataset(task.dataset)
        if "text_bytes" not in data:
            return self._networks(data, task)
        return self.text_scorer(_as_texts(task, data), base_model)

    def _rows(self, part: torch.Tensor, name: str) -> torch.Tensor:
        rows = (part == self.part).nonzero()[:, 0]
        rng = torch.Generator().manual_seed(seed_of("judge", name, self.seed))
        return rows[torch.randperm(len(rows), generator=rng)[: self.most]]

    def _networks(self, data: dict[str, torch.Tensor], task: Task) -> Callable[[Record | None], float | None]:
        x, y = TaskData.select(data, task.classes).part(self.part)
        rows = self._rows(torch.full((len(y),), self.part), task.name)
        x, y = x[rows], y[rows]

        @torch.no_grad()
        def score(record: Record | None) -> float | None:
            if len(y) == 0:
                return None
            if record is None:  # the base knows nothing: the commonest class
                return torch.bincount(y).max().item() / len(y)
            try:
                found = logits(architecture_of(record.layout), self.zoo.weights(record).tensors, x)
            except (UsageError, RuntimeError):  # other inputs than the network takes
                return None
            return (found.argmax(1) == y).float().mean().item() if found.shape[1] == len(task.classes) else None

        return score

    def text_scorer(self, task: TextTask, base_model: str | None) -> Callable[[Record | None], float | None]:
        """As ``scorer``, for adapters and a text task that need not be stored."""
        rows = self._rows(task.part, task.name)
        if base_model is None or len(rows) == 0:
            return lambda record: None
        encoder = self.encoder or TextEncoder(EncoderConfig(name=base_model))
        y, chosen, labels = task.y[rows], [task.texts[i] for i in rows.tolist()], task.label_texts
        known: dict[str, AdaptedEncoder] = {}

        def accuracy() -> float:
            found = encoder.encode(chosen) @ encoder.encode(labels).T
            return (found.argmax(1) == y).float().mean().item()

        @torch.no_grad()
        def score(record: Record | None) -> float | None:
            if record is None:
                return accuracy()
            try:
                key = record.layout.fingerprint
                adapted = known.setdefault(key, AdaptedEncoder(encoder, record.layout))
            except (UsageError, KeyError):  # no plain LoRA of this encoder
                return None
            with adapted.applied(self.zoo.weights(record).tensors):
                return accuracy()

        return score


@dataclass(frozen=True, eq=False)
class _Measurable:
    """A task to measure on: what a user would know of it, and from a base model to what scores records."""

    name: str
    query: Callable[[], Query]
    scorer: Callable[[str | None], Callable[[Record | None], float | None]]


def measure_pairs(
    index: Index,
    *,
    per_task: int = 4,
    judge: Judge | None = None,
    tasks: Sequence[str] | None = None,
    given: Sequence[TextTask] = (),
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Pair]:
    """Measure pairs on the stored tasks that are no test tasks, and keep them beside the index.

    For each task its own records are left out. Of the others, those most alike and random ones are run on validation
    examples, half and half. Where the zoo says how a task's own records did (``val_accuracy``, ``base_val_accuracy``),
    one of them joins as a pair. What is measured already is kept; a stopped measurement goes on.

    Args:
        index: of the zoo.
        per_task: records of other tasks a task.
        judge: how records are scored.
        tasks: only these.
        given: text tasks to measure on in place of the stored ones, for zoos of adapters without data.
        seed: decides which records and texts.
        progress: told how many tasks are done.

    Returns:
        All pairs, old and new.
    """
    zoo, report = index.zoo, progress or (lambda *_: None)
    scores = judge or Judge(zoo, seed=seed)
    pairs = index.pairs()
    done = {pair.task for pair in pairs}

    def of_text(task: TextTask) -> _Measurable:
        return _Measurable(task.name, lambda: text_query(task, seed), lambda base: scores.text_scorer(task, base))

    def of_stored(task: Task) -> _Measurable:
        return _Measurable(task.name, lambda: query_of(zoo, task, seed), lambda base: scores.scorer(task, base))

    known = [of_text(task) for task in given] or [of_stored(task) for task in zoo.tasks() if task.split != "test"]
    wanted = [one for one in known if tasks is None or one.name in tasks]
    for number, one in enumerate(wanted):
        report("calibrate", number, len(wanted))
        if one.name in done:
            continue
        pairs += _of_task(index, one, per_task, seed)
        if index.folder is not None:
            save_pairs(index.folder / PAIRS, pairs, index.encoder.name)
    report("calibrate", len(wanted), len(wanted))
    return pairs


def _of_task(index: Index, task: _Measurable, per_task: int, seed: int) -> list[Pair]:
    query = task.query()
    asked = index.asked(query, Filters(without_tasks=frozenset({task.name})))
    if not asked:
        return []
    one_each: dict[str | None, str] = {}
    for one in rank(asked, len(index.records)):
        one_each.setdefault(index.records[one.id].task, one.id)
    ordered = list(one_each.values())
    near = ordered[: math.ceil(per_task / 2)]
    rest = ordered[len(near) :]
    rng = torch.Generator().manual_seed(seed_of("pairs", task.name, seed))
    chosen = near + [rest[i] for i in torch.randperm(len(rest), generator=rng)[: per_task - len(near)].tolist()]
    measured: list[tuple[str, bool, float]] = []
    for base_model, ids in itertools.groupby(
        sorted(chosen, key=lambda id: index.records[id].layout.base_model or ""),
        key=lambda id: index.records[id].layout.base_model,
    ):
        score = task.scorer(base_model)
        base = score(None)
        for id in ids:
            found = score(index.records[id])
            if found is not None and base is not None:
                measured.append((id, False, found - base))
    for record in index.records.values():
        metrics = record.metrics
        if record.task == task.name and {"val_accuracy", "base_val_accuracy"} <= metrics.keys():
            measured.append((record.id, True, metrics["val_accuracy"] - metrics["base_val_accuracy"]))
            break
    strengths = _strengths(index, query, [id for id, _, _ in measured])
    return [Pair(task.name, id, same, strengths[id], gain) for id, same, gain in measured]


def _strengths(index: Index, query: Query, ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """Of records, in all views that a query of all or of texts alone is compared in."""
    found: dict[str, dict[str, float]] = {id: {} for id in ids}
    for part in [query, *([Query(texts=query.texts)] if query.texts else [])]:
        for one in compare(index.asked(part, Filters()), ids):
            found[one.id] |= one.strengths
    return found
