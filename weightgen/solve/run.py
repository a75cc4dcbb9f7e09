"""The portfolio's main path: find candidates, judge them under the budget, choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from weightgen.evaluation.classification import macro_f1, majority
from weightgen.generate.task import GivenTask
from weightgen.retrieve import Filters, Index
from weightgen.solve.base import Base
from weightgen.solve.budget import Budget, reading
from weightgen.solve.candidates import (
    BASE,
    NEAR,
    Candidate,
    Sources,
    find_sources,
    from_generator,
    from_sources,
    learned,
)
from weightgen.solve.choose import Comparison, simplest_within_noise
from weightgen.solve.halving import Search, halve
from weightgen.solve.journal import Journal
from weightgen.solve.judge import Judge
from weightgen.solve.learn import Learner
from weightgen.solve.record import Record
from weightgen.solve.solution import Solution, spent
from zoo.build.encoder import TextEncoder
from zoo.errors import UsageError

Report = Callable[[str, int, int], None]
OUT_OF_BUDGET = "finding candidates had taken half of the budget"


@dataclass(frozen=True, eq=False)
class Means:
    """What candidates are made from.

    Attributes:
        index: of the zoo, if there is one.
        generators: folders, each with whether it was asked for by name.
        filters: what records have to be.
        record: of the ways, if there is one for this base.
    """

    index: Index | None
    generators: Sequence[tuple[Path, bool]] = ()
    filters: Filters | None = None
    record: Record | None = None


def solve_task(
    encoder: TextEncoder,
    task: GivenTask,
    means: Means,
    budget: Budget,
    *,
    seed: int = 0,
    journal: Journal | None = None,
    report: Report | None = None,
) -> Solution:
    """Find the best weights for a task.

    Args:
        encoder: the base.
        task: what is known, with labelled examples or without.
        means: what candidates are made from.
        budget: of everything after loading.
        seed: the same seed, and a budget in steps, give the same result.
        journal: answers of an interrupted run, and where to keep them.
        report: progress.

    Raises:
        UsageError: if the task has no labels in words, or a generator that was asked for does not fit.
    """
    if not task.text.labels:
        raise UsageError(
            "the labels of the task are not known in words",
            "give --labels A,B,C, or --task FILE or --data FILE that names them",
        )
    told = report or (lambda *_: None)
    journal = journal or Journal(None, "", budget)
    base = Base(encoder, task.text.labels, journal.meter)
    sources, frozen, notes = _candidates(base, task, means, seed, told)
    if journal.resumed:
        notes.append("an interrupted search of the same task was continued")
    learner = Learner(base, task, seed)
    if len(task.y):
        judge = Judge(base, task.texts, task.y, journal, seed)
        search = halve(judge, frozen, lambda starts: list(learned(learner, sources, starts)), means.record, told)
        basis = "labels"
    else:
        search, basis = _without_labels(base, frozen, task, means.record)
    choice = search.choice
    told("write", 0, 1)
    weights = choice.weights
    if choice.learn is not None:
        weights = choice.learn(list(range(len(task.y))))
    weights = base.fresh(seed, rank=1) if weights is None else base.named(weights)
    controls = _controls(base, task, sources)
    return Solution(weights, choice, search, basis, tuple(notes), sources, controls, spent(journal))


def _candidates(
    base: Base, task: GivenTask, means: Means, seed: int, report: Report
) -> tuple[Sources, list[Candidate], list[str]]:
    """Everything that needs no labelled examples."""
    report("find candidates", 0, 1 + len(means.generators))
    sources, notes = Sources(), []
    if means.index is not None:
        sources = find_sources(means.index, task, base.encoder.base_model, means.filters)
        notes += sources.notes
    found = [BASE]
    for one in from_sources(sources):
        if not base.meter.finds():
            notes.append(f"retrieved adapters were left out from {one.name} on: {OUT_OF_BUDGET}")
            break
        found.append(one)
    for number, (folder, asked) in enumerate(means.generators):
        if not base.meter.finds():
            notes.append(f"the generator {folder.name} was left out: {OUT_OF_BUDGET}")
            continue
        report("find candidates", 1 + number, 1 + len(means.generators))
        name = folder.name if sum(folder.name == other.name for other, _ in means.generators) == 1 else str(folder)
        try:
            found += from_generator(folder, base, task, seed, f"generated-{name}")
        except UsageError as error:
            if asked:
                raise
            notes.append(f"the shipped generator was left out: {error.cause}")
    report("find candidates", 1 + len(means.generators), 1 + len(means.generators))
    return sources, found, notes


def _without_labels(
    base: Base, frozen: Sequence[Candidate], task: GivenTask, record: Record | None
) -> tuple[Search, str]:
    """Choose by the track record of the ways, or by calibrated retrieval alone.

    A retrieved adapter that is calibrated and not likely to beat the base is out. What is answered differently on the
    unlabelled texts bounds what the record promises.
    """
    search = Search(list(frozen))
    able = []
    for one in frozen:
        if one.probability is not None and one.probability < 0.5:
            search.fate[one.name] = f"retrieval gives it {100 * one.probability:.0f} % to beat the base"
        else:
            able.append(one)
    if record is not None:
        texts, judged = task.text.texts, [one for one in able if one is BASE or record.prior(one.way, BASE.way, 0)]
        cost = reading(len(texts) + len(base.labels))
        asked = judged if texts and base.meter.allows(cost * len(judged)) else []
        answers = {one.name: base.logits(one.weights, texts) for one in asked}
        comparison = Comparison(task.y, answers, record, 0)
        scored = []
        for one in able:
            known = comparison.scored(one)
            if known is None:
                search.fate[one.name] = "the track record does not know this way"
            else:
                scored.append(known)
                search.last[one.name] = known
        search.final = [one.candidate.name for one in scored]
        search.choice, search.best = simplest_within_noise(scored, comparison)
        return search, "track record"
    hits = [one for one in able if one.probability is not None]
    for one in frozen:
        if one.name != BASE.name and one not in hits:
            search.fate.setdefault(one.name, "nothing is known about it without labels")
    if not hits:
        return search, "nothing"
    best = max(hits, key=lambda one: one.probability or 0.0)
    search.final = [BASE.name, *(one.name for one in hits)]
    search.choice = search.best = best
    return search, "retrieval"


def _controls(base: Base, task: GivenTask, sources: Sources) -> dict[str, float]:
    """Macro-F1 on the labelled examples of what should be worse."""
    if not len(task.y):
        return {}
    found = {"always the most frequent label": macro_f1(majority(task.y), task.y)}
    if len(sources.adapters) > NEAR and base.meter.allows(reading(len(task.y))):
        logits = base.logits(sources.adapters[-1], task.texts)
        found[f"adapter of the least similar task, {sources.names[-1]}"] = macro_f1(logits.argmax(-1), task.y)
    return {name: round(value, 4) for name, value in found.items()}
