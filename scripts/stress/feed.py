"""Feeding mutants to the collector in a limited child, and looking at what it did."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from scripts.stress.fork import Report, fork
from scripts.stress.mutants import Mutants
from zoo import safefile
from zoo.collect import collect
from zoo.zoo import Zoo

BATCH = 400
MEMORY = 4 << 30
SECONDS = 300


def run(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Collect ``count`` mutants.

    Returns:
        Counts by kind and outcome, reads that the official library refuses, and ``problems``.
    """
    draw = random.Random(seed)
    folder.mkdir()
    mutants = Mutants(folder / "outside")
    (folder / "tmp").mkdir()
    kinds: Counter[str] = Counter()
    outcome: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    result: dict[str, Any] = {"files": count, "problems": [], "lenient": [], "peak_bytes": 0, "exact": 0}
    before = _snapshot(folder)
    for start in range(0, count, BATCH):
        batch = range(start, min(count, start + BATCH))
        made = {str(number): mutants.make(draw, folder / "in" / str(number)) for number in batch}
        kinds.update(made.values())
        child = fork(lambda report: _collect(folder, report), memory=MEMORY)
        if not child.wait(SECONDS):
            result["problems"].append(f"batch {start} did not end within {SECONDS} s")
        elif child.status != 0:
            result["problems"].append(f"batch {start} ended with status {child.status}: seed {seed}")
        for report in child.reports:
            outcome.update(report["outcome"])
            refusals.update(report["silent"])
            result["exact"] += report["exact"]
            result["problems"] += report["problems"]
            result["lenient"] += report["lenient"]
            result["peak_bytes"] = max(result["peak_bytes"], report["peak_bytes"])
        shutil.rmtree(folder / "in")
        shutil.rmtree(folder / "zoo", ignore_errors=True)
        if _snapshot(folder) != before:
            changed = sorted(set(_snapshot(folder).items()) ^ set(before.items()))
            result["problems"].append(f"batch {start} changed something outside the zoo: {changed[:5]}")
            before = _snapshot(folder)
        print(f"mutations: {batch.stop}/{count}, {len(result['problems'])} problems", file=sys.stderr, flush=True)
    lenient = result.pop("lenient")
    result |= {"kinds": dict(kinds), "outcome": dict(outcome), "lenient": len(lenient), "lenient_examples": lenient[:5]}
    return result


def _snapshot(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*"))
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in files}


def _collect(folder: Path, report: Report) -> None:
    tempfile.tempdir = str(folder / "tmp")
    os.environ["TMPDIR"] = str(folder / "tmp")
    problems: list[str] = []
    lenient: list[str] = []
    exact = 0
    found = collect([folder / "in"], folder / "zoo")
    silent = [one.path for one in found if one.status == "refused" and not one.reason]
    problems += [f"{path} is refused without a reason" for path in silent]
    with Zoo.open(folder / "zoo") as zoo:
        problems += zoo.verify()
        for one in found:
            if one.status == "refused":
                continue
            tensors = zoo.weights(zoo.get(str(one.id))).tensors
            if "secret" in tensors:
                problems.append(f"{one.path} gave away what lies outside")
            path = Path(one.path)
            try:
                expected = _official(path)
            except Exception as error:  # whatever the official library raises
                lenient.append(f"{path.name}: {type(error).__name__}: {error}"[:200])
                continue
            if expected is None:
                continue
            exact += 1
            if not _equal(expected, dict(tensors)):
                problems.append(f"{one.path} was read as other values than the official library reads")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    statuses = Counter(one.status for one in found)
    report(
        {"outcome": statuses, "silent": [], "exact": exact, "problems": problems, "lenient": lenient}
        | {"peak_bytes": max(peak, children)}
    )


def _official(path: Path) -> dict[str, torch.Tensor] | None:
    """The tensors of a file as its own library reads them; ``None`` where there is nothing to compare with."""
    if path.is_dir():
        path = path / "adapter_model.safetensors"
    if not path.is_file():
        return None  # inside an archive
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {
                name: torch.from_numpy(np.ascontiguousarray(arrays[name])).reshape(arrays[name].shape)
                for name in arrays
            }
    if path.suffix in (".pt", ".bin"):
        loaded = torch.load(path, weights_only=True, map_location="cpu")
        loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
        plain = bool(loaded) and all(isinstance(value, torch.Tensor) for value in loaded.values())
        return {str(name): value for name, value in loaded.items()} if plain else None
    return None


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and safefile.raw(a[n]) == safefile.raw(b[n]) for n in a
    )
