"""The part of docs/results.md on weak-to-strong decoding, from saved JSON alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from fusion_closure import (
    Runs,
    closure_table,
    comparisons,
    difference_table,
    level_table,
    mean_closures,
    per_token,
    seed_ranges,
)  # fmt: skip

_FORMS = {
    "function": "a Python function for its description",
    "calculator": "worked solutions with calculator calls and a marked result",
    "infill": "the two missing lines of a piece of code",
}
GROUPS = {
    "unseen": (
        "Unseen domains",
        "the base models read books, articles, questions and program sources, nothing of the tasks' domains; all that "
        "is known of them comes from fine-tuning",
        {
            "play": "plays, never read by the strong model",
            "code": "answers to programming tasks",
            "math": "worked solutions of word problems",
            "operation": "naming the operation of a word problem",
        },
    ),
    "known": (
        "Known domains, new form",
        "the base models read plenty of the tasks' domains (program sources, worked solutions in prose, speeches of "
        "plays), fine-tuning teaches another form; files and problems of the tasks were not among it",
        _FORMS,
    ),
    "wide": (
        "Known domains, wider gap",
        "as for known domains, but the strong model is larger and both base models read three times as much, so that "
        "it is far ahead of the small one before any fine-tuning, as large models are. This group was added when in "
        "the other two the expert alone had closed more of the gap than `dynamic` on average",
        _FORMS,
    ),
}
"""Heading, setting and tasks of each group; names are those of fusion_models.py."""
AMOUNTS = {"few": "64 examples", "many": "more than a thousand examples"}


def _singles(folder: Path, tasks: Iterable[str]) -> dict[str, Runs]:
    """Saved results of a group by how much was read while fine-tuning."""
    loaded = [json.loads(p.read_text()) for p in sorted(folder.glob("*-*-[0-9]*.json"))]
    sizes = sorted({run["amount"] for run in loaded})
    found = {n: {t: [r for r in loaded if r["amount"] == n and r["task"] == t] for t in tasks} for n in sizes}
    return {n: {task: entries for task, entries in runs.items() if entries} for n, runs in found.items()}


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
    head = "Log-probability of an answer token on mixed prompts; nobody says which task a prompt is of:"
    return ["#### Several experts", "", head, "", *lines] if lines else []


def _speculative_table(path: Path) -> list[str]:
    if not path.is_file():
        return []
    found = json.loads(path.read_text())
    lines = [
        "Speculative decoding has the distribution of the plain rule, so that it has no rows of its own above. Answers "
        "made greedily both ways, dynamic rule, processor time on one core:",
        "",
        "| task | same text as plain | tokens | time / plain fused decoding |",
        "|---|---|---|---|",
    ]
    for task, one in found.items():
        lines.append(f"| {task} | {one['same']} of {one['answers']} | {one['tokens']} | {one['ratio']:.2f} |")
    total = {n: sum(one["seconds"][n] for one in found.values()) for n in ("plain", "speculative")}
    lines.append(f"| all | | | {total['speculative'] / total['plain']:.2f} |")
    return ["#### Speculative decoding", "", *lines, ""]


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


def _setting(group: str, folder: Path, by_amount: dict[str, Runs]) -> str:
    """What the models and the tasks of a group are."""
    sizes = json.loads((folder / "models.json").read_text())
    _, texts, tasks = GROUPS[group]
    runs = next(iter(by_amount.values()))
    items = {task: len(found[0]["scores"]["strong"]["tokens"]) for task, found in runs.items()}
    seeds = ", ".join(f"{min(len(f) for f in one.values())} with {AMOUNTS[n]}" for n, one in by_amount.items())
    held = {n: sizes["base"][n].get("held_out", {}) for n in ("large", "small")}
    knowledge = "; ".join(f"{kind} {-held['large'][kind]:.2f} and {-held['small'][kind]:.2f}" for kind in held["large"])
    return (
        f"Models trained from scratch: strong {sizes['large']:,} parameters, small {sizes['small']:,} "
        f"({sizes['large'] / sizes['small']:.1f} times smaller), one tokenizer; {texts}. These are tiny models: read "
        "the order of the methods, not the levels."
        + (f" Nats a token of unread text of the domains, strong and small: {knowledge}." if knowledge else "")
        + " Tasks: "
        + "; ".join(f"{t} ({tasks[t]}, {items[t]} items)" for t in runs)
        + ". Expert and ceiling are the small and the strong model, fine-tuned on the same task. Seeds of the expert: "
        f"{seeds}; one of the ceiling."
    )


def _quality(group: str, folder: Path, by_amount: dict[str, Runs]) -> list[str]:
    """All tables of a group."""
    parts = [f"### {GROUPS[group][0]}", "", _setting(group, folder, by_amount), ""]
    for amount, runs in by_amount.items():
        chosen = "; ".join(f"{t}: {', '.join(str(r['static_best']) for r in found)}" for t, found in runs.items())
        parts += [
            f"#### {GROUPS[group][0]}, fine-tuned on {AMOUNTS[amount]}",
            "",
            "Log-probability of an answer token in nats, and share of tokens that greedy decoding gets right:",
            "",
            *level_table(runs),
            "",
            "True closure of the gap, (method - strong) / (fine-tuned strong - strong), %, of log-probability:",
            "",
            *closure_table(runs, "log_probability"),
            "",
            "and of right tokens:",
            "",
            *closure_table(runs, "hits"),
            "",
            "Paired differences of log-probability a token:",
            "",
            *difference_table(runs),
            "",
            f"The weight of `static best` was chosen on validation items ({chosen}). Closure of `dynamic` by seed of "
            f"the expert, %: {seed_ranges(runs, 'dynamic')}.",
            "",
        ]
    return parts + _several_tables(folder) + _speculative_table(folder / "speculative.json")


def _reading(groups: dict[str, dict[str, Runs]]) -> list[str]:
    """What the tables say, against our own methods too."""
    by_group = {g: [found for runs in one.values() for found in runs.values()] for g, one in groups.items()}
    lines = ["### Reading", "", "Mean closures, of log-probability and of right tokens:", ""]
    everything = [found for settings in by_group.values() for found in settings]
    named = {GROUPS[g][0].lower(): settings for g, settings in by_group.items()} | {"all": everything}
    lines += [f"- {name}, {len(settings)} settings: {mean_closures(settings)}." for name, settings in named.items()]
    for name, settings in named.items():
        lines += ["", f"Log-probability, {name}:", "", *comparisons(settings)]
    return [*lines, ""]


def section(results: Path) -> str:
    """Markdown of the whole part.

    Args:
        results: folder of the saved JSON.
    """
    folders = {group: results / "fusion_quality" / group for group in GROUPS}
    groups = {group: _singles(folder, GROUPS[group][2]) for group, folder in folders.items()}
    groups = {group: found for group, found in groups.items() if found}
    parts = [
        "## Weak-to-strong decoding",
        "",
        "Made by `python scripts/bench/fusion_quality.py render` from `results/fusion_quality/` and "
        "`results/fusion_speed.json`. [decoding.md](decoding.md) says how it works.",
        "",
    ]
    for group, by_amount in groups.items():
        parts += _quality(group, folders[group], by_amount)
    if groups:
        parts += _reading(groups)
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
