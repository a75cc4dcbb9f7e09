#!/usr/bin/env python
"""Speed and memory of the zoo, as ratios inside of one run.

    python scripts/bench/zoo.py tokens     # tokenise and detokenise a checkpoint, beside reading and copying it
    python scripts/bench/zoo.py align      # align two ResNet-18s
    python scripts/bench/zoo.py collect    # collect LoRA adapters, beside copying their files
    python scripts/bench/zoo.py listing    # filtered listing of a catalogue of many rows, beside SQLite alone

Progress goes to stderr, one JSON document to stdout; the exit code is 1 if a target is missed. Linux only.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

# This file is called zoo.py too: look for modules in the repository, not beside it.
sys.path[0] = str(Path(__file__).resolve().parents[2])

app = typer.Typer(add_completion=False, no_args_is_help=True)

MIN_RATIO = 0.4
MAX_MEGABYTES = 300
MAX_SECONDS = 20
MIN_RATE = 300
MAX_LISTING_SECONDS = 0.1
WIDTH = 64


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _finish(result: dict[str, Any], passed: bool) -> None:
    print(json.dumps({**result, "passed": passed}, indent=2))
    raise typer.Exit(0 if passed else 1)


def _anonymous() -> int:
    """Bytes of memory of this process that no file stands behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _measured(work: Callable[[], None]) -> dict[str, float]:
    """Seconds of a piece of work, and the most memory beyond the present that it held, in megabytes."""
    before, peak, done = _anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        work()
        seconds = time.perf_counter() - started
    finally:
        done.set()
        watcher.join()
    return {"seconds": seconds, "megabytes": max(0, peak - before) / 1e6}


def _copy(path: str) -> dict[str, float]:
    """Read a file and copy every tensor once."""
    import torch

    from zoo import safefile

    def work() -> None:
        tensors, _ = safefile.load(Path(path))
        for tensor in tensors.values():
            tensor.clone()

    torch.zeros(1).clone()
    return _measured(work)


def _tokens(path: str) -> dict[str, float]:
    """Read a file and pass every tensor through tokens and back, into memory of its own."""
    import torch

    from zoo import safefile
    from zoo.kinds.dense import layout
    from zoo.tokens import Tokenizer
    from zoo.types import TensorSpec

    tensors, _ = safefile.load(Path(path))
    shapes = layout(tensors)
    roles = tuple(dict.fromkeys(spec.role for spec in shapes.tensors))
    tokenizer = Tokenizer(WIDTH, roles, dict.fromkeys(roles, -5))
    del tensors

    def work() -> None:
        tensors, _ = safefile.load(Path(path))
        pieces = tokenizer.encode_stream(((spec, tensors[spec.name]) for spec in shapes.tensors), shapes)
        result = torch.empty(0)

        def memory(spec: TensorSpec) -> torch.Tensor:
            nonlocal result
            result = torch.empty(0)  # the memory of the last tensor is free again, as in the copy
            result = torch.empty_like(tensors[spec.name])
            return result

        for spec, start, values in tokenizer.decode_stream(pieces, shapes, into=memory):
            if start + len(values) == spec.numel and spec.numel < 1 << 16:
                assert result.equal(tensors[spec.name])

    return _measured(work)


def _write(path: Path, gigabytes: float) -> int:
    """Write a checkpoint shaped like a language model: matrices of float32, a tenth of it bfloat16, some counters."""
    import torch

    from zoo import safefile

    random = torch.Generator().manual_seed(0)
    width, tensors, size, block = 1280, {}, 0, 0
    tensors["wte.weight"] = torch.randn(30_000, width, generator=random) * 0.02
    size = tensors["wte.weight"].nbytes
    while size < gigabytes * 1e9:
        dtype = torch.bfloat16 if block % 10 == 9 else torch.float32
        for name, shape in (("attn", (width, 3 * width)), ("proj", (width, width)), ("fc", (4 * width, width))):
            matrix = f"h.{block}.{name}"
            tensors[f"{matrix}.weight"] = (torch.randn(shape, generator=random) * 0.02).to(dtype)
            tensors[f"{matrix}.bias"] = torch.randn(shape[0], generator=random).to(dtype)
            size += tensors[f"{matrix}.weight"].nbytes + tensors[f"{matrix}.bias"].nbytes
        tensors[f"h.{block}.steps"] = torch.tensor(block)
        block += 1
    safefile.save(path, tensors)
    return path.stat().st_size


@app.command()
def tokens(
    gigabytes: Annotated[float, typer.Option(help="size of the checkpoint")] = 1.0,
    rounds: Annotated[int, typer.Option(help="measurements of each kind; medians are compared")] = 5,
    folder: Annotated[Path | None, typer.Option(help="where to put the checkpoint for the time of the run")] = None,
) -> None:
    """Tokenise and detokenise a checkpoint, beside reading it and copying every tensor once."""
    with tempfile.TemporaryDirectory(dir=folder) as name, multiprocessing.get_context("spawn").Pool(1) as pool:
        path = Path(name) / "model.safetensors"
        size = pool.apply(_write, (path, gigabytes))
        _say(f"wrote {size / 1e9:.2f} GB")
        copied, passed = [], []
        for i in range(rounds):
            for work, found in ((_copy, copied), (_tokens, passed)):
                with multiprocessing.get_context("spawn").Pool(1) as fresh:
                    found.append(fresh.apply(work, (str(path),)))
            _say(f"round {i + 1}: copy {copied[-1]['seconds']:.2f} s, tokens {passed[-1]['seconds']:.2f} s")
    seconds = {
        key: statistics.median(r["seconds"] for r in found) for key, found in (("copy", copied), ("tokens", passed))
    }
    megabytes = max(r["megabytes"] for r in passed)
    ratio = seconds["copy"] / seconds["tokens"]
    result = {
        "bytes": size,
        "rounds": rounds,
        "gigabytes_a_second": {key: size / 1e9 / value for key, value in seconds.items()},
        "ratio": ratio,
        "megabytes_above_the_file": megabytes,
        "targets": {"ratio": MIN_RATIO, "megabytes_above_the_file": MAX_MEGABYTES},
    }
    _finish(result, ratio >= MIN_RATIO and megabytes <= MAX_MEGABYTES)


@app.command()
def align(
    rounds: Annotated[int, typer.Option(help="pairs of networks")] = 3,
    threads: Annotated[int, typer.Option(help="threads of torch; more than idle cores make it slower")] = 2,
) -> None:
    """Align two independently initialised ResNet-18s, and a permuted copy with its original."""
    import torch

    from zoo.architectures import family
    from zoo.symmetry import align, scramble

    torch.set_num_threads(threads)
    architecture = {
        "family": "resnet",
        "style": "torchvision",
        "blocks": [2, 2, 2, 2],
        "widths": [64, 128, 256, 512],
        "classes": 1000,
    }
    started = time.perf_counter()
    groups = family(architecture).groups(architecture)
    tracing = time.perf_counter() - started
    runs = []
    for seed in range(rounds):
        torch.manual_seed(seed)
        one, other = (family(architecture).build(architecture).state_dict() for _ in range(2))
        twin = scramble(one, groups, torch.Generator().manual_seed(seed))
        row: dict[str, Any] = {}
        for name, source, reference in (("independent", other, one), ("twin", twin, one)):
            started = time.perf_counter()
            moved = align(source, reference, groups)
            row[name] = time.perf_counter() - started
        row["twin_is_back"] = all(moved[key].equal(value) for key, value in one.items())  # pyright: ignore
        runs.append(row)
        _say(f"pair {seed + 1}: {row}")
    slowest = max(row["independent"] for row in runs)
    result = {
        "weights": sum(value.numel() for value in one.values()),  # pyright: ignore
        "threads": torch.get_num_threads(),
        "seconds_tracing": tracing,
        "seconds": [row["independent"] for row in runs],
        "seconds_twin": [row["twin"] for row in runs],
        "twins_are_back": all(row["twin_is_back"] for row in runs),
        "targets": {"seconds": MAX_SECONDS},
    }
    _finish(result, slowest < MAX_SECONDS and result["twins_are_back"])


def _adapters(folder: Path, count: int) -> None:
    """Write different LoRA adapters of 147 kB each: rank 4 on query and value of a six-layer encoder of width 384."""
    import torch
    from safetensors.torch import save_file

    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], "task_type": None}
    config["base_model_name_or_path"] = "sentence-transformers/all-MiniLM-L6-v2"
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        tensors = {}
        for layer in range(6):
            for name in ("query", "value"):
                prefix = f"base_model.model.encoder.layer.{layer}.attention.self.{name}.lora"
                tensors[f"{prefix}_A.weight"] = torch.randn(4, 384, generator=generator)
                tensors[f"{prefix}_B.weight"] = torch.randn(384, 4, generator=generator)
        target = folder / f"adapter-{i:05d}"
        target.mkdir()
        save_file(tensors, target / "adapter_model.safetensors")
        (target / "adapter_config.json").write_text(json.dumps(config))


@app.command()
def collect(
    adapters: Annotated[int, typer.Option(help="number of adapters")] = 5000,
    folder: Annotated[Path | None, typer.Option(help="where to put adapters and zoo for the time of the run")] = None,
) -> None:
    """Collect LoRA adapters into a zoo, beside copying their files and flushing them to the disk."""
    import os
    import shutil

    from zoo.collect import collect as take
    from zoo.zoo import Zoo

    with tempfile.TemporaryDirectory(dir=folder) as name:
        source = Path(name) / "adapters"
        source.mkdir()
        _adapters(source, adapters)
        os.sync()
        _say(f"wrote {adapters} adapters")
        started = time.perf_counter()
        shutil.copytree(source, Path(name) / "copy")
        os.sync()
        copied = time.perf_counter() - started
        started = time.perf_counter()
        with Zoo.open(Path(name) / "zoo", create=True) as zoo:
            found = take([source], zoo)
        collected = time.perf_counter() - started
    added = sum(entry.status == "added" for entry in found)
    result = {
        "adapters": adapters,
        "added": added,
        "adapters_a_second": {"copy and flush": adapters / copied, "collect": adapters / collected},
        "ratio": copied / collected,
        "targets": {"adapters_a_second": MIN_RATE},
    }
    _finish(result, added == adapters and adapters / collected >= MIN_RATE)


@app.command()
def listing(
    rows: Annotated[int, typer.Option(help="rows of the catalogue")] = 100_000,
    tasks: Annotated[int, typer.Option(help="different tasks; the filter picks one")] = 1000,
    rounds: Annotated[int, typer.Option(help="measurements; medians are compared")] = 9,
) -> None:
    """List the records of one task in a large catalogue, beside SQLite finding their identifiers alone."""
    import sqlite3

    from zoo.collect import collect as take
    from zoo.zoo import Zoo

    with tempfile.TemporaryDirectory() as name:
        source, path = Path(name) / "adapters", Path(name) / "zoo"
        source.mkdir()
        _adapters(source, 1)
        with Zoo.open(path, create=True) as zoo:
            take([source], zoo)
        database = sqlite3.connect(next(p for p in path.iterdir() if p.suffix in (".sqlite", ".db")))
        columns = [row[1] for row in database.execute("PRAGMA table_info(records)")]
        new = {"id": "printf('%016x', n)", "task": f"'task-' || (n % {tasks})", "lineage": "'line-' || n"}
        chosen = ", ".join(new.get(column, column) for column in columns)
        database.execute(
            f"WITH RECURSIVE count(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM count WHERE n < {rows}) "
            f"INSERT INTO records ({', '.join(columns)}) SELECT {chosen} FROM records, count"
        )
        database.commit()
        _say(f"made {rows} rows")
        seconds: dict[str, list[float]] = {"zoo": [], "sqlite": []}
        with Zoo.open(path) as zoo:
            for i in range(rounds):
                started = time.perf_counter()
                found = zoo.records(task=f"task-{i}")
                seconds["zoo"].append(time.perf_counter() - started)
                started = time.perf_counter()
                plain = database.execute("SELECT id FROM records WHERE task = ?", (f"task-{i}",)).fetchall()
                seconds["sqlite"].append(time.perf_counter() - started)
                assert len(found) == len(plain) == rows // tasks
        database.close()
    median = {key: statistics.median(values) for key, values in seconds.items()}
    result = {
        "rows": rows,
        "rows_found": rows // tasks,
        "seconds": median,
        "ratio": median["zoo"] / median["sqlite"],
        "targets": {"seconds": MAX_LISTING_SECONDS},
    }
    _finish(result, median["zoo"] < MAX_LISTING_SECONDS)


if __name__ == "__main__":
    app()
