"""The part of docs/results.md on weak-to-strong decoding, from saved JSON alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

METHODS = ("anchor", "expert", "static 1", "static best", "dynamic", "dynamic, grid")
TASKS = {
    "play": "plays, never read by the strong model",
    "code": "answers to programming tasks",
    "math": "worked solutions of word problems",
    "operation": "naming the operation of a word problem",
}


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


def _read(sizes: dict[str, Any]) -> str:
    return ", ".join(f"{name} {items}" for name, items in sizes["items_read"].items())


def _singles(folder: Path) -> dict[str, list[dict[str, Any]]]:
    found = {t: [json.loads(p.read_text()) for p in sorted(folder.glob(f"{t}-[0-9]*.json"))] for t in TASKS}
    return {task: runs for task, runs in found.items() if runs}


def _closure_table(runs: dict[str, list[dict[str, Any]]], key: str) -> list[str]:
    lines = ["| method | " + " | ".join(runs) + " | mean |", "|---" * (len(runs) + 2) + "|"]
    for method in METHODS:
        cells = [closure([r["scores"] for r in found], method, key) for found in runs.values()]
        mean = sum(cell[0] for cell in cells) / len(cells)
        name = f"**{method}**" if method == "dynamic" else method
        lines.append(f"| {name} | " + " | ".join(map(_shares, cells)) + f" | {100 * mean:.0f} |")
    return lines


def _level_table(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
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


def _several_table(folder: Path) -> list[str]:
    runs = [json.loads(p.read_text()) for p in sorted(folder.glob("several-*.json"))]
    if not runs:
        return []
    tasks = runs[0]["tasks"]
    lines = ["| rule | " + " | ".join(tasks) + " | minus one at a time |", "|---" * (len(tasks) + 2) + "|"]
    first = next(iter(runs[0]["scores"][tasks[0]]))
    for name in runs[0]["scores"][tasks[0]]:
        cells, differences = [], []
        for task in tasks:
            values = [per_token(r["scores"][task][name], "log_probability") for r in runs]
            paper = [per_token(r["scores"][task][first], "log_probability") for r in runs]
            cells.append(f"{torch.stack(values).mean():.3f}")
            differences.append(torch.stack(values).mean(0) - torch.stack(paper).mean(0))
        mean = sum(d.mean() for d in differences) / len(differences)
        generator = torch.Generator().manual_seed(0)
        draws = sum(d[torch.randint(len(d), (2000, len(d)), generator=generator)].mean(1) for d in differences) / len(
            differences
        )
        low, high = torch.as_tensor(draws).sort().values[[50, 1949]].tolist()
        cells.append("" if name == first else f"{mean:+.3f} ({low:+.3f} to {high:+.3f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _speed(path: Path) -> list[str]:
    if not path.is_file():
        return []
    data = json.loads(path.read_text())
    goals = data["targets"]
    lines = ["| what | ratio | target |", "|---|---|---|"]
    if "solver" in data:
        ratio = data["solver"]["ratio"]
        lines.append(
            f"| loop of 42 divergences / dynamic rule, 32 rows of 32k | {ratio:.1f} | >= {goals['solver']:.0f} |"
        )
    if "step" in data:
        one = data["step"]
        goal = f"<= {goals['fused_step']:.2f}"
        lines.append(f"| fused step / sum of the models' steps, 32k, batch 8 | {one['ratio']:.2f} | {goal} |")
        lines.append(f"| parameters held / sum of the models' | {one['memory_ratio']:.2f} | 1 |")
    for rows, one in data.get("shared", {}).items():
        lines.append(
            f"| adapter and base in one batch / apart, {rows} rows | {one['ratio']:.2f} | <= {goals['shared']} |"
        )
    return lines


def _exact(path: Path) -> list[str]:
    data = json.loads(path.read_text()) if path.is_file() else {}
    if "exactness" not in data:
        return []
    lines = [
        "| expert moved by | identity, largest error | same grid point | median error | within 1e-4 | in float32 | "
        "clamped | two minima |",
        "|---" * 8 + "|",
    ]
    for kind in data["exactness"]["kinds"]:
        shares = [f"{100 * kind[k]:.1f} %" for k in ("within_1e-4", "within_1e-4_float32", "clamped", "bimodal")]
        lines.append(
            f"| {kind['moved']} | {kind['identity']:.0e} | {100 * kind['same_grid_point']:.1f} % | "
            f"{kind['median_error']:.0e} | " + " | ".join(shares) + " |"
        )
    return lines


def _differences(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = ["| dynamic minus | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    for other in ("strong", "expert", "static 1", "static best"):
        cells = [gain([r["scores"] for r in found], "dynamic", other, "log_probability") for found in runs.values()]
        lines.append(f"| {other} | " + " | ".join(f"{m:+.3f} ({a:+.3f} to {b:+.3f})" for m, a, b in cells) + " |")
    return lines


def _reading(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What the tables say, against our own method too."""
    mean = {
        m: sum(closure([r["scores"] for r in found], m, "log_probability")[0] for found in runs.values()) / len(runs)
        for m in METHODS
    }
    over = gain_everywhere(runs, "static 1")
    lines = [
        f"Read it without favour: the dynamic rule closes {100 * mean['dynamic']:.0f} % of the gap on average, and its "
        f"difference to the static rule at 1 is clearly above zero on {over} of {len(runs)} tasks."
    ]
    if mean["expert"] > mean["dynamic"]:
        lines.append(
            f"The small expert alone closes more, {100 * mean['expert']:.0f} %: a strong model of this size that never "
            "read such texts has too little to add. On such a pair, use the expert; `weightgen doctor fusion` says so."
        )
    if mean["static best"] > mean["dynamic"]:
        lines.append("A static weight that is tuned on labelled items is better on average, too.")
    return lines


def gain_everywhere(runs: dict[str, list[dict[str, Any]]], other: str) -> int:
    """Number of tasks on which the interval of dynamic minus another method lies above zero."""
    return sum(
        gain([r["scores"] for r in found], "dynamic", other, "log_probability")[1] > 0 for found in runs.values()
    )


def section(results: Path) -> str:
    """Markdown of the whole part.

    Args:
        results: folder of the saved JSON.
    """
    folder = results / "fusion_quality"
    runs = _singles(folder)
    parts = ["## Weak-to-strong decoding", ""]
    parts += [
        "Made by `python scripts/bench/fusion_quality.py render` from `results/fusion_quality/` and "
        "`results/fusion_speed.json`. [decoding.md](decoding.md) says how it works.",
        "",
    ]
    if runs:
        sizes = json.loads((folder / "models.json").read_text())
        items = {task: len(found[0]["scores"]["strong"]["tokens"]) for task, found in runs.items()}
        seeds = {task: len(found) for task, found in runs.items()}
        same = sum(r["speculative"]["same"] for found in runs.values() for r in found)
        made = sum(r["speculative"]["items"] for found in runs.values() for r in found)
        time = {
            name: sum(r["speculative"]["seconds"][name] for found in runs.values() for r in found)
            for name in ("plain", "speculative")
        }
        chosen = "; ".join(f"{t}: {', '.join(str(r['static_best']) for r in found)}" for t, found in runs.items())
        parts += [
            f"Models trained from scratch: strong {sizes['large']:,} parameters, small {sizes['small']:,} "
            f"({sizes['large'] / sizes['small']:.1f} times smaller), one tokenizer. These are tiny models: read the "
            "order of the methods, not the levels. Tasks: "
            + "; ".join(f"{t} ({TASKS[t]}, {items[t]} items, seeds of the expert: {seeds[t]})" for t in runs)
            + f". Items read while fine-tuning: {_read(sizes)}. The weight of "
            f"`static best` was chosen on validation items ({chosen}).",
            "",
            "Log-probability of an answer token in nats, and share of tokens that greedy decoding gets right:",
            "",
            *_level_table(runs),
            "",
            "True closure of the gap, (method - strong) / (fine-tuned strong - strong), %, of log-probability:",
            "",
            *_closure_table(runs, "log_probability"),
            "",
            "and of right tokens:",
            "",
            *_closure_table(runs, "hits"),
            "",
            "Paired differences of log-probability a token:",
            "",
            *_differences(runs),
            "",
            *_reading(runs),
            "",
            f"Speculative decoding gave the same text as plain greedy decoding on {same} of {made} answers, in "
            f"{time['speculative'] / time['plain']:.2f} of its processor time.",
            "",
        ]
    several = _several_table(folder)
    if several:
        parts += [
            "### All experts at once",
            "",
            "Log-probability of an answer token, nobody says which task it is:",
            "",
        ]
        parts += [*several, ""]
    speed = _speed(results / "fusion_speed.json")
    if speed:
        parts += ["### Cost", "", "Ratios of processor times inside of one run, on one core:", "", *speed, ""]
    exact = _exact(results / "fusion_speed.json")
    if exact:
        parts += [
            "### Exactness",
            "",
            "Random logits against direct divergences in float64 and a fine search. What is not within 1e-4 has a flat "
            "objective (the float32 column) or two nearly equal minima.",
            "",
            *exact,
            "",
        ]
    return "\n".join(parts).rstrip()
