"""The section of docs/results.md on the portfolio, from the saved JSON only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.bench._page import put
from scripts.bench.solve import FRESH, RECORDED, SEEN
from scripts.bench.solve_history import render_history
from scripts.bench.solve_tables import (
    HEADS,
    RESAMPLES,
    RULE,
    SHOTS,
    Scores,
    best_way,
    by_task,
    column,
    differences,
    group,
    read,
)
from weightgen.solve.record import DRAW, SHIPPED, Record
from weightgen.solve.ways import WAYS
from zoo.build.encoder import MINILM

CLEAN = 5
"""The draw that was measured last, with nothing changed since."""
SECTION = """## The portfolio

Made by `python scripts/bench/solve.py render` from `docs/results/solve`. Whole tasks are held out: neither the
adapters (34 tasks, the training split of the zoo of the study above) nor the generator have seen them. Everything knows
description, label texts and {unlabelled} unlabelled texts; shots are labelled examples a label. Macro-F1 in %, on
{judged} test examples a task at most. Budget of `solve`: {budget}. Every task counts once, with the
mean over the draws of the shots ({draws}). Intervals are 95 %, from {resamples} paired resamples of the
tasks. They are few.

{short}

All {count} held-out tasks:

{tables}

Best single method: the one way that is best on average at that number of shots, looked up on the test examples after
the fact. aTLAS, LoraHub and training from nothing were measured alone on tasks for choosing only: on the five tasks of
the first portfolio aTLAS had 65.5, 65.0 and 63.3, training from nothing 62.5, 62.2 and 68.0.

The portfolio was changed after test tasks had been seen, eight times
([what was seen and changed, and every earlier table](results/solve/earlier/README.md)). Draws 1 to 4 of
the shots had been seen before the last change; only draw {clean_draw} was measured with nothing changed since:

{clean}

By how much a task had been looked at before. The {seen_count} that all earlier portfolios were measured on:

{seen}

The {fresh_count} that only the fourth was measured on ({fresh_names}):

{fresh}

Chosen ways, all tasks and label counts:

{chosen}

{abstention}

{runs}

### The track record that few labels are read beside

Gain over the base in points of macro-F1, mean and deviation over tasks, on their validation examples. None of these
tasks is one of the above: {record_tasks}.

| way | {record_heads} | tasks |
|---|{record_rule}---|
{record}
"""


def render(folder: Path) -> None:
    """Write the section, and the page on earlier portfolios."""
    render_history(folder / "earlier")
    done = read(folder, "test")
    scores = by_task(done)
    fresh = {name: scores[name] for name in FRESH if name in scores}
    record = Record.load(SHIPPED, MINILM)
    assert record is not None
    known = sorted(
        {task for shots in record.scores.values() for tasks in shots.values() for task in tasks if DRAW not in task}
    )
    text = SECTION.format(
        unlabelled=done[0]["unlabelled"],
        judged=done[0]["most_examples"],
        budget=_budget(done[0]["budget_steps"]),
        draws=_draws(done),
        resamples=RESAMPLES,
        short=_short(scores),
        count=len(scores),
        tables=group(scores),
        clean_draw=CLEAN,
        clean=differences(by_task([one for one in done if one.get("seed") == CLEAN])),
        seen_count=len(SEEN),
        seen=differences({name: one for name, one in scores.items() if name in SEEN}),
        fresh_count=len(fresh),
        fresh_names=", ".join(fresh),
        fresh=differences(fresh),
        chosen=_chosen(done),
        abstention=_abstention(done, read(folder, "easy")),
        runs=_runs(folder),
        record_tasks=", ".join(known),
        record_heads=" | ".join(f"{shots} shots" for shots in RECORDED),
        record_rule="---|" * len(RECORDED),
        record=_record(record),
    )
    put("solve", text)
    print(text)


def _draws(files: Sequence[Mapping[str, Any]]) -> str:
    """How many, by shots."""
    every = [(row["shots"], one["task"]) for one in files for row in one["rows"] if row["way"] == "portfolio"]
    least = {shots: min(every.count(key) for key in every if key[0] == shots) for shots in SHOTS[1:]}
    return ", ".join(f"{count} at {shots} shots" for shots, count in least.items())


def _budget(steps: Mapping[str, int]) -> str:
    """Steps, and where they are others."""
    usual = steps["0"]
    other = [f"{count} with {shots} shots" for shots, count in steps.items() if count != usual]
    return ", ".join([f"{usual} steps", *other])


def _chosen(files: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"| task | {HEADS} |", f"|---|{RULE}"]
    for task in sorted({one["task"] for one in files}):
        cells = []
        for shots in SHOTS:
            rows = [row for one in files if one["task"] == task for row in one["rows"]]
            rows = [row for row in rows if (row["way"], row["shots"]) == ("portfolio", shots)]
            scores: dict[str, list[str]] = {}
            for row in rows[: None if shots else 1]:  # without labels nothing is drawn
                scores.setdefault(row["chosen_way"], []).append(f"{100 * row['macro_f1']:.1f}")
            cells.append("; ".join(f"{way} {', '.join(found)}" for way, found in scores.items()))
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _abstention(files: Sequence[Mapping[str, Any]], easy: Sequence[Mapping[str, Any]]) -> str:
    """How often the advice to use the base was right, and how often it would have been."""
    lines = [f"Abstention on these tasks: {_advised(files)}"]
    if easy:
        bases = [next(row["macro_f1"] for row in one["rows"] if row["way"] == "base") for one in easy]
        lines.append(
            f"Where there is little to be gained: {len(easy)} tasks of two labels of a held-out task each; the "
            f"base answers\nat least 99 % of the training examples rightly (macro-F1 {100 * min(bases):.1f} to "
            f"{100 * max(bases):.1f} on test examples).\n{_advised(easy)}"
        )
    lines.append(
        "It is right if the best way is within one standard error of the base on the test examples, paired. Rivals are "
        "all ways\nthat were measured alone at that number of shots or without labels."
    )
    return "\n\n".join(lines)


def _advised(files: Sequence[Mapping[str, Any]]) -> str:
    said = right = cases = due = 0
    for one in files:
        rows = [row for row in one["rows"] if "macro_f1" in row]
        base = next(row for row in rows if row["way"] == "base")
        again = any(other["task"] == one["task"] for other in files[: files.index(one)])
        for ours in (row for row in rows if row["way"] == "portfolio"):
            if again and not ours["shots"]:
                continue  # without labels nothing is drawn
            fixed = [row for row in rows if row["way"] in WAYS and not WAYS[row["way"]].learned]
            learned = [row for row in rows if row["way"] in WAYS and WAYS[row["way"]].learned]
            rivals = fixed + [row for row in learned if row["shots"] == ours["shots"]]
            best = max(rivals, key=lambda row: row["macro_f1"])
            within = best["macro_f1"] - base["macro_f1"] <= best["noise"]
            cases, due = cases + 1, due + within
            if ours["chosen_way"] == "base":
                said, right = said + 1, right + within
    share = f", {right} of them rightly" if said else ""
    return f"`solve` advised the base in {said} of {cases} cases{share}; it would have been right in {due}."


def _short(scores: Scores) -> str:
    """Whether the targets are met, at how many numbers of shots."""

    def above(other: Callable[[int], str]) -> list[int]:
        pairs = [(column(scores, "portfolio", n), column(scores, other(n), n), n) for n in SHOTS]
        return [n for ours, its, n in pairs if ours is not None and its is not None and ours.mean() >= its.mean()]

    def said(shots: list[int]) -> str:
        return "at " + ", ".join(map(str, shots)) + " shots" if shots else "nowhere"

    static, best = above(lambda _: "static"), above(lambda n: best_way(scores, n))
    return (
        f"In short: the mean of the portfolio is at least that of one adapter for all tasks {said(static)}, and at "
        f"least\nthat of the best single method {said(best)}, of {', '.join(map(str, SHOTS))}."
    )


def _runs(folder: Path) -> str:
    """Time and memory of whole commands."""
    path = folder / "budget.json"
    if not path.is_file():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    head = "| task | labelled | whole command, s | of which search, s | steps | peak memory, MiB | chosen |"
    lines = [f"Whole commands at `--budget {found['budget']}`, {found['machine']}:", "", head, "|" + "---|" * 7]
    for row in found["runs"]:
        cells = [row["task"], row["labelled"], f"{row['wall']:.0f}", f"{row['seconds']:.0f}", f"{row['steps']:.0f}"]
        lines.append(f"| {' | '.join(map(str, [*cells, row['peak_memory_mib'], row['choice']]))} |")
    return "\n".join(lines)


def _record(record: Record) -> str:
    lines = []
    for way in WAYS:
        priors = [record.prior(way, "base", shots) for shots in RECORDED]
        if way == "base" or priors[0] is None:
            continue
        cells = ["" if one is None else f"{100 * one.mean:+.1f} ± {100 * one.spread:.1f}" for one in priors]
        count = len({task.partition(DRAW)[0] for task in next(iter(record.scores[way].values()))})
        lines.append(f"| {way} | {' | '.join(cells)} | {count} |")
    return "\n".join(lines)
