"""Tables of the quality of weak-to-strong decoding: levels, true closure of the gap, and paired differences."""

from __future__ import annotations

from typing import Any

import torch

METHODS = (
    "anchor", "expert", "average of strong and expert", "static 1", "static best", "dynamic", "dynamic, grid",
    "pooled (ours)",
)  # fmt: skip
COMPARED = ("expert", "static 1", "static best")
Runs = dict[str, list[dict[str, Any]]]
"""Saved results of each task, one entry a seed of the expert."""


def per_token(score: dict[str, list[float]], key: str) -> torch.Tensor:
    """Mean over the answer's tokens, for each item."""
    return torch.tensor(score[key]) / torch.tensor(score["tokens"])


def closure(scores: list[dict[str, Any]], method: str, key: str) -> tuple[float, float, float]:
    """Share of the gap between strong and fine-tuned strong that a method closes.

    Args:
        scores: scores of every method, one entry a seed, on the same items.
        method: the method.
        key: ``log_probability`` or ``hits``.

    Returns:
        The share, and the ends of its 95 % interval: items are resampled, all methods in pairs.
    """
    stacked = {n: torch.stack([per_token(s[n], key) for s in scores]).mean(0) for n in (method, "strong", "ceiling")}
    ours, top = stacked[method] - stacked["strong"], stacked["ceiling"] - stacked["strong"]
    pick = torch.randint(len(ours), (2000, len(ours)), generator=torch.Generator().manual_seed(0))
    draws = (ours[pick].mean(1) / top[pick].mean(1)).sort().values
    return (ours.mean() / top.mean()).item(), draws[50].item(), draws[1949].item()


def gain(scores: list[dict[str, Any]], method: str, other: str, key: str) -> tuple[float, float, float]:
    """Mean paired difference of two methods a token, with the ends of its 95 % interval."""
    difference = torch.stack([per_token(s[method], key) - per_token(s[other], key) for s in scores]).mean(0)
    pick = torch.randint(len(difference), (2000, len(difference)), generator=torch.Generator().manual_seed(0))
    draws = difference[pick].mean(1).sort().values
    return difference.mean().item(), draws[50].item(), draws[1949].item()


def _shares(value: tuple[float, float, float]) -> str:
    return f"{100 * value[0]:.0f} ({100 * value[1]:.0f} to {100 * value[2]:.0f})"


def closure_table(runs: Runs, key: str) -> list[str]:
    """Closure of the gap of every method and task, with the mean over tasks."""
    lines = ["| method | " + " | ".join(runs) + " | mean |", "|---" * (len(runs) + 2) + "|"]
    for method in METHODS:
        cells = [closure([r["scores"] for r in found], method, key) for found in runs.values()]
        mean = sum(cell[0] for cell in cells) / len(cells)
        name = f"**{method}**" if method == "dynamic" else method
        lines.append(f"| {name} | " + " | ".join(map(_shares, cells)) + f" | {100 * mean:.0f} |")
    return lines


def level_table(runs: Runs) -> list[str]:
    """Log-probability and share of right tokens of every method and task, means over seeds."""
    lines = ["| method | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    for method in ("strong", *METHODS, "ceiling"):
        cells = []
        for found in runs.values():
            values = [
                torch.stack([per_token(r["scores"][method], key) for r in found]).mean().item()
                for key in ("log_probability", "hits")
            ]
            cells.append(f"{values[0]:.3f}, {100 * values[1]:.1f} %")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def difference_table(runs: Runs) -> list[str]:
    """Paired differences of log-probability a token between our rules and the others."""
    lines = ["| | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    for ours in ("dynamic", "pooled (ours)"):
        for other in ("strong", *COMPARED):
            cells = [gain([r["scores"] for r in found], ours, other, "log_probability") for found in runs.values()]
            lines.append(
                f"| {ours} minus {other} | "
                + " | ".join(f"{m:+.3f} ({a:+.3f} to {b:+.3f})" for m, a, b in cells)
                + " |"
            )
    return lines


def seed_ranges(runs: Runs, method: str) -> str:
    """Least and greatest closure of log-probability over the seeds of the expert, by task."""
    cells = []
    for task, found in runs.items():
        each = {round(100 * closure([r["scores"]], method, "log_probability")[0]) for r in found}
        cells.append(f"{task} " + " to ".join(map(str, sorted({min(each), max(each)}))))
    return ", ".join(cells)


def mean_closures(settings: list[list[dict[str, Any]]]) -> str:
    """Mean closure of every method over settings, of log-probability and of right tokens."""
    said = []
    for method in METHODS:
        shares = [
            sum(closure([r["scores"] for r in found], method, key)[0] for found in settings) / len(settings)
            for key in ("log_probability", "hits")
        ]
        said.append(f"{method} {100 * shares[0]:.0f} and {100 * shares[1]:.0f} %")
    return "; ".join(said)


def comparisons(settings: list[list[dict[str, Any]]]) -> list[str]:
    """In how many settings our rules are clearly above or below the others: the interval leaves zero out."""
    lines = []
    for ours in ("dynamic", "pooled (ours)"):
        for other in COMPARED:
            gains = [gain([r["scores"] for r in found], ours, other, "log_probability") for found in settings]
            above, below = sum(g[1] > 0 for g in gains), sum(g[2] < 0 for g in gains)
            mean = sum(g[0] for g in gains) / len(gains)
            lines.append(
                f"- {ours} against {other}: {mean:+.3f} nats a token on average, clearly above in {above} of "
                f"{len(settings)} settings, clearly below in {below}."
            )
    return lines
