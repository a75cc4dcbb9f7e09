"""Writes what is known of adapters from words: its section of docs/results.md, from the saved JSON only.

python scripts/bench/adapters_text.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "adapters_text"
sys.path[0] = str(ROOT)

from scripts.bench._page import put  # noqa: E402
from scripts.bench.adapters_text_tasks import FAR, NEAR, TEST  # noqa: E402
from scripts.bench.adapters_text_validation import NAMES, Scores, gap, recalled, validation, words  # noqa: E402

RESAMPLES = 4000
SHIPPED = {"d2nwg": 120, "mapper": 300}
"""Steps of the behavioural stage in the configs."""

STUDY_ROWS = {
    "base": "base encoder",
    "majority": "always the most frequent label",
    "nearest": "adapter of the nearest description",
    "top3": "mean of the three nearest",
    "mean": "mean of all adapters",
    "mean_scaled": "mean of all adapters, scaled by 6 (chosen on validation)",
    "static_half": "one static adapter, half strength",
    "labels": "**prototype, label texts**",
    "labels_junk": "control: the description is junk",
    "labels_shuffled": "control: description of another task",
    "labels_rephrased": "control: description in other words",
    "labels_of_another_task": "control: labels of another task",
    "texts": "**prototype, 32 unlabelled texts**",
    "texts_junk": "control: the description is junk",
    "texts_shuffled": "control: description of another task",
    "oracle": "trained on the task",
}
PRODUCT_ROWS = {
    "static_half": "one static adapter, half strength",
    "static_full": "one static adapter, full strength",
    "mapper": "**mapper, description and label texts**",
    "mapper_junk": "control: the description is junk",
    "mapper_texts": "**mapper, 32 unlabelled texts too**",
    "d2nwg": "**D2NWG, description and label texts**",
    "d2nwg_junk": "control: the description is junk",
    "d2nwg_shuffled": "control: description of another task",
    "d2nwg_rephrased": "control: description in other words",
    "d2nwg_texts": "**D2NWG, 32 unlabelled texts too**",
    "d2nwg_texts_junk": "control: the description is junk",
    "igpg": "**IGPG, description and label texts**",
    "igpg_junk": "control: the description is junk",
    "igpg_texts": "**IGPG, 32 unlabelled texts too**",
    "labels": "**prototype, label texts**",
    "labels_junk": "control: the description is junk",
    "labels_shuffled": "control: description of another task",
    "labels_rephrased": "control: description in other words",
    "texts": "**prototype, 32 unlabelled texts**",
    "texts_junk": "control: the description is junk",
    "texts_shuffled": "control: description of another task",
}
SECTION = """## Adapters of a text encoder

Made by `python scripts/bench/adapters_text.py` from `docs/results/adapters_text`. All-MiniLM-L6-v2, no head, 14 test
tasks (8 near the training tasks, 6 far), 34 training tasks, 13 for validation; families of tasks stay together. Gap is
the share of the way from the base to training on the task, pooled over tasks: sum of gains by sum of gaps. Intervals
are 95 %, from {resamples} paired resamples of the tasks. How the generator works: [adapters.md](adapters.md).

In short: 32 unlabelled texts are a gain in F1 for `prototype`; label texts alone are no better than the static adapter
at half strength; the description itself does nothing, matched equals junk. D2NWG and the mapper stay below the
static adapter, and unlabelled texts change nothing for them; IGPG gains nothing. The target of ten points of gap above
the best blind rival is missed from label texts and with 32 texts. In F1, over three seeds of the generator: {rivals}.

### The study that `prototype` was taken from

{openings}

{study}

By cross-fitting over 47 training and validation tasks, the family of each held out:

{crossfit}

### The code of this package, on the same tasks

The shipped configurations trained by `weightgen train` on a zoo of the 34 training tasks and of the adapters of one
shared start that there are for them, seeds {seeds}. Scores are means over the seeds; the last column has the gap of
each. The test tasks had been opened before, by an earlier training of the same configurations, one seed each:
{earlier}.
Nothing was chosen in between: strengths and everything else were chosen on the validation tasks before that (below).
{cost}

{product}

### Longer training

![Accuracy on the validation tasks by steps of the behavioural stage](results/adapters_text.png)

{curve}

### On the validation tasks: strength and cost

{validation}

### What words keep of an adapter

{words}

### Texts of other tasks in place of unlabelled ones

{recalled}
"""


def by_seed(runs: Sequence[Mapping[str, Any]], row: str, ends: Scores) -> list[float]:
    """Gap in F1 of one row, for each run that has it."""
    found = []
    for run in runs:
        if all(row in one["rows"] for one in run["tasks"].values()):
            scores = {row: {task: one["rows"][row] for task, one in run["tasks"].items()}}
            found.append(gap({**ends, **scores}, row, TEST, 0))
    return found


def difference(rows: Scores, first: str, second: str, metric: int) -> tuple[float, float, float]:
    """Difference of two gaps and its interval, tasks resampled in pairs."""
    rng = torch.Generator().manual_seed(0)
    values = torch.tensor([[rows[row][task][metric] for task in TEST] for row in (first, second, "base", "oracle")])
    picked = values[:, torch.randint(len(TEST), (RESAMPLES, len(TEST)), generator=rng)].sum(2)
    low, high = torch.quantile((picked[0] - picked[1]) / (picked[3] - picked[2]), torch.tensor([0.025, 0.975])).tolist()
    return gap(rows, first, TEST, metric) - gap(rows, second, TEST, metric), low, high


def table(
    rows: Scores, wanted: Mapping[str, str], rival: str, seeds: Mapping[str, Sequence[float]] | None = None
) -> str:
    """Rows with scores, gaps, what they are above a rival, and the gap of each seed."""
    lines = [
        f"| | F1, % | accuracy, % | gap F1 | gap acc. | near F1 | near acc. | far F1 | far acc. | F1 above {rival} |"
        + (" F1 by seed |" if seeds else ""),
        "|---|" + "---|" * (10 if seeds else 9),
    ]
    for row, title in wanted.items():
        if row not in rows:
            continue
        means = [100 * sum(rows[row][task][metric] for task in TEST) / len(TEST) for metric in (0, 1)]
        gaps = [gap(rows, row, tasks, metric) for tasks in (TEST, NEAR, FAR) for metric in (0, 1)]
        ours = row.startswith(("labels", "texts", "mapper", "d2nwg", "igpg"))
        above = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*difference(rows, row, "static_half", 0)) if ours else ""
        cells = [*(f"{one:.1f}" for one in means), *(f"{one:+.2f}" for one in gaps), above]
        if seeds:
            cells.append(", ".join(f"{one:+.2f}" for one in seeds[row]))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def crossfit(found: Sequence[Mapping[str, Any]]) -> str:
    """The rows of cross-fitting that the choice was made from."""
    titles = {
        "nearest plain": "adapter of the nearest description",
        "top3 plain": "mean of the three nearest",
        "mean6 plain": "mean of all adapters, scaled by 6",
        "s600 x1.0 plain": "static adapter, full strength",
        "s600 x0.5 plain": "static adapter, half strength",
        "s600 x0.5 mem+ctx": "**prototype, label texts**",
        "s600 x0.5 U mem 0.5 0.6 r1 pr0": "**prototype, 32 unlabelled texts** (pull .5)",
        "s600 x0.5 mem+ctx MINUS s600 x0.5 plain": "label texts above the static adapter",
        "s600 x0.5 U mem 0.5 0.6 r1 pr0 MINUS s600 x0.5 plain": "32 texts above the static adapter",
        "s600 x0.5 U mem 0.5 0.6 r1 pr0 MINUS mean6 plain": "32 texts above the scaled mean",
    }
    known = {row["what"]: row for row in found}
    lines = ["| | gap F1 | gap accuracy |", "|---|---|---|"]
    for name, title in titles.items():
        cells = ["{:+.2f} [{:+.2f}, {:+.2f}]".format(*known[name][metric]) for metric in ("f1", "accuracy")]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cost(runs: Sequence[Mapping[str, Any]]) -> str:
    """Training times and sizes; times of one adapter, of the first run."""
    parts = []
    for name, about in runs[0]["generators"].items():
        minutes = [sum(stage["seconds"] for stage in run["generators"][name]["stages"].values()) / 60 for run in runs]
        steps = ", ".join(f"{k} {v['steps']}" for k, v in about["config"]["stages"].items() if v["steps"])
        parts.append(
            f"{name}: {about['parameters'] / 1e6:.1f} M parameters, {min(minutes):.0f} to {max(minutes):.0f} minutes "
            f"({steps} steps)"
        )
    times = {row: sorted(one["seconds"][row] for one in runs[0]["tasks"].values()) for row in ("labels", "texts")}
    middle = {row: values[len(values) // 2] for row, values in times.items()}
    return (
        f"Training on one busy core: {'; '.join(parts)}. One adapter of prototype took {middle['labels']:.2f} s from "
        f"label texts, {middle['texts']:.2f} s with 32 texts (medians, busy machine). Base and training on the "
        "task are those of the study."
    )


def curve(found: Mapping[str, Any]) -> str:
    """What longer training of the behavioural stage does, in a table; the same as a picture."""
    steps = [step for step, _ in next(iter(found["curves"].values()))]
    stage = next(iter(found["stages"].values()))
    lines = [
        f"Up to {steps[-1]} steps of the behavioural stage at a rate of {stage['lr']:g}, in place of "
        + " and ".join(f"{SHIPPED[name]} at 0.001 ({NAMES[name]})" for name in found["curves"])
        + ". Mean accuracy on half of the validation examples of the validation tasks, %: base "
        f"{100 * found['ends']['base']:.1f}, the tasks' own adapters {100 * found['ends']['own']:.1f}.",
        "",
        f"| steps | {' | '.join(map(str, steps))} |",
        "|---|" + "---|" * len(steps),
    ]
    for name, points in found["curves"].items():
        lines.append(f"| {NAMES[name]} | {' | '.join(f'{100 * score:.1f}' for _, score in points)} |")
    return "\n".join(lines)


def picture(found: Mapping[str, Any], path: Path) -> None:
    """Draw the curves."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for (name, points), colour in zip(found["curves"].items(), ("#2563a8", "#d97706", "#2f855a"), strict=False):
        steps, values = zip(*points, strict=True)
        axes.plot(steps, [100 * one for one in values], "o-", color=colour, label=NAMES[name], ms=4)
    for name, title in (("base", "base model"), ("own", "the tasks' own adapters")):
        value = 100 * found["ends"][name]
        axes.axhline(value, color="#7b8794", lw=1, ls="--")
        axes.text(steps[-1], value, f"{title} ", ha="right", va="bottom", fontsize=9, color="#52606d")
    axes.set_xlabel("steps of the behavioural stage")
    axes.set_ylabel("accuracy on validation tasks, %")
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def read(name: str) -> dict[str, Any]:
    """A saved result."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def main() -> None:
    """Render the section."""
    study, longer = read("study.json"), read("curve.json")
    paths = sorted(RESULTS.glob("product-*.json"))
    runs = [read(path.name) for path in paths]
    ends = {row: study["rows"][row] for row in ("base", "oracle")}
    found: dict[str, dict[str, Sequence[float]]] = dict(ends)
    for task in TEST:
        for row in runs[0]["tasks"][task]["rows"]:
            have = [run["tasks"][task]["rows"][row] for run in runs if row in run["tasks"][task]["rows"]]
            found.setdefault(row, {})[task] = [sum(values) / len(have) for values in zip(*have, strict=True)]
    before = read("earlier/product.json")
    earlier = "; ".join(
        f"{title.strip('*')} {by_seed([before], row, ends)[0]:+.2f}"
        for row, title in PRODUCT_ROWS.items()
        if row in ("static_half", "mapper", "d2nwg", "igpg", "labels", "texts")
    )
    rivals = "; ".join(
        f"{PRODUCT_ROWS[row].strip('*')} "
        + ", ".join(
            "{:+.2f} [{:+.2f}, {:+.2f}] above {name}".format(
                *difference({**study["rows"], **found}, row, rival, 0), name=STUDY_ROWS[rival].replace("one ", "the ")
            )
            for rival in ("static_half", "top3", "nearest")
        )
        for row in ("labels", "texts")
    )
    text = SECTION.format(
        rivals=rivals,
        resamples=RESAMPLES,
        openings=study["provenance"]["openings"],
        study=table(study["rows"], STUDY_ROWS, "static"),
        crossfit=crossfit(study["crossfit"]),
        seeds=", ".join(path.stem.removeprefix("product-") for path in paths),
        earlier=earlier,
        cost=cost(runs),
        product=table(found, PRODUCT_ROWS, "static", {row: by_seed(runs, row, ends) for row in PRODUCT_ROWS}),
        curve=curve(longer),
        validation=validation(read("validation.json")),
        recalled=recalled(read("recalled.json")),
        words=words(read("codec.json")),
    )
    picture(longer, RESULTS.parent / "adapters_text.png")
    put("adapters_text", text)
    print(text)


if __name__ == "__main__":
    main()
