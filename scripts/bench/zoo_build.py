"""Networks an hour: a zoo of the published tiny CNNs built together, against a loop that trains one after the other.

    python scripts/bench/zoo_build.py                          handwritten digits of scikit-learn, enlarged to 28 x 28
    python scripts/bench/zoo_build.py --data data/mnist.npz    a file of your own, see docs/data.md

Loop and build make the same number of updates on equal batches; the loop is the plain one (`nn.Module`, `AdamW`,
batches from memory), with one thread and with all, and the faster one counts. The build is what `weightgen zoo build`
runs: groups in one process, and groups in one process a core. Everything is measured in turns, several times, and the
median of each is taken, because other work on the machine slows all of them. Loading of data, start of processes and
evaluation are left out on both sides. Prints JSON.
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
from typing import Any

import torch
import torch.nn.functional as F

sys.path[0] = str(Path(__file__).resolve().parents[2])  # a script beside this one is named like the package

from zoo.architectures import family  # noqa: E402
from zoo.build.engines import cores  # noqa: E402
from zoo.build.images import load_all  # noqa: E402
from zoo.build.vectorised import Sampled, TrainingConfig, train_stages  # noqa: E402
from zoo.tasks import TRAIN, scaled  # noqa: E402
from zoo.threads import torch_threads  # noqa: E402


def load(source: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Training images as bytes, labels, and the architecture for them."""
    (data,) = load_all([source], 0.15, 0.2, 0, 28)
    x, y = data.x[data.part == TRAIN], data.y[data.part == TRAIN]
    x = x if x.dtype == torch.uint8 else (x * 255).round().to(torch.uint8)
    shape = [1, 28, 28] if x.ndim == 3 else [3, 28, 28]
    return x, y, {"family": "cnn", "input": shape, "classes": len(data.class_names), "activation": "tanh"}


def loop(x: torch.Tensor, y: torch.Tensor, architecture: dict[str, Any], networks: int, steps: int, batch: int) -> None:
    """Train one network after the other as anyone would."""
    images = scaled(x)
    for seed in range(networks):
        torch.manual_seed(seed)
        model = family(architecture).build(architecture)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randint(len(y), (batch,))
            loss = F.cross_entropy(model(images[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def together(
    x: torch.Tensor,
    y: torch.Tensor,
    architecture: dict[str, Any],
    networks: int,
    steps: int,
    batch: int,
    same: bool = True,
) -> None:
    """Train one group of networks as the recipe ``image_classifiers`` does; ``same`` is its ``same_batches``."""
    config, sampled = TrainingConfig(epochs=1, batch_size=batch), torch.full((networks,), 3e-3)
    settings = Sampled(sampled, sampled)
    with torch_threads(1):
        order = 0 if same else None
        data = [x] * networks, [y] * networks, range(networks), config
        next(train_stages(architecture, *data, total=steps, sampled=settings, common_order=order))


def serve(line: Connection, arguments: tuple[Any, ...]) -> None:
    """A process that trains a group whenever it is told to."""
    together(*arguments[:4], 2, arguments[5])  # ready: everything is loaded and warm
    line.send(True)
    while line.recv():
        together(*arguments)
        line.send(True)


def seconds(work: Callable[[], None]) -> float:
    """Wall time of some work."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Measure in turns and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sklearn-digits", help="npz file of images (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="updates of every network (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images an update (default: %(default)s)")
    parser.add_argument("--group", type=int, default=16, help="networks in a group (default: %(default)s)")
    parser.add_argument("--loop", type=int, default=2, help="networks of the loop a turn (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="how often each is measured (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=cores(), help="processes (default: %(default)s)")
    options = parser.parse_args()
    x, y, architecture = load(options.data)
    group = (x, y, architecture, options.group, options.steps, options.batch)
    context, lines, processes = multiprocessing.get_context("spawn"), [], []
    for _ in range(options.workers):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, group), daemon=True))
        processes[-1].start()
        lines.append(ours)
    for line in lines:
        line.recv()

    def pool() -> None:
        for line in lines:
            line.send(True)
        for line in lines:
            line.recv()

    def loop_with(threads: int) -> Callable[[], None]:
        def run() -> None:
            torch.set_num_threads(threads)
            loop(x, y, architecture, options.loop, options.steps, options.batch)

        return run

    contestants: dict[str, tuple[Callable[[], None], int]] = {
        "loop, 1 thread": (loop_with(1), options.loop),
        f"loop, {cores()} threads": (loop_with(cores()), options.loop),
        "build, 1 process, batches of their own": (lambda: together(*group, same=False), options.group),
        "build, 1 process": (lambda: together(*group), options.group),
        f"build, {options.workers} processes": (pool, options.group * options.workers),
    }
    loop_with(1)(), together(*group[:4], 2, options.batch)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.turns):
        for name, (work, count) in contestants.items():
            rates[name].append(3600 * count / seconds(work))
    for line in lines:
        line.send(False)
    for process in processes:
        process.join()
    hourly = {name: statistics.median(found) for name, found in rates.items()}
    loops, builds = ([rate for name, rate in hourly.items() if name.startswith(kind)] for kind in ("loop", "build"))
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
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
