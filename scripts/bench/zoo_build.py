"""Networks an hour: a zoo of the published tiny CNNs built together, against a loop that trains one after the other.

    python scripts/bench/zoo_build.py                          handwritten digits of scikit-learn, enlarged to 28 x 28
    python scripts/bench/zoo_build.py --data data/mnist.npz    a file of your own, see docs/data.md

Loop and build make the same number of updates on equal batches; the loop is the plain one (`nn.Module`, `AdamW`,
batches from memory), with one thread and with all, in float32 and, for one thread, in bfloat16 (`torch.autocast`), and
the fastest one counts. The build is what `weightgen zoo build` runs: groups in one process, and groups in one process a
core, with `precision` float32 and bfloat16. Everything is measured in turns, several times, and the median of each is
taken, because other work on the machine slows all of them. Loading of data, start of processes and evaluation are left
out on both sides. At the end networks of loop and builds are trained for longer from the same initialisations, and
their accuracies on validation images, always in float32, are compared. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

sys.path[0] = str(Path(__file__).resolve().parents[2])  # a script beside this one is named like the package

from zoo.architectures import family  # noqa: E402
from zoo.build.engines import cores  # noqa: E402
from zoo.build.images import load_all  # noqa: E402
from zoo.build.memory import keep_freed_memory  # noqa: E402
from zoo.build.vectorised import Sampled, TrainingConfig, accuracies, train_stages  # noqa: E402
from zoo.tasks import TRAIN, VAL, scaled  # noqa: E402
from zoo.threads import torch_threads  # noqa: E402

Precision = Literal["float32", "bfloat16"]
RATE, DECAY = 3e-3, 1e-2

Examples = tuple[torch.Tensor, torch.Tensor]
Stacked = dict[str, torch.Tensor]


def load(source: str) -> tuple[Examples, Examples, dict[str, Any]]:
    """Images as bytes and labels, to train on and to validate, and the architecture for them."""
    (data,) = load_all([source], 0.15, 0.2, 0, 28)
    x = data.x if data.x.dtype == torch.uint8 else (data.x * 255).round().to(torch.uint8)
    training, validation = ((x[data.part == part], data.y[data.part == part]) for part in (TRAIN, VAL))
    shape = [1, 28, 28] if x.ndim == 3 else [3, 28, 28]
    classes = len(data.class_names)
    return training, validation, {"family": "cnn", "input": shape, "classes": classes, "activation": "tanh"}


def loop(
    x: torch.Tensor,
    y: torch.Tensor,
    architecture: dict[str, Any],
    networks: int,
    steps: int,
    batch: int,
    mixed: bool = False,
) -> Stacked:
    """Train one network after the other as anyone would."""
    images, states = scaled(x), []
    for seed in range(networks):
        torch.manual_seed(seed)
        model = family(architecture).build(architecture)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randint(len(y), (batch,))
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                loss = F.cross_entropy(model(images[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        states.append(model.state_dict())
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def together(
    x: torch.Tensor,
    y: torch.Tensor,
    architecture: dict[str, Any],
    networks: int,
    steps: int,
    batch: int,
    same: bool = True,
    precision: Precision = "float32",
) -> Stacked:
    """Train one group of networks as the recipe ``image_classifiers`` does; ``same`` is its ``same_batches``."""
    config = TrainingConfig(epochs=1, batch_size=batch, precision=precision)
    settings = Sampled(torch.full((networks,), RATE), torch.full((networks,), DECAY))
    with torch_threads(1):
        order = 0 if same else None
        data = [x] * networks, [y] * networks, range(networks), config
        _, trained = next(train_stages(architecture, *data, total=steps, sampled=settings, common_order=order))
    return trained


def serve(line: Connection, arguments: tuple[Any, ...]) -> None:
    """A process that trains a group whenever it is told to, as those of ``zoo.build.pool`` do."""
    keep_freed_memory()
    together(*arguments[:4], 2, arguments[5])  # ready: everything is loaded and warm
    line.send(True)
    while precision := line.recv():
        together(*arguments, precision=precision)
        line.send(True)


def seconds(work: Callable[[], None]) -> float:
    """Wall time of some work."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def summary(values: torch.Tensor) -> dict[str, float]:
    """Mean over networks, and standard error of it."""
    return {"mean": round(values.mean().item(), 4), "error": round(values.std().item() / len(values) ** 0.5, 4)}


def main() -> None:
    """Measure in turns and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sklearn-digits", help="npz file of images (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="updates of every network (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images an update (default: %(default)s)")
    parser.add_argument("--group", type=int, default=32, help="networks in a group (default: %(default)s)")
    parser.add_argument("--loop", type=int, default=2, help="networks of the loop a turn (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="how often each is measured (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=cores(), help="processes (default: %(default)s)")
    parser.add_argument("--check", type=int, default=8, help="networks of each side to compare (default: %(default)s)")
    parser.add_argument("--check-steps", type=int, default=500, help="updates of them (default: %(default)s)")
    options = parser.parse_args()
    (x, y), validation, architecture = load(options.data)
    group = (x, y, architecture, options.group, options.steps, options.batch)
    context, lines, processes = multiprocessing.get_context("spawn"), [], []
    for _ in range(options.workers):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, group), daemon=True))
        processes[-1].start()
        lines.append(ours)
    for line in lines:
        line.recv()

    def pool(precision: Precision) -> None:
        for line in lines:
            line.send(precision)
        for line in lines:
            line.recv()

    def loop_with(threads: int, mixed: bool = False) -> Callable[[], None]:
        def run() -> None:
            torch.set_num_threads(threads)
            loop(x, y, architecture, options.loop, options.steps, options.batch, mixed)

        return run

    contestants: dict[str, tuple[Callable[[], None], int]] = {
        "loop, 1 thread": (loop_with(1), options.loop),
        f"loop, {cores()} threads": (loop_with(cores()), options.loop),
        "loop, 1 thread, bfloat16": (loop_with(1, mixed=True), options.loop),
        "build, 1 process, batches of their own": (lambda: together(*group, same=False), options.group),
        "build, 1 process": (lambda: together(*group), options.group),
        "build, 1 process, bfloat16": (lambda: together(*group, precision="bfloat16"), options.group),
        f"build, {options.workers} processes": (lambda: pool("float32"), options.group * options.workers),
        f"build, {options.workers} processes, bfloat16": (lambda: pool("bfloat16"), options.group * options.workers),
    }
    loop_with(1)(), together(*group[:4], 2, options.batch)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.turns):
        for name, (work, count) in contestants.items():
            rates[name].append(3600 * count / seconds(work))
    for line in lines:
        line.send(None)
    for process in processes:
        process.join()
    hourly = {name: statistics.median(found) for name, found in rates.items()}
    loops, builds = ([rate for name, rate in hourly.items() if name.startswith(kind)] for kind in ("loop", "build"))
    check = (x, y, architecture, options.check, options.check_steps, options.batch)
    trained = {
        "loop": loop(*check),
        "build": together(*check),
        "build, bfloat16": together(*check, precision="bfloat16"),
    }
    result = {
        "data": options.data,
        "weights": sum(p.numel() for p in family(architecture).build(architecture).parameters()),
        "updates": options.steps,
        "batch": options.batch,
        "group": options.group,
        "cores": cores(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "networks_an_hour": {name: round(rate) for name, rate in hourly.items()},
        "ratio_to_best_loop": {
            name: round(rate / max(loops), 2) for name, rate in hourly.items() if name.startswith("build")
        },
        "ratio": round(max(builds) / max(loops), 2),
        "validation_accuracy": {
            name: summary(accuracies(architecture, networks, *([part] * options.check for part in validation)))
            for name, networks in trained.items()
        },
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
