"""The part of docs/results.md on weak-to-strong decoding, from saved JSON alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

METHODS = (
    "anchor", "expert", "average of strong and expert", "static 1", "static best", "dynamic", "dynamic, grid",
    "pooled (ours)",
)  # fmt: skip
TASKS = {
    "play": "plays, never read by the strong model",
    "code": "answers to programming tasks",
    "math": "worked solutions of word problems",
    "operation": "naming the operation of a word problem",
}


AMOUNTS = {"few": "64 examples", "many": "many examples"}


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


Runs = dict[str, list[dict[str, Any]]]
"""Saved results of each task, one entry a seed of the expert."""


def _singles(folder: Path) -> dict[str, Runs]:
    """Saved results by how much was read while fine-tuning."""
    loaded = [json.loads(p.read_text()) for p in sorted(folder.glob("*-*-[0-9]*.json"))]
    sizes = sorted({run["amount"] for run in loaded})
    found = {n: {t: [r for r in loaded if r["amount"] == n and r["task"] == t] for t in TASKS} for n in sizes}
    return {n: {task: entries for task, entries in runs.items() if entries} for n, runs in found.items()}


def _closure_table(runs: Runs, key: str) -> list[str]:
    lines = ["| method | " + " | ".join(runs) + " | mean |", "|---" * (len(runs) + 2) + "|"]
    for method in METHODS:
        cells = [closure([r["scores"] for r in found], method, key) for found in runs.values()]
        mean = sum(cell[0] for cell in cells) / len(cells)
        name = f"**{method}**" if method == "dynamic" else method
        lines.append(f"| {name} | " + " | ".join(map(_shares, cells)) + f" | {100 * mean:.0f} |")
    return lines


def _level_table(runs: Runs) -> list[str]:
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


def _several_tables(folder: Path) -> list[str]:
    """Rules for several experts on mixed prompts of their tasks, beside the paper's."""
    lines: list[str] = []
    for path in sorted(folder.glob("several-*.json")):
        run = json.loads(path.read_text())
        tasks, scores = run["tasks"], run["scores"]
        names = list(scores[tasks[0]])
        lines += ["| rule | " + " | ".join(tasks) + " | minus one at a time |", "|---" * (len(tasks) + 2) + "|"]
        for name in names:
            cells = [f"{per_token(scores[task][name], 'log_probability').mean():.3f}" for task in tasks]
            # Tasks count alike; items are resampled within their task, both rules in pairs.
            draws, mean = torch.zeros(2000), 0.0
            generator = torch.Generator().manual_seed(0)
            for task in tasks:
                ours, paper = (per_token(scores[task][n], "log_probability") for n in (name, names[0]))
                difference = (ours - paper) / len(tasks)
                mean += difference.mean().item()
                draws += difference[torch.randint(len(ours), (2000, len(ours)), generator=generator)].mean(1)
            low, high = draws.sort().values[[50, 1949]].tolist()
            cells.append("" if name == names[0] else f"{mean:+.3f} ({low:+.3f} to {high:+.3f})")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def _speculative_table(path: Path) -> list[str]:
    if not path.is_file():
        return []
    found = json.loads(path.read_text())
    lines = ["| task | same text as plain | tokens | time / plain fused decoding |", "|---|---|---|---|"]
    for task, one in found.items():
        lines.append(f"| {task} | {one['same']} of {one['answers']} | {one['tokens']} | {one['ratio']:.2f} |")
    total = {n: sum(one["seconds"][n] for one in found.values()) for n in ("plain", "speculative")}
    lines.append(f"| all | | | {total['speculative'] / total['plain']:.2f} |")
    return lines


def _speed(path: Path) -> list[str]:
    if not path.is_file():
        return []
    data = json.loads(path.read_text())
    goals = data["targets"]
    lines = ["| what | ratio | target |", "|---|---|---|"]
    if "solver" in data:
        ratio, turns = data["solver"]["ratio"], [turn["loop"] for turn in data["solver"]["turns"]]
        lines.append(
            f"| loop of 42 divergences / dynamic rule, 32 rows of 32k, median of {len(turns)} runs "
            f"({min(turns):.1f} to {max(turns):.1f}) | {ratio:.1f} | >= {goals['solver']:.0f} |"
        )
        ratio = data["solver"]["ratios"]["loop, two rows at a time"]
        lines.append(f"| the same loop cut to the cache, two rows at a time / dynamic rule | {ratio:.1f} | |")
    if "step" in data:
        one = data["step"]
        goal = f"<= {goals['fused_step']:.2f}"
        lines.append(f"| fused step / sum of the models' steps, 32k, batch 8 | {one['ratio']:.2f} | {goal} |")
        lines.append(f"| parameters held / sum of the models' | {one['memory_ratio']:.2f} | 1 |")
    for rows, one in data.get("shared", {}).items():
        goal = f"<= {goals['shared']}"
        lines.append(f"| adapter and base in one batch / their own passes, {rows} rows | {one['ratio']:.2f} | {goal} |")
        own = one["ratios"]["apart, few rows"]
        lines.append(f"| the same / apart with our linear layers for few rows, {rows} rows | {own:.2f} | |")
    return lines


def _exact(path: Path) -> list[str]:
    data = json.loads(path.read_text()) if path.is_file() else {}
    if "exactness" not in data:
        return []
    lines = [
        "| logits | identity, largest error | same grid point, float64 and 32 | median error | within 1e-4, float64 "
        "and 32 | clamped | two minima |",
        "|---" * 7 + "|",
    ]
    for kind in data["exactness"]["kinds"]:
        share = {key: f"{100 * value:.1f} %" for key, value in kind.items() if key not in ("kind", "identity")}
        lines.append(
            f"| {kind['kind']} | {kind['identity']:.0e} | {share['same_grid_point']}, "
            f"{share['same_grid_point_float32']} | {kind['median_error']:.0e} | {share['within_1e-4']}, "
            f"{share['within_1e-4_float32']} | {share['clamped']} | {share['bimodal']} |"
        )
    return lines


def _differences(runs: Runs) -> list[str]:
    lines = ["| | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    for ours in ("dynamic", "pooled (ours)"):
        for other in ("strong", "expert", "static 1", "static best"):
            cells = [gain([r["scores"] for r in found], ours, other, "log_probability") for found in runs.values()]
            lines.append(
                f"| {ours} minus {other} | "
                + " | ".join(f"{m:+.3f} ({a:+.3f} to {b:+.3f})" for m, a, b in cells)
                + " |"
            )
    return lines


def _mean_closure(settings: list[list[dict[str, Any]]], method: str, key: str) -> float:
    return sum(closure([r["scores"] for r in found], method, key)[0] for found in settings) / len(settings)


def _reading(by_amount: dict[str, Runs]) -> list[str]:
    """What the tables say, against our own method too."""
    settings = [found for runs in by_amount.values() for found in runs.values()]
    mean = {
        key: {
            m: sum(closure([r["scores"] for r in found], m, key)[0] for found in settings) / len(settings)
            for m in METHODS
        }
        for key in ("log_probability", "hits")
    }
    lines = [
        f"Means over all {len(settings)} settings, closure of log-probability and of right tokens: "
        + "; ".join(f"{m} {100 * mean['log_probability'][m]:.0f} and {100 * mean['hits'][m]:.0f} %" for m in METHODS)
        + ".",
        "",
    ]
    for ours in ("dynamic", "pooled (ours)"):
        for other in ("expert", "static 1", "static best"):
            gains = [gain([r["scores"] for r in found], ours, other, "log_probability") for found in settings]
            above, below = sum(g[1] > 0 for g in gains), sum(g[2] < 0 for g in gains)
            lines.append(
                f"- {ours} against {other}, log-probability: clearly above in {above} of {len(settings)} settings, "
                f"clearly below in {below}."
            )
    return lines


def _setting(sizes: dict[str, Any], by_amount: dict[str, Runs]) -> str:
    runs = next(iter(by_amount.values()))
    items = {task: len(found[0]["scores"]["strong"]["tokens"]) for task, found in runs.items()}
    seeds = ", ".join(f"{min(len(f) for f in one.values())} with {AMOUNTS[n]}" for n, one in by_amount.items())
    return (
        f"Models trained from scratch: strong {sizes['large']:,} parameters, small {sizes['small']:,} "
        f"({sizes['large'] / sizes['small']:.1f} times smaller), one tokenizer. These are tiny models: read the order "
        "of the methods, not the levels. Tasks: "
        + "; ".join(f"{t} ({TASKS[t]}, {items[t]} items)" for t in runs)
        + ". Expert and ceiling are the small and the strong model, fine-tuned on the same task: either on 64 examples "
        "for each, with the weights that are best on 64 validation items; or on more than a thousand. Seeds "
        f"of the expert: {seeds}; one of the ceiling."
    )


def section(results: Path) -> str:
    """Markdown of the whole part.

    Args:
        results: folder of the saved JSON.
    """
    folder = results / "fusion_quality"
    by_amount = _singles(folder)
    parts = [
        "## Weak-to-strong decoding",
        "",
        "Made by `python scripts/bench/fusion_quality.py render` from `results/fusion_quality/` and "
        "`results/fusion_speed.json`. [decoding.md](decoding.md) says how it works.",
        "",
    ]
    if by_amount:
        sizes = json.loads((folder / "models.json").read_text())
        parts += [_setting(sizes, by_amount), ""]
    for amount, runs in by_amount.items():
        chosen = "; ".join(f"{t}: {', '.join(str(r['static_best']) for r in found)}" for t, found in runs.items())
        parts += [
            f"### Fine-tuned on {AMOUNTS[amount]}",
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
            f"The weight of `static best` was chosen on validation items ({chosen}).",
            "",
        ]
    if by_amount:
        parts += ["### Reading", "", *_reading(by_amount), ""]
    several = _several_tables(folder)
    if several:
        parts += [
            "### Several experts",
            "",
            "Log-probability of an answer token on mixed prompts; nobody says which task a prompt is of:",
            "",
            *several,
        ]
    speculative = _speculative_table(folder / "speculative.json")
    if speculative:
        parts += [
            "### Speculative decoding",
            "",
            "Greedy decoding of the dynamic rule, processor time on one core:",
            "",
            *speculative,
            "",
        ]
    speed = _speed(results / "fusion_speed.json")
    if speed:
        parts += ["### Cost", "", "Ratios of processor times inside of one run, on one core:", "", *speed, ""]
    exact = _exact(results / "fusion_speed.json")
    if exact:
        parts += [
            "### Exactness",
            "",
            "Against direct divergences in float64 and a fine search over the same logits.",
            "",
            *exact,
            "",
        ]
    return "\n".join(parts).rstrip()
