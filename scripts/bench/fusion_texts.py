"""Texts of the study of weak-to-strong decoding: two groups of tasks, and what the base models of each group read.

``unseen``: the base models never read a text of the task's domain. ``known``: they read plenty of it, in another form,
and fine-tuning teaches the form. The needed files are named in ``fusion_models.py``.
"""

from __future__ import annotations

import ast
import gzip
import json
import random
import re
import sysconfig
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerFast

LENGTH, STDLIB_BYTES = 256, 4_000_000
OPERATIONS = ("Addition", "Subtraction", "Multiplication", "Common-Division")
BASE_SHARE, BASE_SOLUTIONS = 0.6, 5000
"""What the base models of ``known`` read of the library's files and of the plays; and how many worked solutions."""
Parts = dict[str, list["Item"]]
"""Examples of a task in disjoint parts ``train``, ``val`` and ``test``."""


@dataclass(frozen=True)
class Item:
    """One example: the model is trained and judged on the answer alone."""

    prompt: str
    answer: str


def encode(tokenizer: PreTrainedTokenizerFast, items: list[Item]) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer tokens of the items that fit; an answer to a prompt ends with the end token."""
    encoded = []
    for item in items:
        prompt = tokenizer.encode(item.prompt) if item.prompt else []
        answer = tokenizer.encode(item.answer) + ([tokenizer.eos_token_id] if item.prompt else [])
        if not item.prompt:
            prompt, answer = answer[:16], answer[16:LENGTH]
        if len(prompt) + len(answer) <= LENGTH:
            encoded.append((prompt, answer))
    return encoded


@cache
def task_items(texts: Path, task: str) -> Parts:
    """Examples of a task of any group.

    Args:
        texts: folder of the texts.
        task: name of the task.
    """
    return _MAKERS[task](texts)


def base_text(texts: Path, group: str) -> list[str]:
    """Documents that the base models of a group read."""
    return _unseen_base(texts) if group == "unseen" else _known_base(texts)


def _windows(text: str, size: int = 700) -> list[Item]:
    lines, windows, held = text.splitlines(keepends=True), [], ""
    for line in lines:
        held += line
        if len(held) >= size:
            windows.append(Item("", held))
            held = ""
    return windows


def _shuffled(task: str, items: list[Item], val: int, test: int) -> Parts:
    random.Random(f"parts of {task}").shuffle(items)
    return {"train": items[val + test :], "val": items[:val], "test": items[val : val + test]}


def _plays(texts: Path) -> str:
    return (texts / "tinyshakespeare" / "input.txt").read_text()


def _play(texts: Path) -> Parts:
    items = _windows(_plays(texts))
    cut = int(0.85 * len(items))  # later acts are held out, not windows between those that were read
    return {"train": items[:cut], "val": items[cut : cut + 100], "test": items[cut + 100 :]}


def _solutions(texts: Path, name: str) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (texts / "gsm8k" / f"{name}.jsonl").read_text().splitlines()]
    return [(row["question"], row["answer"]) for row in rows]


def _math(texts: Path) -> Parts:
    parts = {n: [Item(f"{q}\nSolution: ", a) for q, a in _solutions(texts, n)] for n in ("train", "test")}
    return {"train": parts["train"][:-300], "val": parts["train"][-300:], "test": parts["test"]}


def _calculator(texts: Path) -> Parts:
    """Worked solutions with calculator calls and a marked result; the base models read such solutions in prose."""
    items = _math(texts)
    return items | {"train": items["train"][BASE_SOLUTIONS:]}


def _prose(answer: str) -> str:
    return re.sub(r"#### (.*)", r"The answer is \1.", re.sub(r"<<.*?>>", "", answer))


def _code(texts: Path) -> Parts:
    rows = json.loads(gzip.decompress((texts / "code" / "CodeAlpaca-20K.json.gz").read_bytes()))
    items = [Item(row["prompt"] + "\nAnswer:\n", row["response"]) for row in rows if "\n" in row["response"]]
    return _shuffled("code", items, 300, 600)


def _operation(texts: Path) -> Parts:
    problems = ElementTree.parse(texts / "asdiv" / "ASDiv.xml").iter("Problem")
    fields = [[(p.findtext(k) or "").strip() for k in ("Body", "Question", "Solution-Type")] for p in problems]
    items = [Item(f"{b} {q}\nOperation:", f" {kind.lower()}") for b, q, kind in fields if kind in OPERATIONS]
    return _shuffled("operation", items, 200, 500)


def _library() -> dict[str, list[str]]:
    """Sources of the standard library without its tests and tables, in four parts by file."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
    paths = sorted(p for p in root.rglob("*.py") if not left_out & set(p.relative_to(root).parts))
    random.Random("files of the library").shuffle(paths)
    sources = [path.read_text(encoding="utf-8", errors="ignore") for path in paths]
    cuts = [int(share * len(sources)) for share in (0, BASE_SHARE, 0.85, 0.9, 1)]
    return {n: sources[a:b] for n, a, b in zip(("base", "train", "val", "test"), cuts[:-1], cuts[1:], strict=True)}


def _functions(source: str) -> Iterator[Item]:
    try:
        nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef) and len(n.body) > 1]
    except SyntaxError:
        return
    lines = source.splitlines(keepends=True)
    for node in nodes:
        text = (ast.get_docstring(node) or "").split("\n\n")[0]
        if not text:
            continue
        note = node.body[0]
        body = lines[node.lineno - 1 : note.lineno - 1] + lines[note.end_lineno or note.lineno : node.end_lineno]
        yield Item(f"{' '.join(text.split())}\nFunction:\n", textwrap.dedent("".join(body)).rstrip())


def _holes(source: str, size: int = 8) -> Iterator[Item]:
    lines = source.splitlines()
    for start in range(0, len(lines) - size, 3 * size):
        shown = lines[start : start + size]
        missing = shown[3:5]
        if all(line.strip() for line in missing):
            yield Item("\n".join([*shown[:3], "<missing>", *shown[5:], "Missing:", ""]), "\n".join(missing))


def _of_library(task: str) -> Parts:
    """Code of files that the base models did not read; what is in another part too, word for word, is left out."""
    make, parts, seen = {"function": _functions, "infill": _holes}[task], {}, set[str]()
    library = _library()
    read = "\n".join(library["base"])
    for part in ("train", "val", "test"):
        items = [item for source in library[part] for item in make(source)]
        parts[part] = [item for item in items if item.answer not in seen and item.answer not in read]
        seen |= {item.answer for item in items}
        random.Random(f"{part} of {task}").shuffle(parts[part])
    return parts


def _unseen_base(texts: Path) -> list[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = sorted(p for p in library.rglob("*.py") if "site-packages" not in p.parts and "test" not in p.parts)
    random.Random("sources").shuffle(sources)
    documents = [path.read_text() for path in sorted((texts / "books").glob("*.txt"))]
    documents.append((texts / "wikitext2" / "valid.txt").read_text())
    questions = [item.prompt.removesuffix("\nSolution: ") for item in _math(texts)["train"]]
    documents += ["\n\n".join(questions[start : start + 20]) for start in range(0, len(questions), 20)]
    size = 0
    for path in sources:
        if size > STDLIB_BYTES:
            break
        source = path.read_text(encoding="utf-8", errors="ignore")[:40_000]
        documents.append(source)
        size += len(source)
    return documents


def _speeches(windows: list[Item]) -> str:
    return re.sub(r"(?m)^[A-Z][\w ,.'-]*:\n", "", "".join(item.answer for item in windows))


def _known_base(texts: Path) -> list[str]:
    solved = [f"{q}\n{_prose(a)}" for q, a in _solutions(texts, "train")[:BASE_SOLUTIONS]]
    scenes = _play(texts)
    speeches = _speeches(scenes["train"][: int(BASE_SHARE * sum(map(len, scenes.values())))])
    return [
        *(source[:40_000] for source in _library()["base"]),
        *("\n\n".join(solved[start : start + 20]) for start in range(0, len(solved), 20)),
        *[speeches] * 3,  # the least text of the three kinds is read three times
    ]


def held_out_text(texts: Path) -> dict[str, str]:
    """Text of each domain of ``known``, in the form that its base models read but of parts that they did not read."""
    solved = [f"{q}\n{_prose(a)}" for q, a in _solutions(texts, "test")[:200]]
    return {
        "sources": "\n".join(source[:4000] for source in _library()["test"]),
        "solutions": "\n\n".join(solved),
        "speeches": _speeches(_play(texts)["test"]),
    }


_MAKERS = {
    "play": _play,
    "code": _code,
    "math": _math,
    "operation": _operation,
    "calculator": _calculator,
    "function": lambda _: _of_library("function"),
    "infill": lambda _: _of_library("infill"),
}
