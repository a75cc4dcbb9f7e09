"""Read saved result files of any kind into tables of methods: what was compared, on how many tasks, how it scored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.errors import BadArtefact, UsageError

METHODS = ("method", "way", "name", "case")
METRICS = ("macro_f1", "accuracy", "mean", "gap", "recall", "score")
"""Measured columns that a table is ranked by, the first that is there; higher is better."""
GROUPS = ("part", "pool", "shots", "epoch")
"""Columns that split a table: their values are not averaged over."""
REPEATS = ("task", "seed")
"""Columns that rows of one method are averaged over."""


@dataclass(frozen=True)
class Entry:
    """One method in one setting.

    Attributes:
        method: its name.
        group: setting, for example ``shots 16``; may be empty.
        values: the measured value by (task, seed).
        spread: half the interval that the file itself gives, if it has one row a method.
    """

    method: str
    group: str
    values: Mapping[tuple[str, str], float]
    spread: float | None = None

    @property
    def mean(self) -> float:
        """Mean over everything."""
        return sum(self.values.values()) / len(self.values)

    @property
    def tasks(self) -> int:
        """How many tasks."""
        return len({task for task, _ in self.values})


@dataclass(frozen=True)
class Table:
    """Methods that were compared.

    Attributes:
        title: what it is.
        metric: name of the measured value.
        entries: methods by group.
        said: a sentence of verdict that the file holds.
    """

    title: str
    metric: str
    entries: Sequence[Entry]
    said: str = ""


@dataclass(frozen=True)
class Section:
    """One folder of results.

    Attributes:
        name: of the folder, or of a single file.
        tables: what could be read.
        files: how many files there are.
    """

    name: str
    tables: Sequence[Table]
    files: int


EARLIER = "earlier"
"""Name of folders with results that others have replaced."""


@dataclass
class _Rows:
    """Rows of one kind, gathered over files."""

    metric: str
    values: dict[tuple[str, str], dict[tuple[str, str], float]] = field(default_factory=dict)
    spreads: dict[tuple[str, str], float] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)


def read_results(folder: Path) -> list[Section]:
    """Read all JSON files of a folder; subfolders become sections, folders named ``earlier`` are left out.

    Files whose rows share their columns become one table: rows of a method are averaged over tasks and seeds, and never
    over label counts, pools or parts.

    Raises:
        UsageError: if the folder holds no results.
        BadArtefact: if a file is no JSON.
    """
    found = sorted(folder.rglob("*.json")) if folder.is_dir() else []
    paths = [path for path in found if EARLIER not in path.relative_to(folder).parts]
    if not paths:
        raise UsageError(f"{folder} holds no saved results", "give a folder with JSON files, such as solve.json")
    sections: dict[str, list[Path]] = {}
    for path in paths:
        parts = path.relative_to(folder).parts
        sections.setdefault(parts[0] if len(parts) > 1 else path.stem, []).append(path)
    return [Section(name, _tables(files), len(files)) for name, files in sections.items()]


def _tables(files: Sequence[Path]) -> list[Table]:
    gathered: dict[tuple[str, str], _Rows] = {}
    for path in files:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadArtefact(f"{path} is no JSON ({error})", "remove it from the folder of results") from None
        if isinstance(content, Mapping):
            _gather(path, content, gathered)
    tables = []
    for (title, _), rows in gathered.items():
        entries = [
            Entry(method, group, values, rows.spreads.get((method, group)) if len(values) == 1 else None)
            for (method, group), values in rows.values.items()
        ]
        if len(entries) > 1:
            tables.append(Table(title, rows.metric, entries, rows.said[0] if len(rows.said) == 1 else ""))
    return tables


def _gather(path: Path, content: Mapping[str, Any], gathered: dict[tuple[str, str], _Rows]) -> None:
    title = path.stem.removesuffix(f"-{content.get('task')}")
    first, _, last = title.rpartition("-")
    title = first if first and last.isdigit() else title  # one file a task or a seed: they belong together
    verdict = content.get("verdict")
    said = str(verdict.get("sentence", "")) if isinstance(verdict, Mapping) else ""
    about = {name: content[name] for name in (*REPEATS, *GROUPS) if isinstance(content.get(name), str | int)}
    for method, found in _rows_of(content):
        metric = next((name for name in METRICS if _is_number(found.get(name))), None)
        if metric is None:
            continue
        row = {**about, **found}
        if isinstance(row.get("setting"), Mapping):
            method += " " + ", ".join(f"{name} {value}" for name, value in row["setting"].items())
        kind = gathered.setdefault((title, metric), _Rows(metric))
        group = ", ".join(f"{name} {row[name]}" for name in GROUPS if name in row)
        repeat = (str(row.get("task", path.stem)), str(row.get("seed", path.stem)))
        kind.values.setdefault((method, group), {})[repeat] = float(row[metric])
        interval = row.get("interval", row.get(f"{metric}_interval"))
        if isinstance(interval, Sequence) and len(interval) == 2:
            kind.spreads[method, group] = (float(interval[1]) - float(interval[0])) / 2
        if said and said not in kind.said:
            kind.said.append(said)


def _rows_of(content: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a file in any of the forms that are saved, with the names of their methods."""
    for key in ("rows", "candidates", "controls"):
        yield from _named(content.get(key))
    tasks = content.get("tasks")
    for task, one in tasks.items() if isinstance(tasks, Mapping) else ():
        for name, row in one["rows"].items() if isinstance(one, Mapping) and "rows" in one else ():
            yield from _of_tasks(str(name), {task: row})
    curves = content.get("curves")
    for task, methods in curves.items() if isinstance(curves, Mapping) else ():
        for name, curve in methods.items() if isinstance(methods, Mapping) else ():
            yield from _of_epochs(str(name), str(task), curve)
    for key, values in content.items():  # {"recall_at_1": {"by description": 0.9}}
        metric = next((name for name in METRICS if key.startswith(name)), None)
        if metric and isinstance(values, Mapping):
            yield from ((str(name), {metric: value}) for name, value in values.items())


def _named(rows: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(rows, Mapping):
        for name, row in rows.items():
            if isinstance(row, Mapping):
                yield str(name), row
                yield from _of_tasks(str(name), row)
    elif isinstance(rows, list):
        for row in rows:
            name = next((row[key] for key in METHODS if key in row), None) if isinstance(row, Mapping) else None
            if name is not None:
                yield str(name), row


def _of_tasks(name: str, row: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Pairs of macro-F1 and accuracy by task."""
    for task, pair in row.items():
        if isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)) and not task.endswith("interval"):
            yield name, {"task": task, "macro_f1": pair[0], "accuracy": pair[1]}


def _of_epochs(name: str, task: str, curve: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Accuracies of some networks after some epochs of training."""
    for epoch, values in curve.items():
        if isinstance(values, list) and values and all(map(_is_number, values)):
            yield name, {"task": task, "epoch": int(epoch), "accuracy": sum(values) / len(values)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
