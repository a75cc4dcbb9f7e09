"""Few-shot composition on held-out text tasks: settings are chosen on other tasks, the test split is read once."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scripts.bench.compose_tasks import Plan, labelled, load_adapters, load_encoder, load_task, score
from weightgen.compose import Objective, compose
from weightgen.compose.adapters import read_adapter
from weightgen.compose.delta import Bank, uniform
from weightgen.compose.objectives import text_unlabelled
from zoo.build.encoder import TextEncoder
from zoo.build.text_tasks import TextTask
from zoo.seeds import seed_of
from zoo.tasks import TEST, TRAIN, VAL
from zoo.types import Weights

SHOTS, SEEDS, CHOOSE_SHOTS = (4, 16), (0, 1, 2), 4
BATCH, STEPS, EVALUATIONS, POOL = 16, 15, 40, 20
GRID: dict[str, list[dict[str, Any]]] = {
    "scaled_mean": [{"scale": scale} for scale in (0.5, 1.0, 2.0, 4.0, 6.0)],
    "unlabelled": [{"kind": kind, "lr": lr} for kind, lr in (("trusted", 0.02), ("trusted", 0.05), ("entropy", 0.02))],
    "atlas": [{"lr": 0.05, "start": start} for start in (1.0, 6.0)],
    "lorahub": [{"start": start} for start in (0.0, 1.0, 6.0)],
}
UNLABELLED_TEXTS = 64


class Pool:
    """Adapters that may be mixed for one task."""

    def __init__(self, data: Path, names: Sequence[str]) -> None:
        self.names = list(names)
        self.adapters = load_adapters(data, names)
        deltas = [read_adapter(adapter, name).deltas for adapter, name in zip(self.adapters, names, strict=True)]
        self.bank = Bank(deltas, torch.float32)

    def mixed(self, coefficients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A mixture in full."""
        return {name: delta.values() for name, delta in self.bank.mix(coefficients).items()}

    def weighted(self, weights: Sequence[float]) -> dict[str, Tensor]:
        """The mixture of one weight a source."""
        return self.mixed(uniform(self.bank, torch.tensor(weights)))

    def mean(self, scale: float) -> dict[str, Tensor]:
        """The scaled mean of all."""
        return self.weighted([scale / len(self.names)] * len(self.names))

    def single(self, name: str) -> dict[str, Tensor]:
        """One adapter."""
        return self.weighted([float(name == other) for other in self.names])


def atlas(pool: Pool, objective: Objective, setting: Mapping[str, Any]) -> dict[str, Tensor]:
    """aTLAS over all adapters of a pool, the mean times a scale as its start."""
    count = len(pool.names)
    made = compose(
        pool.adapters,
        "atlas",
        objective=objective,
        weights=[setting.get("start", 1.0) / count] * count,
        settings={"steps": STEPS, "lr": setting["lr"]},
    )
    return pool.mixed(made.coefficients)


def lorahub(pool: Pool, objective: Objective, setting: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """LoraHub over adapters drawn at random, as many as in the paper."""
    generator = torch.Generator().manual_seed(seed_of("lorahub", seed))
    chosen = torch.randperm(len(pool.names), generator=generator)[:POOL].tolist()
    parents: list[Weights] = [pool.adapters[i] for i in chosen]
    weights = [setting["start"] / len(parents)] * len(parents)
    settings = {"evaluations": EVALUATIONS}
    made = compose(parents, "lorahub", objective=objective, weights=weights, settings=settings)
    found = next(iter(made.coefficients.values()))
    full = torch.zeros(len(pool.names), dtype=found.dtype)
    full[chosen] = found
    return pool.weighted(full.tolist())


def unlabelled(encoder: TextEncoder, task: TextTask, kind: Literal["entropy", "trusted"], seed: int) -> Objective:
    """An objective on training texts without their labels."""
    texts, _ = task.select(TRAIN)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed_of("texts", task.name, seed)))
    chosen = [texts[i] for i in order[:UNLABELLED_TEXTS].tolist()]
    return text_unlabelled(encoder, chosen, task.label_texts, kind=kind, batch=BATCH, seed=seed)


class Rows:
    """Measured rows in a JSON file, so that interrupted work goes on where it stopped."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path, self.about = path, dict(about)
        saved = json.loads(path.read_text()) if path.is_file() else {"rows": []}
        self.rows: list[dict[str, Any]] = saved["rows"]

    def add(self, key: Mapping[str, Any], measure: Callable[[], Mapping[str, float]]) -> None:
        """Measure one row unless it is there."""
        if any(all(row[k] == v for k, v in key.items()) for row in self.rows):
            return
        started = time.process_time()
        row = {**key, **measure()}
        self.rows.append(row | {"cpu_seconds": round(time.process_time() - started, 2)})
        print(self.path.stem, self.rows[-1], file=sys.stderr, flush=True)
        side = self.path.with_suffix(".partial")
        side.parent.mkdir(parents=True, exist_ok=True)
        side.write_text(json.dumps({**self.about, "rows": self.rows}, indent=1) + "\n")
        side.replace(self.path)


def choose(data: Path, plan: Plan, name: str, out: Path) -> None:
    """Try all settings on the validation split of a task that is not judged."""
    encoder, task, pool = load_encoder(), load_task(data, name), Pool(data, plan.sources(name, far=True))
    rows = Rows(out / f"choose-{name}.json", {"task": name, "shots": CHOOSE_SHOTS, "sources": len(pool.names)})
    goal = labelled(encoder, task, CHOOSE_SHOTS, 0, BATCH)
    make: dict[str, Callable[[Mapping[str, Any]], dict[str, Tensor]]] = {
        "scaled_mean": lambda setting: pool.mean(setting["scale"]),
        "unlabelled": lambda setting: atlas(pool, unlabelled(encoder, task, setting["kind"], 0), setting),
        "atlas": lambda setting: atlas(pool, goal, setting),
        "lorahub": lambda setting: lorahub(pool, goal, setting, 0),
    }
    for method, grid in GRID.items():
        for setting in grid:
            key = {"method": method, "setting": setting}
            rows.add(key, lambda m=method, s=setting: score(encoder, make[m](s), task, VAL))


def chosen_settings(plan: Plan, out: Path) -> dict[str, dict[str, Any]]:
    """The setting of every method with the best mean macro-F1 over the tasks for choosing."""
    files = [json.loads((out / f"choose-{name}.json").read_text()) for name in plan.choose]
    rows = [row for file in files for row in file["rows"]]

    def mean(method: str, setting: Mapping[str, Any]) -> float:
        found = [row["macro_f1"] for row in rows if row["method"] == method and row["setting"] == setting]
        return sum(found) / len(found)

    return {method: max(grid, key=lambda setting, m=method: mean(m, setting)) for method, grid in GRID.items()}


def judge(data: Path, plan: Plan, name: str, out: Path) -> None:
    """All methods on one held-out task: its training examples as shots, its test split once a method and seed."""
    encoder, task, chosen = load_encoder(), load_task(data, name), chosen_settings(plan, out)
    near, far = plan.sources(name, far=False), plan.sources(name, far=True)
    pools = {"far": Pool(data, far), **({"near": Pool(data, near)} if near != far else {})}
    about = {
        "task": name,
        "data_source": plan.family[name],
        "labels": len(task.label_texts),
        "test_examples": len(task.select(TEST)[1]),
        "sources": {kind: len(pool.names) for kind, pool in pools.items()},
        "settings": chosen,
    }
    rows = Rows(out / f"heldout-{name}.json", about)

    def add(kind: str, method: str, count: int, seed: int, mixed: Callable[[], dict[str, Tensor]]) -> None:
        key = {"pool": kind, "method": method, "shots": count, "seed": seed}
        rows.add(key, lambda: score(encoder, mixed(), task, TEST))

    def hidden(seed: int) -> Objective:
        return unlabelled(encoder, task, chosen["unlabelled"]["kind"], seed)

    add("none", "base", 0, 0, dict)
    for kind, pool in pools.items():
        add(kind, "mean", 0, 0, lambda pool=pool: pool.mean(1.0))
        add(kind, "scaled_mean", 0, 0, lambda pool=pool: pool.mean(chosen["scaled_mean"]["scale"]))
    for seed, (kind, pool) in itertools.product(SEEDS, pools.items()):
        for count in SHOTS:
            goal = labelled(encoder, task, count, seed, BATCH)
            add(kind, "atlas", count, seed, lambda p=pool, g=goal: atlas(p, g, chosen["atlas"]))
            add(kind, "lorahub", count, seed, lambda p=pool, g=goal, s=seed: lorahub(p, g, chosen["lorahub"], s))
        add(kind, "unlabelled", 0, seed, lambda p=pool, s=seed: atlas(p, hidden(s), chosen["unlabelled"]))
