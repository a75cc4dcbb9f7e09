"""Measures generators of adapters on the test tasks of the study, one task after the other, resumable.

    python scripts/bench/adapters_text_measure.py zoo --tasks DIR --adapters DIR --zoo DIR
    weightgen train configs/prototype-lora.yaml --zoo DIR --out DIR    (likewise mapper-, d2nwg- and igpg-lora, on a
                                                                        zoo of one shared start: --seeds 0)
    python scripts/bench/adapters_text_choose.py ...                   (strengths, on the validation tasks)
    python scripts/bench/adapters_text_measure.py run --tasks DIR --out docs/results/adapters_text/product-SEED.json \\
        --generators prototype=DIR mapper=DIR d2nwg=DIR ...

The zoo holds training and validation tasks only. Encoders run in bfloat16. ``adapters_text.py`` renders the result.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "adapters_text"
CHOICE = RESULTS / "validation.json"
sys.path[0] = str(ROOT)

from scripts.bench.adapters_text_tasks import JUNK, REPHRASED, TEST, load, make_zoo  # noqa: E402
from weightgen.adapted import AdaptedEncoder  # noqa: E402
from weightgen.checkpoint import load_generator, read_history  # noqa: E402
from weightgen.generate.adapters import condition_of  # noqa: E402
from weightgen.generate.task import GivenTask  # noqa: E402
from weightgen.generators import Generator  # noqa: E402
from weightgen.generators.prototype import Prototype  # noqa: E402
from weightgen.prototypes.last_layer import BATCH, Reading  # noqa: E402
from weightgen.types import Condition, TaskText  # noqa: E402
from zoo.build.encoder import EncoderConfig, TextEncoder  # noqa: E402
from zoo.tasks import TEST as TEST_PART  # noqa: E402
from zoo.tasks import TRAIN  # noqa: E402
from zoo.types import Layout  # noqa: E402

UNLABELLED = 32
ROWS = ("", "_texts", "_junk", "_shuffled", "_rephrased", "_texts_junk")
"""What generators other than ``prototype`` are asked with; each reads all test texts once more."""


def scores(found: Tensor, y: Tensor) -> list[float]:
    """Macro-F1 over the labels that occur, and accuracy."""
    f1 = []
    for label in y.unique():
        right = ((found == label) & (y == label)).sum()
        f1.append(2 * right / ((found == label).sum() + (y == label).sum()))
    return [round(torch.stack(f1).mean().item(), 4), round((found == y).float().mean().item(), 4)]


def nearest(texts: Tensor, labels: Tensor) -> Tensor:
    """Number of the nearest label of each text."""
    return (texts @ labels.T).argmax(1)


@torch.no_grad()
def prototype_rows(
    generator: Prototype, task: TaskText, others: TaskText, rephrased: str, texts: Sequence[str], y: Tensor
) -> dict[str, Any]:
    """Rows that differ in the edit of the last layer only: every text is read once."""
    full, label_only = task, replace(task, texts=())
    asked = {
        "static_half": None,
        "labels": label_only,
        "labels_junk": replace(label_only, description=JUNK),
        "labels_shuffled": replace(label_only, description=others.description),
        "labels_rephrased": replace(label_only, description=rephrased),
        "texts": full,
        "texts_junk": replace(full, description=JUNK),
        "texts_shuffled": replace(full, description=others.description),
    }
    seconds, edits = {}, {}
    for row, one in asked.items():
        started = time.perf_counter()
        edits[row] = None if one is None else generator.edit_for(one)
        seconds[row] = round(time.perf_counter() - started, 3)
    reader = generator.reader()

    def vectors(reading: Reading, row: str) -> Tensor:
        edit = edits[row]
        change = None if edit is None else reading.keys @ edit.a.T @ edit.b.T
        return torch.nn.functional.normalize(reading.means(change), dim=-1)

    tokens = reader.tokens(texts)
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    with torch.autocast("cpu", torch.bfloat16):
        labels = reader.read(reader.tokens(task.labels))
    found = {row: torch.zeros(len(order), dtype=torch.long) for row in asked}
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        with torch.autocast("cpu", torch.bfloat16):
            reading = reader.read([tokens[i] for i in rows])
        for row, numbers in found.items():
            numbers[rows] = nearest(vectors(reading, row), vectors(labels, row))
    return {"rows": {row: scores(numbers, y) for row, numbers in found.items()}, "seconds": seconds}


@torch.no_grad()
def scored(
    encoder: TextEncoder, layout: Layout, tensors: Mapping[str, Tensor], task: TaskText, texts: Sequence[str], y: Tensor
) -> list[float]:
    """Scores of one adapter."""
    with AdaptedEncoder(encoder, layout).applied(tensors), torch.autocast("cpu", torch.bfloat16):
        return scores(nearest(encoder.encode(texts), encoder.encode(task.labels)), y)


class Given:
    """A held-out task: what a generator may know, and the part that adapters are scored on."""

    def __init__(self, tasks: Path, name: str, part: int = TEST_PART, most: int | None = None) -> None:
        self.name, read = name, load(tasks, name)
        texts, y = read.select(part)
        self.texts, self.y = texts[:most], y[:most]
        self.known = TaskText(read.description, read.label_texts, tuple(read.select(TRAIN)[0][:UNLABELLED]))

    def condition(self, known: TaskText, encoder: TextEncoder) -> Condition:
        """The task as a generator is told."""
        return condition_of(GivenTask(self.name, known, (), self.y[:0]), encoder)


def measure_prototype(generator: Prototype, given: Given, other: TaskText, encoder: TextEncoder) -> dict[str, Any]:
    """All rows of the prototype generator, and of its static adapter, for one task."""
    result = prototype_rows(generator, given.known, other, REPHRASED[given.name], given.texts, given.y)
    nothing = Condition(words=(replace(given.known, labels=()),))
    static = generator.sample(nothing, generator.layout_for(nothing), 1, 0)[0]
    factor = 1 / generator.config.static.strength
    full = {key: value * (factor if "lora_B" in key else 1) for key, value in static.tensors.items()}
    result["rows"]["static_full"] = scored(encoder, static.layout, full, given.known, given.texts, given.y)
    return result


def measure_other(
    wanted: Sequence[str], generator: Generator, given: Given, other: TaskText, encoder: TextEncoder
) -> dict[str, list[float]]:
    """Rows of another generator for one task, by what it is asked with."""
    label_only, rows = replace(given.known, texts=()), {}
    asked = {
        "": label_only,
        "_texts": given.known,
        "_junk": replace(label_only, description=JUNK),
        "_shuffled": replace(label_only, description=other.description),
        "_rephrased": replace(label_only, description=REPHRASED[given.name]),
        "_texts_junk": replace(given.known, description=JUNK),
    }
    for row in wanted:
        condition = given.condition(asked[row], encoder)
        weights = generator.sample(condition, generator.layout_for(condition), 1, 0)[0]
        rows[row] = scored(encoder, weights.layout, weights.tensors, given.known, given.texts, given.y)
    return rows


def run(tasks: Path, folders: Mapping[str, Path], out: Path, asked: Sequence[str] = ROWS) -> None:
    """Measure on every test task what is not in the file yet."""
    done = json.loads(out.read_text()) if out.is_file() else {"generators": {}, "tasks": {}}
    choice = json.loads(CHOICE.read_text())["generators"] if CHOICE.is_file() else {}
    encoder = TextEncoder(EncoderConfig())
    for method, folder in folders.items():
        history, generator = read_history(folder), load_generator(folder)
        generator.attach(encoder)
        if chosen := choice.get(method):
            generator.config = generator.config.model_copy(update={"strength": chosen["strength"]})
        if overlap := set(TEST) & set(history["train_tasks"]):
            sys.exit(f"error: {folder} was trained on the test tasks {', '.join(sorted(overlap))}")
        stages = {name: {k: v for k, v in stage.items() if k != "log"} for name, stage in history["stages"].items()}
        about = {"parameters": history["parameters"], "stages": stages, "train_tasks": len(history["train_tasks"])}
        done["generators"][method] = {**about, "config": history["identity"]["config"]}
        for number, name in enumerate(TEST):
            found = done["tasks"].setdefault(name, {"rows": {}})
            wanted = ["labels"] if method == "prototype" else [method + row for row in asked]
            if not (missing := [row for row in wanted if row not in found["rows"]]):
                continue
            started, given = time.perf_counter(), Given(tasks, name)
            other = Given(tasks, TEST[(number + 3) % len(TEST)]).known
            if isinstance(generator, Prototype):
                result = measure_prototype(generator, given, other, encoder)
                found["rows"].update(result["rows"])
                found["seconds"] = result["seconds"]
            else:
                rows = [row.removeprefix(method) for row in missing]
                measured = measure_other(rows, generator, given, other, encoder)
                found["rows"].update({method + row: one for row, one in measured.items()})
            side = out.with_suffix(".partial")
            side.write_text(json.dumps(done, indent=1))
            side.replace(out)
            print(f"{method}, {name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["zoo", "run"])
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--adapters", type=Path)
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--seeds", default="*", help="adapters of these seeds only")
    parser.add_argument("--generators", nargs="*", default=[], metavar="NAME=DIR")
    parser.add_argument("--rows", nargs="*", default=ROWS, choices=ROWS, help="how generators are asked, see ROWS")
    parser.add_argument("--out", type=Path, default=RESULTS / "product-0.json")
    given = parser.parse_args()
    if given.what == "zoo":
        make_zoo(given.tasks, given.adapters, given.zoo, given.seeds)
    else:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        folders = {name: Path(folder) for name, _, folder in (one.partition("=") for one in given.generators)}
        run(given.tasks, folders, given.out, given.rows)


if __name__ == "__main__":
    main()
