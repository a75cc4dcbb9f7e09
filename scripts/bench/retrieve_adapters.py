"""Real adapters: which twin is found by what."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightgen.retrieve import Index, Query
from weightgen.retrieve.sketches import update_sketch
from zoo import kinds
from zoo.build.text_tasks import TextTask, load_text_task
from zoo.collect import collect
from zoo.kinds import lora
from zoo.seeds import seed_of
from zoo.tasks import TRAIN
from zoo.texts import pack
from zoo.types import Task, Weights
from zoo.zoo import Zoo

QUERY_TEXTS = 64
PARAPHRASES = json.loads((Path(__file__).parent / "retrieve_paraphrases.json").read_text())


def load_tasks(data: Path) -> dict[str, TextTask]:
    """All visible tasks by name."""
    names = [one["name"] for one in json.loads((data / "text_tasks" / "index.json").read_text())]
    return {name: load_text_task(data / "text_tasks" / f"{name}.json.gz", 0.15, 0) for name in names}


def halves(task: TextTask) -> tuple[list[int], list[int]]:
    """Training examples that the zoo stores, and those that queries are drawn from."""
    rows = (task.part == TRAIN).nonzero()[:, 0]
    order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed_of("half", task.name)))]
    return order[::2].tolist(), order[1::2].tolist()


def make_zoo(data: Path, folder: Path, tasks: dict[str, TextTask]) -> Zoo:
    """Collect the adapters; store the tasks with one half of their training texts."""
    if not folder.exists():
        collect([data / "lora_zoo"], folder)
    zoo = Zoo.open(folder)
    known = set(zoo.dataset_names())
    for task in tasks.values():
        if task.name in known:
            continue
        rows = halves(task)[0] + (task.part != TRAIN).nonzero()[:, 0].tolist()
        tensors = {**pack([task.texts[i] for i in rows]), **pack(task.label_texts, "label")}
        tensors |= {"y": task.y[rows], "part": task.part[rows]}
        zoo.put_dataset(task.name, tensors, description=task.description)
    zoo.put_tasks(
        Task(t.name, t.description, t.name, tuple(range(len(t.label_texts))), t.label_names, "train")
        for t in tasks.values()
    )
    return zoo


def queries(task: TextTask) -> dict[str, Query]:
    """What may be known of a task; texts come from the half that the zoo does not store."""
    texts = tuple(task.texts[i] for i in halves(task)[1][:QUERY_TEXTS])
    reworded = PARAPHRASES[task.name]
    return {
        "description": Query(task.description),
        "paraphrase": Query(reworded),
        "labels": Query(labels=task.label_texts),
        "texts": Query(texts=texts),
        "paraphrase, labels, texts": Query(reworded, task.label_texts, texts),
    }


def twins(data: Path, folder: Path) -> dict[str, Any]:
    """Recall@1 of an adapter of the same task, by what is known of the task and by an adapter of another seed."""
    tasks = load_tasks(data)
    index = Index.open(make_zoo(data, folder, tasks))
    right: dict[str, list[bool]] = {}
    for task in tasks.values():
        for how, query in queries(task).items():
            best = index.rank(query, k=1)[0]
            right.setdefault(how, []).append(index.records[best.id].task == task.name)
    started = time.perf_counter()
    for task in tasks.values():
        index.rank(queries(task)["texts"], k=1)
    again = time.perf_counter() - started
    return {
        "tasks": len(tasks),
        "adapters": len(index.records),
        "texts": QUERY_TEXTS,
        "recall_at_1": {how: sum(found) / len(found) for how, found in right.items()},
        "ms_encoded_query": 1000 * again / len(tasks),
        "weights": _by_weights(index),
    }


def _by_weights(index: Index) -> dict[str, Any]:
    """Recall@1 by weights of one seed among all other adapters, for several ways to see them."""
    records = list(index.records.values())
    adapters = [index.zoo.weights(record) for record in records]
    turned = [_turned(weights, i) for i, weights in enumerate(adapters)]
    task = [record.task for record in records]
    paired = [i for i in range(len(task)) if task.count(task[i]) > 1]
    stored = index.stored("weights")
    ways: dict[str, Callable[[list[Weights]], Tensor]] = {
        "factors as stored": lambda some: torch.stack([_flat(w) for w in some]),
        "factors in canonical gauge": lambda some: torch.stack([_flat(kinds.canonical(w)) for w in some]),
        "sketch of the update, 2048 values": lambda some: torch.stack([update_sketch(w, 2048) for w in some]),
        "the same, mean taken off (as shipped)": lambda some: _centred(
            torch.stack([F.normalize(update_sketch(w, 2048), dim=0) for w in some])
        ),
    }
    rows: dict[str, Any] = {}
    for how, vectors in ways.items():
        rows[how] = {
            "as_stored": _recall(_cosines(vectors(adapters)), task, paired),
            "random_gauge": _recall(_cosines(vectors(turned)), task, paired),
        }
    exact, sketched = _exact(adapters), _cosines(ways["sketch of the update, 2048 values"](adapters))
    rows["the update itself, exact"] = {
        "as_stored": _recall(exact, task, paired),
        "random_gauge": _recall(_exact(turned), task, paired),
    }
    assert stored.index is not None
    return {"ways": rows, "adapters": len(paired), "sketch_rms_error": float((exact - sketched).square().mean().sqrt())}


def _flat(weights: Weights) -> Tensor:
    return torch.cat([value.flatten().float() for value in weights.tensors.values()])


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def _cosines(x: Tensor) -> Tensor:
    x = F.normalize(x.double(), dim=1)
    return x @ x.T


def _exact(adapters: list[Weights]) -> Tensor:
    """Cosines of the updates from the factors: <B A, B' A'> is the sum of (B' B) * (A A')."""
    total = torch.zeros(len(adapters), len(adapters), dtype=torch.float64)
    for name_a, name_b in lora.pairs(adapters[0].tensors):
        a = torch.stack([w.tensors[name_a].double() for w in adapters])
        b = torch.stack([w.tensors[name_b].double() for w in adapters])
        total += torch.einsum("nrmp,nrmp->nm", torch.einsum("nor,mop->nrmp", b, b), torch.einsum("nri,mpi->nrmp", a, a))
    size = total.diagonal().sqrt()
    return total / size[:, None] / size


def _turned(weights: Weights, seed: int) -> Weights:
    """The same update in a random gauge: B M and inverse(M) A."""
    rng = torch.Generator().manual_seed(seed)
    tensors = dict(weights.tensors)
    for name_a, name_b in lora.pairs(weights.tensors):
        rank = tensors[name_a].shape[0]
        turn = torch.linalg.qr(torch.randn(rank, rank, generator=rng, dtype=torch.float64))[0]
        turn = turn * torch.exp(0.5 * torch.randn(rank, generator=rng, dtype=torch.float64))
        tensors[name_b] = (tensors[name_b].double() @ turn).float()
        tensors[name_a] = (turn.inverse() @ tensors[name_a].double()).float()
    return Weights(weights.layout, tensors)


def _recall(cosines: Tensor, task: list[str | None], rows: list[int]) -> float:
    nearest = cosines.clone().fill_diagonal_(-2).argmax(1).tolist()
    return sum(task[nearest[i]] == task[i] for i in rows) / len(rows)
