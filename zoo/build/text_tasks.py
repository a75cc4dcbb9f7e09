"""Text classification tasks from files: json.gz, csv and folders of Hugging Face ``datasets``. See docs/data.md."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from zoo.build.arrow import is_arrow, read_arrow
from zoo.build.rows import labelled_rows
from zoo.build.sources import take_validation
from zoo.errors import BadArtefact, UsageError
from zoo.tasks import TEST, TRAIN, VAL
from zoo.texts import pack

SUFFIXES = (".json.gz", ".json", ".csv")
PARTS = {"train": TRAIN, "validation": VAL, "val": VAL, "dev": VAL, "test": TEST}


@dataclass(frozen=True, eq=False)
class TextTask:
    """A text classification task whose labels are texts themselves.

    Attributes:
        name: unique name.
        description: one sentence.
        license: as stated by the source, or ``None``.
        label_names: short name of each label.
        label_texts: each label in words, for an encoder.
        texts: all examples.
        y: label of each.
        part: 0 train, 1 validation, 2 test.
    """

    name: str
    description: str
    license: str | None
    label_names: tuple[str, ...]
    label_texts: tuple[str, ...]
    texts: tuple[str, ...]
    y: Int[Tensor, " n"]
    part: Int[Tensor, " n"]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The labels, which are the classes of the task."""
        return self.label_names

    def tensors(self) -> dict[str, Tensor]:
        """What the zoo stores: the texts packed by ``zoo.texts``, those of the labels under ``label``."""
        return {**pack(self.texts), **pack(self.label_texts, "label"), "y": self.y, "part": self.part}

    def select(self, part: int) -> tuple[list[str], Int[Tensor, " n"]]:
        """Texts and labels of one part."""
        keep = torch.nonzero(self.part == part).flatten()
        return [self.texts[i] for i in keep.tolist()], self.y[keep]


def load_text_tasks(sources: Sequence[str], validation: float, seed: int) -> list[TextTask]:
    """Load tasks from files and from folders of files.

    Args:
        sources: paths; a folder stands for all the tasks in it.
        validation: share of the training examples used for validation where a source has no validation part.
        seed: decides that split.

    Raises:
        UsageError: if a path does not exist or holds no task, or two tasks have one name.
        BadArtefact: if a file is damaged.
        MissingExtra: if an optional dependency is missing.
    """
    paths = [path for source in sources for path in _expand(Path(source))]
    tasks = [load_text_task(path, validation, seed) for path in paths]
    names = [task.name for task in tasks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"two tasks are named {min(twice)!r}", "rename one of the files")
    return tasks


def _expand(path: Path) -> list[Path]:
    if path.is_dir() and not is_arrow(path):
        found = sorted(p for p in path.iterdir() if p.name.endswith(SUFFIXES) and p.name != "index.json")
        found += sorted(p for p in path.iterdir() if p.is_dir() and is_arrow(p))
        if not found:
            raise UsageError(f"{path} holds no text tasks", f"it needs files that end in {', '.join(SUFFIXES)}")
        return found
    if not path.exists():
        raise UsageError(f"the data {path} do not exist", "check the path; it starts at the current folder")
    return [path]


def load_text_task(path: Path, validation: float, seed: int) -> TextTask:
    """Load one task; arguments and errors as in ``load_text_tasks``, but a path that does not exist is damaged too."""
    if not path.exists():
        raise BadArtefact(f"{path} does not exist", "check the path; it starts at the current folder")
    try:
        read = _from_arrow if path.is_dir() else _from_csv if path.suffix == ".csv" else _from_json
        return _task(path, read(path), validation, seed)
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError) as error:
        raise BadArtefact(f"{path} is no text task ({error})", "see docs/data.md for the formats") from None


def _from_json(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


def _from_csv(path: Path) -> dict[str, Any]:
    rows = labelled_rows(path, "text")
    names = sorted({row["label"] for row in rows})
    number = {name: i for i, name in enumerate(names)}
    raw: dict[str, Any] = {"labels": [{"name": name, "text": name.replace("_", " ")} for name in names]}
    for row in rows:
        split = (row.get("split") or "train").strip().lower()
        raw.setdefault(_part_name(split), []).append([row["text"], number[row["label"]]])
    return raw


def _from_arrow(path: Path) -> dict[str, Any]:
    splits = read_arrow(path)
    first = next(iter(splits.values()))
    text, label = first.column(("text", "sentence", "content"), path), first.column(("label", "labels"), path)
    for name, split in splits.items():
        if lacking := sum(None in row for row in zip(split.columns[text], split.columns[label], strict=True)):
            raise ValueError(f"{lacking} rows of {name} have no {text} or no {label}")
    values = sorted({value for split in splits.values() for value in split.columns[label]}, key=str)
    names = first.names.get(label) or tuple(map(str, values))
    number = {value: i for i, value in enumerate(range(len(names)) if label in first.names else values)}
    raw: dict[str, Any] = {"labels": [{"name": name, "text": name.replace("_", " ")} for name in names]}
    raw |= {"description": first.description, "source": {"licence": first.license}}
    for name, split in splits.items():
        rows = zip(split.columns[text], split.columns[label], strict=True)
        raw.setdefault(_part_name(name), []).extend([t, number[v]] for t, v in rows)
    return raw


def _part_name(split: str) -> str:
    if split not in PARTS:
        raise ValueError(f"unknown split {split!r}; known are {', '.join(PARTS)}")
    return ("train", "validation", "test")[PARTS[split]]


def _task(path: Path, raw: dict[str, Any], validation: float, seed: int) -> TextTask:
    labels = raw["labels"]
    rows = {part: raw.get(part) or [] for part in ("train", "validation", "test")}
    texts = [str(text) for part in rows.values() for text, _ in part]
    y = np.array([int(label) for part in rows.values() for _, label in part], dtype=np.int64)
    if not rows["train"]:
        raise ValueError("it has no examples for training")
    if len(labels) < 2:
        raise ValueError(f"it needs two labels or more and has {len(labels)}")
    if y.min() < 0 or y.max() >= len(labels):
        raise ValueError(f"label numbers go from {y.min()} to {y.max()} and have to be from 0 to {len(labels) - 1}")
    counts = [len(part) for part in rows.values()]
    part = torch.repeat_interleave(torch.tensor([TRAIN, VAL, TEST]), torch.tensor(counts))
    if not rows["validation"]:
        part = take_validation(y, part, validation, seed)
    source = raw.get("source") or {}
    name = str(raw.get("name") or path.name.split(".")[0])
    label_names = tuple(str(label["name"]) for label in labels)
    return TextTask(
        name=name,
        description=str(raw.get("description") or f"texts to be sorted into {', '.join(label_names)}"),
        license=source.get("licence") or source.get("license"),
        label_names=label_names,
        label_texts=tuple(str(label.get("text") or label["name"]) for label in labels),
        texts=tuple(texts),
        y=torch.from_numpy(y),
        part=part,
    )
