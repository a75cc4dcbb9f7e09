"""What retrieval chooses on whole tasks, beside all that it could have chosen, the base, and one adapter for all tasks.

The tasks are those that the study of adapters from words chose on: neither its adapter for all tasks nor any adapter
that may be chosen was trained on them. Their test examples are read here alone.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression

from scripts.bench.adapters_text_tasks import VALIDATION
from scripts.bench.retrieve_adapters import load_tasks, make_zoo, queries
from weightgen.evaluation.classification import accuracy, macro_f1
from weightgen.generate.task import GivenTask
from weightgen.retrieve import Filters, Index
from weightgen.retrieve.calibration import logistic, sigmoid
from weightgen.solve.base import Base
from weightgen.solve.budget import Budget, Meter
from weightgen.solve.candidates import from_generator
from weightgen.types import TaskText
from zoo.build.encoder import EncoderConfig, TextEncoder
from zoo.build.text_tasks import TextTask
from zoo.seeds import seed_of
from zoo.tasks import TEST
from zoo.types import Weights

HELD = tuple(name for name in VALIDATION if name != "ohsumed")
"""One task has long texts and 23 labels; it would take as long as the others together."""
MOST = 160
ENDLESS = Budget(1e9, "steps")


def measure(data: Path, folder: Path, generator: Path, path: Path) -> None:
    """Run one adapter of every other task on every held-out one; a stopped measurement goes on."""
    tasks = load_tasks(data)
    saved: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"tasks": {}, "cpu_seconds": 0.0}
    encoder = TextEncoder(EncoderConfig())
    index = Index.open(make_zoo(data, folder, tasks))
    index.encoder.model = encoder
    ordered = sorted(index.records.values(), key=lambda record: record.id)
    one_each = {str(record.task): index.zoo.weights(record) for record in ordered}
    for name in HELD:
        if name in saved["tasks"]:
            continue
        started = time.process_time()
        saved["tasks"][name] = _one(index, tasks[name], one_each, generator, encoder)
        saved["cpu_seconds"] = round(saved["cpu_seconds"] + time.process_time() - started, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(saved) + "\n")
        print(name, round(time.process_time() - started), "s", file=sys.stderr, flush=True)


def _one(
    index: Index, task: TextTask, one_each: dict[str, Weights], generator: Path, encoder: TextEncoder
) -> dict[str, Any]:
    texts, y = task.select(TEST)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed_of("choice", task.name)))[:MOST]
    texts, y = [texts[i] for i in order.tolist()], y[order]
    base = Base(encoder, task.label_texts, Meter(ENDLESS))
    half = torch.arange(len(y)) % 2 == 0

    def score(weights: Weights | None) -> dict[str, float]:
        found = base.logits(weights, texts).argmax(-1)
        halves = {"first": accuracy(found[half], y[half]), "second": accuracy(found[~half], y[~half])}
        all_of_it = {"accuracy": accuracy(found, y), "macro_f1": macro_f1(found, y)}
        return {key: round(value, 4) for key, value in {**all_of_it, **halves}.items()}

    told = GivenTask(task.name, TaskText(task.description, task.label_texts, ()), (), y[:0])
    static = next(one for one in from_generator(generator, base, told, 0, "g") if one.way == "static")
    strengths: dict[str, dict[str, float]] = {}
    for how, query in queries(task).items():
        ranked = index.rank(query, Filters(without_tasks=frozenset({task.name})), k=len(index.records))
        found: dict[str, float] = {}
        for one in ranked:
            found.setdefault(str(index.records[one.id].task), round(one.strength, 3))
        strengths[how] = found
    return {
        "examples": len(y),
        "base": score(None),
        "static": score(static.weights),
        "adapters": {other: score(weights) for other, weights in one_each.items() if other != task.name},
        "strengths": strengths,
    }


def calibrations(saved: dict[str, Any], how: str) -> dict[str, Any]:
    """Probabilities of beating the base for tasks that were left out, by several functions of the strength.

    Returns:
        By function: mean squared error (Brier) over all pairs and over first hits, and by task the probability of the
        first hit.
    """
    names = list(saved["tasks"])
    x, wins, of, first = [], [], [], []
    for name in names:
        one = saved["tasks"][name]
        for place, (other, strength) in enumerate(one["strengths"][how].items()):
            x.append(strength)
            wins.append(float(one["adapters"][other]["accuracy"] > one["base"]["accuracy"]))
            of.append(name)
            first.append(place == 0)
    xs, ws, tasks, firsts = np.array(x), np.array(wins), np.array(of), np.array(first)
    guesses: dict[str, np.ndarray] = {kind: np.zeros(len(xs)) for kind in ("plain rate", "logistic", "isotonic")}
    for name in names:
        here = tasks == name
        slope, intercept = logistic(xs[~here], ws[~here])
        guesses["plain rate"][here] = ws[~here].mean()
        guesses["logistic"][here] = sigmoid(slope * xs[here] + intercept)
        rising = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(xs[~here], ws[~here])
        guesses["isotonic"][here] = rising.predict(xs[here])
    return {
        kind: {
            "brier": float(((p - ws) ** 2).mean()),
            "brier_first": float(((p - ws)[firsts] ** 2).mean()),
            "first": dict(zip(tasks[firsts].tolist(), p[firsts].tolist(), strict=True)),
        }
        for kind, p in guesses.items()
    }
