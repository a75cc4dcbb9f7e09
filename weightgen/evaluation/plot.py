"""The verdict card as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INK, QUIET, ACCENT, WARN, GOAL = "#1f2933", "#9aa5b1", "#2563a8", "#c2571a", "#2f855a"
TITLES = {
    "generated": "generated",
    "zoo_mean": "zoo mean, raw",
    "zoo_mean_aligned": "zoo mean, aligned",
    "nearest": "nearest in the zoo",
    "gaussian": "Gaussian of the zoo",
    "ridge": "ridge: examples to weights",
    "nearest_class_mean": "nearest class mean (no network)",
    "scratch": "scratch, same examples",
    "scratch_one_epoch": "scratch, one epoch of all images",
    "oracle": "oracle: trained on the task",
    "shuffled": "generated, examples of another task",
    "junk": "generated, junk examples",
}


def draw_card(card: Mapping[str, Any], path: Path) -> None:
    """Draw methods, controls and novelty of a card.

    Args:
        card: what ``evaluate_generator`` returned.
        path: PNG file to write.
    """
    rows = sorted(card["rows"].values(), key=lambda row: row["mean"])
    controls = sorted(card["controls"].values(), key=lambda row: row["mean"])
    entries = [*controls, None, *rows]
    figure, axes = plt.subplots(figsize=(9.5, 0.42 * len(entries) + 2.2), layout="constrained")
    labels = []
    for place, row in enumerate(entries):
        if row is None:
            labels.append("")
            continue
        color = _color(row["name"], row in controls)
        mean, spread = 100 * row["mean"], 100 * row["std"]
        axes.barh(place, mean, color=color, height=0.68, xerr=spread, error_kw={"ecolor": INK, "lw": 1, "capsize": 2})
        text = f"{mean:.1f}" + (f" ± {spread:.1f}" if spread >= 0.05 else "")
        if "best_of" in row:
            text += f"   best of {row['best_of']['candidates']}: {100 * row['best_of']['mean']:.1f}"
        axes.text(mean + spread + 1.0, place, text, va="center", color=INK, fontsize=9)
        labels.append(TITLES[row["name"]])
    axes.set_yticks(range(len(entries)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 128)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy on test images, % (bars: mean over tasks and seeds; whiskers: deviation over seeds)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="#e4e7eb", lw=0.8)
    axes.set_axisbelow(True)
    first = rows[0]
    title = f"{card['generator']}: {first['n_tasks']} held-out tasks, {first['seeds']} seeds, {card['shots']} shots"
    figure.suptitle(f"{title}\n", x=0.01, ha="left", fontsize=13, color=INK)
    figure.text(0.01, 0.985 - 0.32 / figure.get_figheight(), _subtitle(card), fontsize=9, color=INK, va="top")
    axes.set_title("\n", fontsize=9)
    side = path.with_suffix(".partial.png")
    figure.savefig(side, dpi=130)
    plt.close(figure)
    side.replace(path)


def _color(name: str, control: bool) -> str:
    if control:
        return WARN
    return {"generated": ACCENT, "oracle": GOAL}.get(name, QUIET)


def _subtitle(card: Mapping[str, Any]) -> str:
    new = card["novelty"]
    differ, usual = 100 * new["disagreement"], 100 * new["oracle_disagreement"]
    return (
        f"{card['verdict']['sentence']}\n"
        f"Distance to the nearest zoo member: {new['distance_ratio']:.2f} x the zoo's own. "
        f"Predictions differ from it on {differ:.0f} % of test images (two trained on the task: {usual:.0f} %)."
    )
