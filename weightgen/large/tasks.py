"""Task files that models are judged on.

Lines of JSON (``.jsonl``, optionally ``.gz``) for causal language models, all lines of one sort:

    {"prompt": "2 + 2 =", "choices": [" 3", " 4"], "answer": 1}      multiple choice; answer counts from 0
    {"text": "Some running text."}                                    likelihood of the text

Text classification tasks (``.json``, ``.json.gz``, ``.csv``, folders; see docs/data.md) for encoders. They have parts;
``FILE#train``, ``FILE#validation`` and ``FILE#test`` pick one.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zoo.errors import BadArtefact, UsageError

PARTS = ("train", "validation", "test")
FORMAT = "see docs/large.md for the format"


@dataclass(frozen=True)
class Item:
    """One question: a text before, the texts that may follow (or the labels), and which is right."""

    text: str
    choices: tuple[str, ...] = ()
    answer: int = 0


@dataclass(frozen=True)
class ScoringTask:
    """Questions of one sort.

    Attributes:
        name: file, and part if it has parts.
        kind: ``"choice"`` and ``"likelihood"`` for causal models, ``"labels"`` for encoders.
        items: the questions; those of an encoder share their labels.
        fingerprint: identity of the questions.
    """

    name: str
    kind: Literal["choice", "likelihood", "labels"]
    items: tuple[Item, ...]
    fingerprint: str


def load_task(source: str, default_part: str, max_items: int) -> ScoringTask:
    """Read a task file.

    Args:
        source: path, with ``#PART`` behind it for a text classification task.
        default_part: part to take if none is named.
        max_items: take the first so many; the files are taken to be shuffled.

    Raises:
        UsageError: if the file or part does not exist, or holds fewer than two questions.
        BadArtefact: if the file is damaged.
    """
    path_text, hash_sign, part = source.rpartition("#")
    if not hash_sign:
        path_text, part = source, ""
    path = Path(path_text)
    if not path.exists():
        raise UsageError(f"the task {path} does not exist", "check the path; it starts at the current folder")
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        if part:
            raise UsageError(f"{path} has no parts, but {part!r} is asked for", "leave out what follows the #")
        kind, items = _lines(path)
        name = path.name
    else:
        kind, (name, items) = "labels", _labels(path, part or default_part)
    items = items[:max_items]
    if len(items) < 2:
        raise UsageError(f"{source} has {len(items)} questions", "give a task with at least two")
    rows = [[item.text, list(item.choices), item.answer] for item in items]
    return ScoringTask(name, kind, tuple(items), hashlib.sha256(json.dumps([kind, rows]).encode()).hexdigest())


def _lines(path: Path) -> tuple[Literal["choice", "likelihood"], list[Item]]:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, EOFError, zlib.error, RecursionError) as error:
        raise BadArtefact(f"{path} holds no lines of JSON ({error})", FORMAT) from None
    items = [_item(path, number, row) for number, row in enumerate(rows, start=1)]
    if any(bool(item.choices) != bool(items[0].choices) for item in items):
        raise BadArtefact(f"{path} mixes questions with choices and texts without", "use two files")
    return ("choice" if items and items[0].choices else "likelihood"), items


def _item(path: Path, number: int, row: Any) -> Item:
    where = f"{path}, question {number}"
    if isinstance(row, dict) and row.keys() == {"text"} and isinstance(row["text"], str):
        return Item(row["text"])
    if not isinstance(row, dict) or not row.keys() >= {"prompt", "choices", "answer"}:
        raise BadArtefact(f"{where} has neither 'text' nor 'prompt', 'choices' and 'answer'", FORMAT)
    prompt, choices, answer = row["prompt"], row["choices"], row["answer"]
    fits = isinstance(choices, list) and len(choices) > 1 and all(isinstance(c, str) and c for c in choices)
    if not fits or not isinstance(prompt, str) or type(answer) is not int or not 0 <= answer < len(choices):
        raise BadArtefact(f"{where}: the answer must be the number of one of two or more texts, from 0", FORMAT)
    return Item(prompt, tuple(choices), answer)


def _labels(path: Path, part: str) -> tuple[str, list[Item]]:
    from zoo.build.text_tasks import load_text_task

    if part not in PARTS:
        raise UsageError(f"unknown part {part!r} of {path}", f"known are {', '.join(PARTS)}")
    task = load_text_task(path, validation=0.2, seed=0)
    texts, y = task.select(PARTS.index(part))
    items = [Item(text, task.label_texts, label) for text, label in zip(texts, y.tolist(), strict=True)]
    return f"{task.name}#{part}", items
