"""Tables of a portfolio beside every way alone, from saved rows only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from weightgen.solve.ways import WAYS

SHOTS, RESAMPLES, LEAST_TASKS = (0, 4, 16, 64), 4000, 4
HEADS, RULE = " | ".join(f"{shots} shots" for shots in SHOTS), "---|" * len(SHOTS)
Scores = Mapping[str, Mapping[tuple[str, int], float]]
"""Macro-F1 by task, then by way and labelled examples a label."""


def read(folder: Path, kind: str) -> list[dict[str, Any]]:
    """What is measured in full."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{kind}-*.json"))]
    return [one for one in files if any(row.get("done") for row in one["rows"])]


def by_task(files: Sequence[Mapping[str, Any]]) -> Scores:
    """Mean over the draws; at a number of shots all ways are measured in the same ones."""
    found: dict[str, dict[tuple[str, int], float]] = {}
    for task in sorted({one["task"] for one in files}):
        draws = [_by_way(one["rows"]) for one in files if one["task"] == task]
        every = {key: [draw[key] for draw in draws if key in draw] for draw in draws for key in draw}
        found[task] = {key: sum(values) / len(values) for key, values in every.items()}
    return found


def _by_way(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], float]:
    """Ways that learn nothing count at every number of shots."""
    found = {}
    for row in rows:
        if "macro_f1" in row:
            fixed = row["way"] in WAYS and not WAYS[row["way"]].learned
            for shots in SHOTS if fixed else (row["shots"],):
                found[row["way"], shots] = row["macro_f1"]
    return found


def column(scores: Scores, way: str, shots: int) -> torch.Tensor | None:
    """Of one way over the tasks, if every task has it."""
    values = [one.get((way, shots)) for one in scores.values()]
    return None if None in values else torch.tensor([value for value in values if value is not None])


def best_way(scores: Scores, shots: int) -> str:
    """The single way with the highest mean."""
    means = {way: found.mean().item() for way in WAYS if (found := column(scores, way, shots)) is not None}
    return max(means, key=lambda way: means[way])


def group(scores: Scores) -> str:
    """Means of all ways, and what the portfolio is above some of them."""
    return f"{_means(scores)}\n\n{differences(scores)}"


def _means(scores: Scores) -> str:
    titles = {"portfolio": "**portfolio**", **{way: one.what for way, one in WAYS.items()}}
    lines = [f"| | {HEADS} |", f"|---|{RULE}"]
    for way, title in titles.items():
        columns = [column(scores, way, shots) for shots in SHOTS]
        cells = ["" if found is None else f"{100 * found.mean():.1f}" for found in columns]
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    cells = []
    for shots in SHOTS:
        columns = [found for way in WAYS if (found := column(scores, way, shots)) is not None]
        cells.append(f"{100 * torch.stack(columns).amax(0).mean():.1f}")
    return "\n".join([*lines, f"| the best way of every task, looked up on its test examples | {' | '.join(cells)} |"])


def differences(scores: Scores) -> str:
    """What the portfolio is above some ways, with intervals over resampled tasks."""
    rng = torch.Generator().manual_seed(0)
    lines = [f"| portfolio minus | {HEADS} |", f"|---|{RULE}"]
    for name in ("base", "static", "finetuned", "best single method"):
        cells = []
        for shots in SHOTS:
            way = best_way(scores, shots) if name.startswith("best") else name
            ours, other = column(scores, "portfolio", shots), column(scores, way, shots)
            if ours is None or other is None:
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
