"""The section of docs/results.md on retrieval, from saved JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scripts.bench.retrieve_choice import calibrations

EVEN = 0.5
QUERIES = {
    "description": "description",
    "paraphrase": "a paraphrase of it",
    "texts": "64 unlabelled texts",
    "paraphrase, labels, texts": "paraphrase, labels and texts",
}

TEXT = """## Retrieval

Made by `python scripts/bench/retrieve.py render` from the JSON under `docs/results/retrieve/`.

### Twins of real adapters

{adapters} LoRA adapters of MiniLM for {tasks} text tasks, two seeds a task (one has one). Recall@1: the first hit is
an adapter of the task. Descriptions and labels are the very ones that the zoo stores, so those rows say only that
nothing is confused; paraphrases were written for this measurement without looking at similarities, and texts are
{texts} training examples without labels from the half that the zoo does not store. A query whose texts are encoded
already takes {ms:.1f} ms.

{twins}

By weights, the query being one of {paired} adapters that have a twin, against all others; *random gauge* changes the
factors of every adapter and not its function:

{weights}

The sketch misses the exact cosine by {error:.3f} (root mean square).
"""
SYNTHETIC = """
### A million entries

Unit vectors in {clusters:,} clusters, {queries} queries of the same clusters, one thread, top 10. *Overhead*: our
search (normalising, exact comparison of candidates, ids, strengths) against the call of FAISS inside it with the same
parameters and candidates, medians of alternating calls in one process. *Half filtered*: every second entry is
forbidden.

{synthetic}
"""
CHOICE = """
### The choice against the oracle's

{held} whole tasks ({tasks}),
those that the study of adapters from words chose on, as many as there was time for, in its order: neither its adapter
for all tasks nor any adapter that may be chosen was trained on them. Retrieval chooses one of {others} adapters of
other tasks and runs none. Accuracy in % on up to {examples} test examples, mean over tasks. *Oracle*: the best adapter
on the one half of these examples, scored on the other half, and the reverse; *in hindsight*: the best on all of them,
which is too good. {seconds:.0f} s of one core for everything.

{choice}

### Probabilities: logistic or isotonic

Mean squared error (Brier score) of the probability that an adapter beats the base, on tasks that were left out in turn,
{pairs} pairs of a task and an adapter of another task. The logistic function is what is used.

{calibration}

{verdict}
"""


def section(out: Path) -> str:
    """Markdown from the saved results; what is not measured is left out."""
    twins = json.loads((out / "twins.json").read_text())
    weights = twins["weights"]
    text = TEXT.format(
        adapters=twins["adapters"],
        tasks=twins["tasks"],
        texts=twins["texts"],
        ms=twins["ms_encoded_query"],
        twins=_table(
            ("known of the task", "recall@1, %"), [(how, f"{100 * r:.1f}") for how, r in twins["recall_at_1"].items()]
        ),
        paired=weights["adapters"],
        weights=_table(
            ("weights as", "recall@1, %", "in a random gauge, %"),
            [
                (how, f"{100 * row['as_stored']:.1f}", f"{100 * row['random_gauge']:.1f}")
                for how, row in weights["ways"].items()
            ],
        ),
        error=weights["sketch_rms_error"],
    )
    synthetic = [json.loads(path.read_text()) for path in sorted(out.glob("synthetic-*.json"))]
    if synthetic:
        first = synthetic[0]
        text += SYNTHETIC.format(clusters=first["clusters"], queries=first["queries"], synthetic=_synthetic(synthetic))
    if not (out / "choice.json").is_file():
        return text
    saved = json.loads((out / "choice.json").read_text())
    found = {how: calibrations(saved, how) for how in QUERIES}
    tasks = saved["tasks"]
    return text + CHOICE.format(
        held=len(tasks),
        tasks=", ".join(tasks),
        others=len(next(iter(tasks.values()))["adapters"]),
        examples=max(one["examples"] for one in tasks.values()),
        seconds=saved["cpu_seconds"],
        choice=_choice(tasks),
        pairs=sum(len(one["adapters"]) for one in tasks.values()),
        calibration=_calibration(found),
        verdict=_verdict(tasks, found),
    )


def _table(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def _synthetic(rows: list[dict[str, Any]]) -> str:
    heading = ("entries", "size", "index", "effort", "build, s (threads)", "recall@10", "of FAISS alone")
    heading += ("ms a query (p95)", "ms of FAISS", "overhead, %", "half filtered, ms")
    cells = [
        (
            f"{row['entries']:,}",
            str(row["size"]),
            row["factory"],
            str(row["effort"]),
            f"{row['build_seconds']:.0f} ({row['build_threads']})",
            f"{row['recall_at_10']:.3f}",
            f"{row['recall_at_10_faiss']:.3f}",
            f"{row['ms']:.2f} ({row['ms_p95']:.2f})",
            f"{row['ms_faiss']:.2f}",
            f"{100 * row['overhead']:+.1f}",
            f"{row['ms_half_filtered']:.2f}",
        )
        for row in rows
    ]
    return _table(heading, cells)


def _first(one: Mapping[str, Any], how: str) -> dict[str, float]:
    """Scores of the adapter that is most similar."""
    strengths = one["strengths"][how]
    return one["adapters"][max(strengths, key=lambda task: strengths[task])]


def _crossed(one: Mapping[str, Any]) -> float:
    """Accuracy of the adapter that is best on the other half."""
    adapters = one["adapters"].values()
    halves = ("first", "second")
    return sum(max(adapters, key=lambda a, h=h: a[h])[o] for h, o in (halves, halves[::-1])) / 2


def _choice(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    def mean(values: Iterable[float]) -> float:
        listed = list(values)
        return sum(listed) / len(listed)

    oracle = mean(_crossed(one) for one in tasks.values())
    rows = {
        "the base": [one["base"]["accuracy"] for one in tasks.values()],
        "an adapter of another task, mean of all": [
            mean(a["accuracy"] for a in one["adapters"].values()) for one in tasks.values()
        ],
        "one adapter for all tasks": [one["static"]["accuracy"] for one in tasks.values()],
        **{
            f"retrieved by {name}": [_first(one, how)["accuracy"] for one in tasks.values()]
            for how, name in QUERIES.items()
        },
        "oracle": [_crossed(one) for one in tasks.values()],
        "oracle in hindsight": [max(a["accuracy"] for a in one["adapters"].values()) for one in tasks.values()],
    }
    bases = rows["the base"]
    lines = []
    for name, values in rows.items():
        better = sum(value > base for value, base in zip(values, bases, strict=True))
        lines.append((name, f"{100 * mean(values):.1f}", f"{100 * (oracle - mean(values)):.1f}", f"{better}"))
    return _table(("chosen", "accuracy, %", "lost against the oracle", "better than the base"), lines)


def _calibration(found: Mapping[str, Mapping[str, Any]]) -> str:
    kinds = list(next(iter(found.values())))
    rows = []
    for how, name in QUERIES.items():
        cells = [f"{found[how][kind]['brier']:.3f} / {found[how][kind]['brier_first']:.3f}" for kind in kinds]
        rows.append((name, *cells))
    return _table(("known of the task", *(f"{kind}: all pairs / first hits" for kind in kinds)), rows)


def _verdict(tasks: Mapping[str, Mapping[str, Any]], found: Mapping[str, Mapping[str, Any]]) -> str:
    """What following the advice gives: the hit where its probability is at least one half, else the base."""
    parts = []
    for how, name in QUERIES.items():
        sure = found[how]["logistic"]["first"]
        used = [(_first(one, how) if sure[task] >= EVEN else one["base"])["accuracy"] for task, one in tasks.items()]
        advised = sum(sure[task] < EVEN for task in tasks)
        parts.append(f"{name}: {100 * sum(used) / len(used):.1f} (base advised on {advised} of {len(tasks)})")
    listed = ";\n".join(parts)
    return f"Following the advice at a probability of one half, accuracy by\n{listed}."
