"""Successive halving (Jamieson and Talwalkar 2016): more labelled examples for fewer candidates, under one budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from weightgen.solve.candidates import BASE, GENERATED, Candidate
from weightgen.solve.choose import Comparison, Scored, settled, simplest_within_noise
from weightgen.solve.judge import Judge
from weightgen.solve.record import Record

LEAST = 3
STARTS = 2
"""Candidates that fine-tuning starts from, a fresh adapter aside."""
USUAL = (("static",), GENERATED)
"""Ways that the record of fine-tuning was measured from."""
Report = Callable[[str, int, int], None]


@dataclass
class Search:
    """What became of every candidate.

    Attributes:
        candidates: all of them, in the order they were tried.
        fate: why one is not in the final, by name.
        last: candidates as they were last judged, by name.
        judged: how many examples that was on.
        final: names of those that were compared at last, on the same examples.
        choice, best: of the final.
    """

    candidates: list[Candidate]
    fate: dict[str, str] = field(default_factory=dict)
    last: dict[str, Scored] = field(default_factory=dict)
    judged: dict[str, int] = field(default_factory=dict)
    final: list[str] = field(default_factory=list)
    choice: Candidate = BASE
    best: Candidate = BASE


def halve(
    judge: Judge,
    frozen: Sequence[Candidate],
    learned: Callable[[Sequence[Candidate]], Sequence[Candidate]],
    record: Record | None,
    report: Report,
) -> Search:
    """Judge candidates on more and more examples.

    Candidates that learn nothing start with a quarter of the examples; the better half goes on to half of them, where
    those that learn join; the better half of these sees all. The base is always among them, and is never dropped.

    Args:
        judge: asks, and knows the meter.
        frozen: candidates that learn nothing, the base first.
        learned: from what training starts from to candidates that learn, the most promising first.
        record: of the ways.
        report: progress.
    """
    search, alive, count = Search(list(frozen)), list(frozen), len(judge.blocks)
    rungs = sorted({1, (count + 1) // 2, count})
    joining = min(1, len(rungs) - 1)
    for number, blocks in enumerate(rungs):
        if number == joining and len(judge.folds) > 1:
            new = learned(_starts(frozen, alive))
            search.candidates += new
            judge.ask(BASE, range(count))
            if judge.right(BASE) and settled(len(judge.y), record, judge.shots):
                search.fate |= {one.name: "the base answers every example rightly" for one in new}
            else:
                alive += _worth_it(search, judge, new, record)
        ranked = _rung(search, judge, alive, blocks, record, report)
        kept = ranked if blocks == count else ranked[: max(LEAST, (len(ranked) + 1) // 2)]
        for one in ranked[len(kept) :]:
            search.fate[one.name] = f"dropped after {search.judged[one.name]} examples"
        alive = [BASE, *kept]
    return search


def _worth_it(search: Search, judge: Judge, new: Sequence[Candidate], record: Record | None) -> list[Candidate]:
    """Leave out what learns and did worse elsewhere than fine-tuning, beyond the error, if that can be afforded."""
    usual = next((one for one in new if one.way == "finetuned"), None)
    if record is None or usual is None or usual.cost is None:
        return list(new)
    wanted = judge.cost(usual, range(len(judge.blocks))) + usual.cost(range(len(judge.y)))
    if not judge.base.meter.allows(wanted):
        return list(new)
    kept = []
    for one in new:
        behind = record.prior(one.way, "finetuned", judge.shots)
        if behind is not None and behind.mean + behind.error < 0:
            search.fate[one.name] = "the track record says that fine-tuning is better"
        else:
            kept.append(one)
    return kept


def _starts(frozen: Sequence[Candidate], alive: Sequence[Candidate]) -> list[Candidate]:
    """What fine-tuning starts from: where its record was measured from, if that is there, then the best so far."""
    usual = [next((one for one in frozen if one.way in ways), None) for ways in USUAL]
    known = [one for one in usual if one is not None]
    best = [one for one in alive if one.weights is not None and one not in known]
    return [*known, *best][:STARTS]


def _rung(
    search: Search, judge: Judge, alive: Sequence[Candidate], blocks: int, record: Record | None, report: Report
) -> list[Candidate]:
    """Ask all candidates that the budget allows; those that answered, the base aside, the best first."""
    rows, count = judge.rows(range(blocks)), len(judge.blocks)
    stage, answers = f"judge on {len(rows)} of {len(judge.y)} examples", {}
    promised: dict[str, float] = {}
    for place, candidate in enumerate(alive):
        report(stage, place, len(alive))
        if not all(part in answers for part in candidate.parts if part not in search.last):
            search.fate[candidate.name] = "not all that it is made of was judged"
            continue
        # What learns is begun only if it can be finished, beside what was begun: all folds, then all examples at once.
        again = candidate.cost(range(len(judge.y))) if candidate.cost else 0.0
        parts = [one for one in alive if one.name in candidate.parts]
        wanted = judge.cost(candidate, range(count if candidate.cost else blocks), parts) + again
        if candidate.name != BASE.name and not judge.base.meter.allows(wanted + sum(promised.values())):
            search.fate[candidate.name] = "the budget did not allow it"
            continue
        judge.ask(candidate, range(blocks))
        promised[candidate.name] = judge.cost(candidate, range(count), parts) if candidate.cost else 0.0
        answers[candidate.name] = judge.answers(candidate, range(blocks))
    report(stage, len(alive), len(alive))
    answered = [one for one in alive if one.name in answers]
    if len(answered) == 1 and search.final:
        return []  # nothing but the base could be asked: what was judged before stands
    comparison = Comparison(judge.y[rows], answers, record, judge.shots, judge.share)
    scored = [one for one in map(comparison.scored, answered) if one is not None]
    for one in scored:
        search.last[one.candidate.name], search.judged[one.candidate.name] = one, len(rows)
    search.final = [one.name for one in answered]
    search.choice, search.best = simplest_within_noise(scored, comparison)
    usual = comparison.usual(scored)  # is never dropped: the others are measured against it
    ranked = sorted(scored, key=lambda one: (one is not usual, -one.gain.value, one.candidate.level))
    return [one.candidate for one in ranked if one.candidate.name != BASE.name]
