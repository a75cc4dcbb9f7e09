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
from scripts.bench.adapters_text_validation import Scores, gap, recalled, validation, words  # noqa: E402

RESAMPLES = 4000

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
static adapter, and unlabelled texts change nothing for them; IGPG gains nothing on the validation tasks. The target of
ten points above the best blind rival is missed from label texts and with 32 texts.

### The study that `prototype` was taken from

{openings}

{study}

By cross-fitting over 47 training and validation tasks, the family of each held out:

{crossfit}

### The code of this package, on the same tasks

A third measurement of the same test tasks, with nothing chosen in between: `configs/prototype-lora.yaml` trained by
`weightgen train`, on a zoo of the 34 training tasks and the adapters there are for them. It was measured once more
after a mistake was mended (tasks whose adapters have two layouts had been remembered twice, and drawn twice as often in
training, as they still were here); these are the figures after that.
{cost}

{product}

D2NWG, the mapper and IGPG learned from the same tasks and the adapters of one shared start, with their shipped
configurations, one seed each; for each the test tasks were opened once, everything chosen before on the validation
tasks (below). Training is short, for they were trained on a crowded machine; longer training is not measured.

### On the validation tasks: strength and cost

{validation}

### What words keep of an adapter

{words}

### Texts of other tasks in place of unlabelled ones

{recalled}
"""


def difference(rows: Scores, first: str, second: str, metric: int) -> tuple[float, float, float]:
    """Difference of two gaps and its interval, tasks resampled in pairs."""
    rng = torch.Generator().manual_seed(0)
    values = torch.tensor([[rows[row][task][metric] for task in TEST] for row in (first, second, "base", "oracle")])
    picked = values[:, torch.randint(len(TEST), (RESAMPLES, len(TEST)), generator=rng)].sum(2)
    low, high = torch.quantile((picked[0] - picked[1]) / (picked[3] - picked[2]), torch.tensor([0.025, 0.975])).tolist()
    return gap(rows, first, TEST, metric) - gap(rows, second, TEST, metric), low, high


def table(rows: Scores, wanted: Mapping[str, str], rival: str) -> str:
    """Rows with scores, gaps, and what they are above a rival."""
    lines = [
        f"| | F1, % | accuracy, % | gap F1 | gap acc. | near F1 | near acc. | far F1 | far acc. | F1 above {rival} |",
        "|---|" + "---|" * 9,
    ]
    for row, title in wanted.items():
        if row not in rows:
            continue
        means = [100 * sum(rows[row][task][metric] for task in TEST) / len(TEST) for metric in (0, 1)]
        gaps = [gap(rows, row, tasks, metric) for tasks in (TEST, NEAR, FAR) for metric in (0, 1)]
        ours = row.startswith(("labels", "texts", "mapper", "d2nwg", "igpg"))
        above = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*difference(rows, row, "static_half", 0)) if ours else ""
        cells = [*(f"{one:.1f}" for one in means), *(f"{one:+.2f}" for one in gaps), above]
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


def cost(product: Mapping[str, Any]) -> str:
    """Training times, sizes and times of one adapter."""
    parts = []
    for name, about in product["generators"].items():
        seconds = sum(stage["seconds"] for stage in about["stages"].values())
        steps = ", ".join(f"{k} {v['steps']}" for k, v in about["config"]["stages"].items() if v["steps"])
        parts.append(
            f"{name}: {about['parameters'] / 1e6:.1f} M parameters, {seconds / 60:.0f} minutes ({steps} steps)"
        )
    times = {row: sorted(one["seconds"][row] for one in product["tasks"].values()) for row in ("labels", "texts")}
    middle = {row: values[len(values) // 2] for row, values in times.items()}
    return (
        f"Training on one busy core: {'; '.join(parts)}. One adapter of prototype took {middle['labels']:.2f} s from "
        f"label texts, {middle['texts']:.2f} s with 32 texts (medians, busy machine). Base and training on the "
        "task are those of the study."
    )


def main() -> None:
    """Render the section."""
    study = json.loads((RESULTS / "study.json").read_text(encoding="utf-8"))
    product = json.loads((RESULTS / "product.json").read_text(encoding="utf-8"))
    chosen, memory, kept = (
        json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("validation", "recalled", "codec")
    )
    found: dict[str, dict[str, Sequence[float]]] = {row: study["rows"][row] for row in ("base", "oracle")}
    for task, one in product["tasks"].items():
        for row, scores in one["rows"].items():
            found.setdefault(row, {})[task] = scores
    text = SECTION.format(
        resamples=RESAMPLES,
        openings=study["provenance"]["openings"],
        study=table(study["rows"], STUDY_ROWS, "static"),
        crossfit=crossfit(study["crossfit"]),
        cost=cost(product),
        product=table(found, PRODUCT_ROWS, "static"),
        validation=validation(chosen),
        recalled=recalled(memory),
        words=words(kept),
    )
    put("adapters_text", text)
    print(text)


if __name__ == "__main__":
    main()
