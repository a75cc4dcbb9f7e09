"""The section of docs/results.md on the portfolio, from the saved JSON only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.bench._page import put
from scripts.bench.solve import FRESH, SEEN
from weightgen.solve.record import DRAW, SHIPPED, Record
from weightgen.solve.ways import WAYS
from zoo.build.encoder import MINILM

SHOTS, RESAMPLES, LEAST_TASKS = (0, 4, 16, 64), 4000, 4
SECTION = """## The portfolio

Made by `python scripts/bench/solve.py render` from `docs/results/solve`. Whole tasks are held out: neither the
adapters (34 tasks, the training split of the zoo of the study above) nor the generator have seen them. Everything knows
description, label texts and {unlabelled} unlabelled texts; shots are labelled examples a label. Macro-F1 in %, on
{judged} test examples a task at most. Budget of `solve`: {budget}. Every task counts once, with the
mean over the draws of the shots ({draws}). Intervals, where there are at least four tasks, are 95 %, from {resamples}
paired resamples of the tasks. They are few.

Earlier portfolios were measured on the {seen_count} test tasks, and what was seen there led to this one. The
first, on five tasks, often did not train the adapter for all tasks further. After that was seen, it always is; no more
than one point of the estimate is given up for a simpler candidate; two folds instead of four; what the track record
says is worse than fine-tuning is not begun; means of fine-tuned adapters join; without labels the record promises no
more than the share of texts that are answered differently. The second, on eleven tasks, took the best of a dozen noisy
scores, and that was often not the best. After that was seen, what learned from half of the labels is credited with what
all are worth on other tasks (on seven of the eleven already); a candidate has to be ahead of the way that is best on
other tasks by more than a standard error; and five more tasks of the record were measured with labels. The third, on
all, gave up to a point of the estimate away for fine-tuning one adapter in place of the mean of two, and lost as much.
After that was seen, the two count as equally simple, nothing is given up among equals, and the way that is best on
other tasks is the one with the highest mean there, be it within the error. With 64 shots it has 900 steps instead of
430, which did not suffice to judge that mean. The fourth, on one draw of the shots, was .4 and .2 below the mean of
fine-tuned adapters at 16 and 64 shots, because the best of a dozen was often ahead by chance. After that was seen, the
best of many has to be further ahead than the best of few (after Bonferroni), and the record of the ways that learn is
compared over three draws of the shots. These rules were reasoned, not tuned; their constants are the first that were
tried. The draws of the shots below are others than those before. The first of them was measured twice at 4 shots: the
record had compared one draw of aTLAS with the mean of three draws of fine-tuning, so aTLAS was taken on five tasks, and
the portfolio was .8 below the best single method there; draws are paired now. In both draws the base was advised where
the record promised a few points more, but less than the noise, wrongly in all of five cases (one cost 20 points). After
that was seen, no more than a point of an estimate is given up for the base either where there is a record, and these
five were measured again. These draws, and the second and third draw of the record, are of a zoo and a generator that
were built again by the same recipe (other rounding). Only the fourth portfolio was measured before on
{fresh}; the generator was chosen by their validation examples.

{short}

{tables}

Best single method: the one way that is best on average at that number of shots, looked up on the test examples after
the fact. aTLAS, LoraHub and training from nothing were measured alone on tasks for choosing only: on the five tasks of
the first portfolio aTLAS had 65.5, 65.0 and 63.3, training from nothing 62.5, 62.2 and 68.0.

Chosen ways, all tasks and label counts:

{chosen}

{abstention}

{runs}

### The earlier portfolios

The fourth portfolio, one draw of the shots:

{fourth}

The third portfolio, 430 steps:

{third}

The second portfolio, 430 steps, same tasks where they are above:

{second}

The first portfolio, 300 steps, one draw of the shots. There is no `soup` and no training from what a generator wrote
among the ways alone.

{before}

### The track record that few labels are read beside

Gain over the base in points of macro-F1, mean and deviation over tasks, on their validation examples. None of these
tasks is one of the above: {record_tasks}.

| way | {record_heads} | tasks |
|---|{record_rule}---|
{record}
"""
GROUP = """{title}:

{table}

| portfolio minus | {heads} |
|---|{rule}
{differences}"""


def render(folder: Path) -> None:
    """Write the section."""
    done = _read(folder, "test")
    scores = _by_task(done)
    fresh = [name for name in FRESH if name in scores]
    seen = [name for name in scores if name in SEEN]
    groups = {
        f"Measured in full, {len(seen)} of {len(SEEN)} test tasks": seen,
        f"The {len(fresh)} that no portfolio but the fourth was measured on before": fresh,
    }
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
        fresh=", ".join(fresh) or "none",
        seen_count=len(SEEN),
        resamples=RESAMPLES,
        tables="\n\n".join(_group(title, {n: scores[n] for n in names}) for title, names in groups.items() if names),
        short=_short({name: scores[name] for name in seen}),
        chosen=_chosen(done),
        abstention=_abstention(done, _read(folder, "easy")),
        runs=_runs(folder),
        fourth=_earlier(folder / "earlier" / "fourth", "Means over the fourteen", SEEN),
        third=_earlier(folder / "earlier" / "third", "Means over the fourteen"),
        second=_earlier(folder / "earlier" / "second", "Means over the eleven"),
        before=_earlier(folder / "earlier" / "before", "Means over the five"),
        record_tasks=", ".join(known),
        record_heads=" | ".join(f"{shots} shots" for shots in SHOTS[1:]),
        record_rule="---|" * (len(SHOTS) - 1),
        record=_record(record),
    )
    put("solve", text)
    print(text)


def _earlier(folder: Path, title: str, names: Sequence[str] = ()) -> str:
    """The tables of an earlier portfolio, on all of its tasks or some."""
    scores = _by_task(_read(folder, "test"))
    return _group(title, {name: one for name, one in scores.items() if not names or name in names})


def _by_task(files: Sequence[Mapping[str, Any]]) -> dict[str, dict[tuple[str, int], float]]:
    """Mean over the draws; at a number of shots all ways are measured in the same ones."""
    found: dict[str, dict[tuple[str, int], float]] = {}
    for task in sorted({one["task"] for one in files}):
        draws = [_scores(one["rows"]) for one in files if one["task"] == task]
        every = {key: [draw[key] for draw in draws if key in draw] for draw in draws for key in draw}
        found[task] = {key: sum(values) / len(values) for key, values in every.items()}
    return found


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


def _read(folder: Path, kind: str) -> list[dict[str, Any]]:
    """What is measured in full."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{kind}-*.json"))]
    return [one for one in files if any(row.get("done") for row in one["rows"])]


def _group(title: str, scores: Mapping[str, Mapping[tuple[str, int], float]]) -> str:
    return GROUP.format(
        title=title,
        table=_table(scores),
        heads=" | ".join(f"{shots} shots" for shots in SHOTS),
        rule="---|" * len(SHOTS),
        differences=_differences(scores),
    )


def _scores(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], float]:
    """Macro-F1 by way and shots; ways that learn nothing count at every number of shots."""
    found = {}
    for row in rows:
        if "macro_f1" in row:
            fixed = row["way"] in WAYS and not WAYS[row["way"]].learned
            for shots in SHOTS if fixed else (row["shots"],):
                found[row["way"], shots] = row["macro_f1"]
    return found


def _column(scores: Mapping[str, Mapping[tuple[str, int], float]], way: str, shots: int) -> torch.Tensor | None:
    values = [one.get((way, shots)) for one in scores.values()]
    return None if None in values else torch.tensor([value for value in values if value is not None])


def _best(scores: Mapping[str, Mapping[tuple[str, int], float]], shots: int) -> str:
    means = {way: column.mean().item() for way in WAYS if (column := _column(scores, way, shots)) is not None}
    return max(means, key=lambda way: means[way])


def _table(scores: Mapping[str, Mapping[tuple[str, int], float]]) -> str:
    titles = {"portfolio": "**portfolio**", **{way: one.what for way, one in WAYS.items()}}
    lines = [f"| | {' | '.join(f'{shots} shots' for shots in SHOTS)} |", "|---|" + "---|" * len(SHOTS)]
    for way, title in titles.items():
        columns = [_column(scores, way, shots) for shots in SHOTS]
        cells = ["" if column is None else f"{100 * column.mean():.1f}" for column in columns]
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    cells = []
    for shots in SHOTS:
        best = torch.stack([c for way in WAYS if (c := _column(scores, way, shots)) is not None]).amax(0)
        cells.append(f"{100 * best.mean():.1f}")
    return "\n".join([*lines, f"| the best way of every task, looked up on its test examples | {' | '.join(cells)} |"])


def _differences(scores: Mapping[str, Mapping[tuple[str, int], float]]) -> str:
    rng = torch.Generator().manual_seed(0)
    lines = []
    for name in ("base", "static", "finetuned", "best single method"):
        cells = []
        for shots in SHOTS:
            way = _best(scores, shots) if name.startswith("best") else name
            ours, other = _column(scores, "portfolio", shots), _column(scores, way, shots)
            assert ours is not None
            if other is None:
                cells.append("")
                continue
            gain = 100 * (ours - other)
            drawn = gain[torch.randint(len(gain), (RESAMPLES, len(gain)), generator=rng)].mean(1)
            low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975])).tolist()
            suffix = f" ({way})" if name.startswith("best") else ""
            ends = f" [{low:+.1f}, {high:+.1f}]" if len(gain) >= LEAST_TASKS else ""
            cells.append(f"{gain.mean():+.1f}{ends}{suffix}")
        title = {"static": "one adapter for all tasks", "finetuned": "the same, trained further"}.get(name, name)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _chosen(files: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| task | " + " | ".join(f"{shots} shots" for shots in SHOTS) + " |", "|---|" + "---|" * len(SHOTS)]
    for task in sorted({one["task"] for one in files}):
        cells = []
        for shots in SHOTS:
            rows = [row for one in files if one["task"] == task for row in one["rows"]]
            rows = [row for row in rows if (row["way"], row["shots"]) == ("portfolio", shots)]
            said = [f"{row['chosen_way']} {100 * row['macro_f1']:.1f}" for row in rows]
            cells.append(", ".join(dict.fromkeys(said)))
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


def _short(scores: Mapping[str, Mapping[tuple[str, int], float]]) -> str:
    """Whether the targets are met, at how many numbers of shots."""

    def above(other: Callable[[int], str]) -> list[int]:
        pairs = [(_column(scores, "portfolio", n), _column(scores, other(n), n), n) for n in SHOTS]
        return [n for ours, its, n in pairs if ours is not None and its is not None and ours.mean() >= its.mean()]

    def said(shots: list[int]) -> str:
        return "at " + ", ".join(map(str, shots)) + " shots" if shots else "nowhere"

    static, best = above(lambda _: "static"), above(lambda n: _best(scores, n))
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
        priors = [record.prior(way, "base", shots) for shots in SHOTS[1:]]
        if way == "base" or priors[0] is None:
            continue
        cells = ["" if one is None else f"{100 * one.mean:+.1f} ± {100 * one.spread:.1f}" for one in priors]
        count = len({task.partition(DRAW)[0] for task in next(iter(record.scores[way].values()))})
        lines.append(f"| {way} | {' | '.join(cells)} | {count} |")
    return "\n".join(lines)
