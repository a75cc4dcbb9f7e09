"""What was measured on the validation tasks, as tables of docs/results.md; ``adapters_text.py`` puts them there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Scores = Mapping[str, Mapping[str, Sequence[float]]]

NAMES = {"mapper": "mapper", "d2nwg": "D2NWG", "igpg": "IGPG"}
ROWS = {
    "labels 0.25": "label texts, a quarter of the strength",
    "labels 0.5": "label texts, half strength",
    "labels 1": "label texts",
    "junk 1": "label texts, the description is junk",
    "texts 1": "32 unlabelled texts too",
    "codec": "the task's own adapter through the codec",
}
SCORED = """Scored on {texts} texts of each of the {tasks} validation tasks. The gap is that between the base and
the task's own adapter of the zoo. Strength multiplies the update; the best one for label texts is written on the test
tasks. The last column is for the {few} tasks on which adapters were trained from scratch on labelled texts.

| | gap F1 | gap acc. | gap F1, {few} tasks |
|---|---|---|---|"""
COST = """- {name}: {millions:.1f} M parameters; one adapter takes {labels:.2f} s from label texts and
  {with_texts:.2f} s with 32 texts (medians on one busy core, after loading); strength {strength:g}."""
WORDS = """- IGPG writes {words} words an adapter, {bits_a_weight:.2f} bits a weight. Adapters of validation tasks cost
  {bits_a_word:.2f} bits a word; {uniform:.2f} if all words were equally likely."""
KEPT = """The codec of IGPG is fitted to the adapters of the training tasks. Adapters of the validation tasks, written
in its words and read again, close this share of the gap between the base and themselves as they were trained ({texts}
texts a task):

| codec | words an adapter | bits a weight | error | gap F1 | gap acc. |
|---|---|---|---|---|---|"""
RECALLED = """From label texts alone there are no texts to follow. Can texts of other tasks, those nearest to the
labels, take their place? Over {tasks} training and validation tasks, each without the tasks of its
family, in the space of the unadapted encoder (macro-F1 {base:.1f} %): gain of one step towards the texts.

| texts | mean taken off | pull | gain in F1, points |
|---|---|---|---|"""


def gap(rows: Scores, row: str, tasks: Sequence[str], metric: int) -> float:
    """Share of the gap between base and training on the task, pooled."""
    gained = sum(rows[row][task][metric] - rows["base"][task][metric] for task in tasks)
    return gained / sum(rows["oracle"][task][metric] - rows["base"][task][metric] for task in tasks)


def validation(found: Mapping[str, Any]) -> str:
    """Gaps on validation tasks, seconds of one adapter, and training on labelled texts beside it."""
    rows: dict[str, Mapping[str, Sequence[float]]] = {**found["rows"], "oracle": found["rows"]["own"]}
    trained = [row for row in rows if row.startswith("trained")]
    few, every = list(rows[trained[0]]), list(rows["base"])
    lines = [SCORED.format(texts=found["texts"], tasks=len(every), few=len(few))]
    for method, name in NAMES.items():
        for key, title in ROWS.items():
            if (row := f"{method} {key}") in rows:
                gaps = gap(rows, row, every, 0), gap(rows, row, every, 1), gap(rows, row, few, 0)
                lines.append(f"| {name}: {title} | {' | '.join(f'{one:+.2f}' for one in gaps)} |")
    for row in trained:
        steps = row.split()[1]
        title = f"trained for {steps} steps of 16 labelled texts, {found['finetuning'][steps]:.1f} s"
        lines.append(f"| {title} | | | {gap(rows, row, few, 0):+.2f} |")
    lines.append("")
    for method, about in found["generators"].items():
        labels, with_texts = about["seconds"]
        size = {"millions": about["parameters"] / 1e6, "labels": labels, "with_texts": with_texts}
        lines.append(COST.format(name=NAMES[method], **size, strength=about["strength"]))
        if words := about.get("words"):
            lines.append(WORDS.format(**words))
    return "\n".join(lines)


def words(found: Mapping[str, Any]) -> str:
    """What the words of IGPG keep of adapters that they were not fitted to."""
    rows: dict[str, Mapping[str, Sequence[float]]] = {**found["rows"], "oracle": found["rows"]["own"]}
    lines = [KEPT.format(texts=found["texts"])]
    for name, about in found["codecs"].items():
        gaps = [f"{gap(rows, name, list(rows['base']), metric):+.2f}" for metric in (0, 1)]
        lines.append(f"| {name} | {about['words']} | {about['bits']:.2f} | {about['error']:.2f} | {' | '.join(gaps)} |")
    return "\n".join(lines)


def recalled(found: Mapping[str, Any]) -> str:
    """Gains of following own and recalled texts."""
    lines = [RECALLED.format(tasks=found["tasks"], base=100 * found["base"])]
    for row in found["rows"]:
        many = row["recalled"]
        title = f"{found['texts']} of the task" if many is None else f"{many} a label, of other tasks"
        gain = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * one for one in row["gain"]))
        lines.append(f"| {title} | {row['centre']} | {row['pull']} | {gain} |")
    return "\n".join(lines)
