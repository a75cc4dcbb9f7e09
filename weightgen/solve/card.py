"""The verdict: every candidate with its score, its noise and its fate, as JSON and as a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from weightgen import __version__
from weightgen.solve.solution import Solution
from weightgen.solve.ways import LEVELS

BASES_OF_CHOICE = {
    "labels": "labelled examples, drawn to what the ways gained on other tasks",
    "track record": "no labelled examples: what the ways gained on other tasks, and retrieval where it is calibrated",
    "retrieval": "no labelled examples: calibrated retrieval alone",
    "nothing": "no labelled examples, no calibrated scores, and no track record for this base",
}
USE_NETWORK = ["    weightgen evaluate network.safetensors --data examples.npz", "", "The file names its architecture."]


def solve_report(
    solution: Solution, task: Mapping[str, Any], base_model: str | None, record_about: str | None
) -> dict[str, Any]:
    """Everything about a search, as JSON values.

    Args:
        solution: what was found.
        task: what was known of the task; see ``GivenTask.about``.
        base_model: of adapters.
        record_about: where the track record comes from.
    """
    search, sources = solution.search, solution.sources
    rows = []
    for one in search.candidates:
        last = search.last.get(one.name)
        rows.append(
            {
                "name": one.name,
                "way": one.way,
                "level": one.level,
                "about": one.about,
                "learns_from_labels": one.learn is not None,
                "examples": search.judged.get(one.name, 0),
                "macro_f1": _rounded(last and last.macro_f1),
                "interval": [_rounded(end) for end in last.interval] if last and last.interval else None,
                "gain_over_base": _rounded(last and last.gain.value),
                "noise": _rounded(last and last.gain.noise),
                "probability": _rounded(one.probability),
                "fate": _fate(one.name, solution),
            }
        )
    return {
        "weightgen": __version__,
        "base_model": base_model,
        "task": dict(task),
        "verdict": {
            "choice": solution.choice.name,
            "way": solution.choice.way,
            "about": solution.choice.about,
            "use_base": solution.choice.way == "base",
            "best": search.best.name,
            "basis": solution.basis,
            "basis_in_words": BASES_OF_CHOICE[solution.basis],
            "sentence": _sentence(solution),
        },
        "order_of_simplicity": list(LEVELS),
        "candidates": rows,
        "controls": solution.controls,
        "retrieval": {"about_scores": sources.about_scores, "calibrated": sources.calibrated},
        "track_record": record_about,
        "cost": solution.cost,
        "notes": list(solution.notes),
    }


def _fate(name: str, solution: Solution) -> str:
    if name == solution.choice.name:
        return "chosen"
    if name in solution.search.fate:
        return solution.search.fate[name]
    return "best, but not beyond noise" if name == solution.search.best.name else "judged to the end"


def _sentence(solution: Solution) -> str:
    search, choice = solution.search, solution.choice
    if solution.basis == "nothing":
        return "Use the base: nothing is known that could tell a better adapter. Give labelled examples."
    last = search.last.get(choice.name)
    if choice.way == "base":
        if set(search.last) <= {choice.name}:
            return "Use the base: nothing else was judged; the list of candidates and the notes say why."
        if search.best.name == choice.name:
            return "Use the base: nothing that was tried is better."
        best = search.last[search.best.name]
        return (
            f"Use the base: {search.best.name}, the best, is estimated {_points(best.gain.value)} better, within "
            f"the noise of {_points(best.gain.noise)}."
        )
    if last is None:
        return f"{choice.about}: {100 * (choice.probability or 0):.0f} % likely to beat the base. It was not measured."
    gain = f"estimated {_points(last.gain.value)} better than the base, give or take {_points(last.gain.noise)}"
    if search.best.name == choice.name:
        return f"{choice.about}: {gain}; nothing is better."
    return f"{choice.about}: {gain}; the simplest within the noise of the best, {search.best.name}."


def _points(value: float) -> str:
    return f"{100 * value:.1f} points of macro-F1"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def solve_card(report: Mapping[str, Any]) -> str:
    """README of the result, from the report."""
    task, verdict, cost = report["task"], report["verdict"], report["cost"]
    labels = "\n".join(f"- {' '.join(label.split())}" for label in task["labels"])
    adapter = report["base_model"] is not None
    front = [f"base_model: {json.dumps(report['base_model'])}", "library_name: peft"] if adapter else []
    budget = f"{cost['budget']['amount']:g} {cost['budget']['unit']}"
    written = "The adapter in this folder changes nothing." if adapter else "No network was written."
    advice = f"\n**Use the base instead.** {written}\n" if verdict["use_base"] else ""
    lines = [f"| {' | '.join(_cells(row))} |" for row in report["candidates"]]
    controls = [f"- {name}: {100 * value:.1f} %" for name, value in report["controls"].items()]
    notes = [f"- {note}" for note in report["notes"]]
    return "\n".join(
        [
            "---",
            *front,
            "tags:",
            "  - weightgen",
            "---",
            "",
            f"# {' '.join(task['description'].split()) or task['name']}",
            advice,
            verdict["sentence"],
            "",
            f"Chosen from {len(report['candidates'])} candidates on the ground of {verdict['basis_in_words']}.",
            "",
            labels,
            "",
            "## Candidates",
            "",
            f"Macro-F1 on {task['labelled_texts']} labelled examples; those that learn from them are judged on folds",
            "that they did not see. Gain is over the base in points, drawn to what the way gained on other tasks; ± is",
            f"its standard error. Simplicity: {' < '.join(report['order_of_simplicity'])}.",
            "",
            "| candidate | what | examples | macro-F1, % | gain | |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
            "## Controls",
            "",
            *(controls or ["- none without labels"]),
            "",
            "## Cost",
            "",
            f"Budget {budget}; spent {cost['steps']:g} steps, {cost['seconds']:.1f} s, "
            f"peak memory {cost['peak_memory_mib']} MiB.",
            "",
            "## Notes",
            "",
            f"- retrieval: {report['retrieval']['about_scores']}",
            f"- track record: {report['track_record'] or 'none for this base'}",
            *notes,
            "",
            "## Use",
            "",
            *(_use_adapter(report["base_model"]) if adapter else USE_NETWORK),
            "",
        ]
    )


def _use_adapter(base_model: str) -> list[str]:
    return [
        "There is no head: the adapted encoder embeds text and labels (mean pooling, unit length), and the nearest",
        "label wins.",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModel",
        "",
        f"base = AutoModel.from_pretrained({json.dumps(base_model)})",
        'model = PeftModel.from_pretrained(base, "path/of/this/folder")',
        "```",
    ]


def _cells(row: Mapping[str, Any]) -> list[str]:
    score = gain = ""
    if row["macro_f1"] is not None:
        score = f"{100 * row['macro_f1']:.1f} [{100 * row['interval'][0]:.1f}, {100 * row['interval'][1]:.1f}]"
    if row["gain_over_base"] is not None and row["way"] != "base":
        gain = f"{100 * row['gain_over_base']:+.1f} ± {100 * row['noise']:.1f}"
    name = f"**{row['name']}**" if row["fate"] == "chosen" else row["name"]
    return [name, row["about"].replace("|", "/"), str(row["examples"] or ""), score, gain, row["fate"]]
