"""The section of docs/results.md on retrieval, from saved JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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

{held} held-out tasks; all adapters of the task itself are left out. The oracle runs one adapter of every other task on
96 validation examples and takes the best; retrieval runs none. Accuracy in % on up to 500 test examples, the task of
the adapter that was chosen with the probability that it beats the base, calibrated on {pairs} pairs of the other tasks.
{seconds:.0f} s of one core for everything.

{choice}

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
    choice = json.loads((out / "choice.json").read_text())
    return text + CHOICE.format(
        held=len(choice["rows"]),
        pairs=choice["calibration_pairs"],
        seconds=choice["cpu_seconds"],
        choice=_choice(choice["rows"]),
        verdict=_verdict(choice["rows"]),
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


def _ways(rows: list[dict[str, Any]]) -> list[str]:
    return [how for how, value in rows[0].items() if isinstance(value, dict)]


def _choice(rows: list[dict[str, Any]]) -> str:
    ways = _ways(rows)
    cells = []
    for row in rows:
        found = [f"{100 * row[how]['test']:.1f} ({row[how]['task']}{_percent(row[how])})" for how in ways]
        cells.append((row["task"], f"{100 * row['base']:.1f}", f"{100 * row['oracle']:.1f}", *found))
    mean = {key: sum(row[key] for row in rows) / len(rows) for key in ("base", "oracle")}
    means = [sum(row[how]["test"] for row in rows) / len(rows) for how in ways]
    cells.append(("mean", *(f"{100 * value:.1f}" for value in (mean["base"], mean["oracle"], *means))))
    lost = [f"{100 * (mean['oracle'] - value):.1f}" for value in means]
    cells.append(("lost against the oracle", f"{100 * (mean['oracle'] - mean['base']):.1f}", "", *lost))
    return _table(("task", "base", "oracle", *ways), cells)


def _percent(found: dict[str, Any]) -> str:
    return "" if found["probability"] is None else f", {100 * found['probability']:.0f} %"


def _verdict(rows: list[dict[str, Any]]) -> str:
    """What following the advice gives: the hit where its probability is at least one half, else the base."""
    parts = []
    for how in _ways(rows):
        if any(row[how]["probability"] is None for row in rows):
            continue
        used = [row[how]["test"] if row[how]["probability"] >= 0.5 else row["base"] for row in rows]
        base = sum(row[how]["probability"] < 0.5 for row in rows)
        right = sum((row[how]["probability"] >= 0.5) == (row[how]["test"] > row["base"]) for row in rows)
        mean = 100 * sum(used) / len(used)
        parts.append(f"{how}: {mean:.1f} (base advised on {base}, right on {right} of {len(rows)})")
    return f"Following the advice at a probability of one half: {'; '.join(parts)}."
