"""Killing writers of a zoo at random points, and letting two of them write at once."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from scripts.stress.fork import Report, fork
from scripts.stress.mutants import CONFIG
from zoo import build as builder
from zoo import collect as collector
from zoo.zoo import Zoo

ITEMS = 60
RECIPE = """
recipe: class_subsets
tasks: {classes: 2, held_out: 5, validation: 5}
network: {hidden: [4]}
members_per_task: 1
training: {epochs: 1, batch_size: 64}
"""


def write_sources(folder: Path, count: int = ITEMS) -> Path:
    """Write adapters and small networks to collect; returns their folder."""
    for number in range(count):
        random = torch.Generator().manual_seed(number)
        if number % 2:
            target = folder / f"{number}"
            target.mkdir(parents=True)
            names = [f"base_model.model.layer.{i}.q.lora_{f}.weight" for i in range(4) for f in "AB"]
            shapes = {"A": (2, 64), "B": (64, 2)}
            factors = {n: torch.randn(*shapes[n[-8]], generator=random) for n in names}
            save_file(factors, target / "adapter_model.safetensors", {"format": "pt"})
            (target / "adapter_config.json").write_text(json.dumps(CONFIG))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({"w": torch.randn(50, 50, generator=random)}, folder / f"{number}.safetensors")
    return folder


def _collect(sources: Path, zoo: Path, report: Report) -> None:
    collector.BATCH_ENTRIES = 4
    found = collector.collect([sources], zoo, on_progress=lambda done, _: report(done))
    report({"added": sum(one.status == "added" for one in found)})


def _build(recipe: Path, zoo: Path, report: Report) -> None:
    builder.GROUP = 3
    done = builder.build(recipe, zoo, progress=lambda _stage, done, _total: report(done))
    report({"added": done.added})


def collecting(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill collections; see ``_kill``."""
    sources = write_sources(folder / "in")
    return _kill(
        "kills of collect", folder / "zoo", kills, seed, lambda zoo, report: _collect(sources, zoo, report), ITEMS
    )


def building(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill builds; see ``_kill``."""
    folder.mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    builder.build(recipe, folder / "once")  # or the children would spend their lives on imports
    return _kill("kills of build", folder / "zoo", kills, seed, lambda zoo, report: _build(recipe, zoo, report), 45)


def _kill(
    title: str, zoo: Path, kills: int, seed: int, work: Callable[[Path, Report], None], total: int
) -> dict[str, Any]:
    """Kill some work at random moments, look at the zoo, kill it again sometimes, then let it finish.

    Returns:
        Number of kills that hit running work, of those that came too late, of records acknowledged before and kept
        after them, and ``problems``.
    """
    draw = random.Random(seed)
    result: dict[str, Any] = {"kills": 0, "too_late": 0, "acknowledged": 0, "kept": 0, "problems": []}
    if not kills:
        return result
    whole = _duration(zoo, work, result["problems"])
    while result["kills"] < kills and result["too_late"] < 5 * kills:
        for _ in range(draw.choice((1, 1, 2, 3))):
            if result["kills"] == kills:
                break
            started = time.monotonic()
            child = fork(lambda report: work(zoo, report))
            if child.wait(draw.uniform(0, whole)):
                result["too_late"] += 1  # it had ended; the load of the machine changes
                whole = min(whole, time.monotonic() - started)
            else:
                result["kills"] += 1
            acknowledged = max([0, *(number for number in child.reports if isinstance(number, int))])
            result["acknowledged"] += acknowledged
            result["kept"] += _look(zoo, acknowledged, result["problems"], f"{title} {result['kills']}")
        child = fork(lambda report: work(zoo, report))
        if not child.wait(60 + 10 * whole) or child.status != 0:
            result["problems"].append(f"{title} {result['kills']}: it could not go on")
        if (found := _look(zoo, total, result["problems"], f"{title} {result['kills']}, finished")) != total:
            result["problems"].append(f"{title} {result['kills']}: {found} of {total} records in the end")
        shutil.rmtree(zoo)
        whole *= 1.05  # so that late points are reached when the machine is slower again
        print(f"{title}: {result['kills']}/{kills}, {len(result['problems'])} problems", file=sys.stderr, flush=True)
    if result["kills"] < kills:
        result["problems"].append(f"{title}: only {result['kills']} of {kills} kills hit running work")
    return result


def _duration(zoo: Path, work: Callable[[Path, Report], None], problems: list[str]) -> float:
    started = time.monotonic()
    child = fork(lambda report: work(zoo, report))
    if not child.wait(300) or child.status != 0:
        problems.append("the work does not finish when nobody kills it")
    shutil.rmtree(zoo, ignore_errors=True)
    return time.monotonic() - started


def _look(zoo: Path, acknowledged: int, problems: list[str], title: str) -> int:
    """Open and verify a zoo after a kill; returns how many records it holds."""
    if not zoo.exists() and not acknowledged:
        return 0
    try:
        with Zoo.open(zoo, create=True) as opened:
            opened.sweep()
            problems += [f"{title}: {problem}" for problem in opened.verify()]
            if len(opened) < acknowledged:
                problems.append(f"{title}: {acknowledged} records were acknowledged, {len(opened)} are there")
            return len(opened)
    except Exception as error:  # any failure to open is what is looked for here
        problems.append(f"{title}: {type(error).__name__}: {error}")
        return 0


def two_collectors(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Let two processes collect the same folder into one new zoo; together they have to add each item once."""
    result: dict[str, Any] = {"rounds": rounds, "problems": []}
    if not rounds:
        return result
    sources, draw = write_sources(folder / "in"), random.Random(seed)
    for number in range(rounds):
        zoo = folder / f"zoo-{number}"
        children = [fork(lambda report, zoo=zoo: _collect(sources, zoo, report))]
        time.sleep(draw.choice((0, 0.01, 0.05)))
        children.append(fork(lambda report, zoo=zoo: _collect(sources, zoo, report)))
        ended = [child.wait(300) and child.status == 0 for child in children]
        added = sum(child.reports[-1]["added"] for child, good in zip(children, ended, strict=True) if good)
        if not all(ended) or added != ITEMS:
            result["problems"].append(f"two collectors, round {number}: ended {ended}, added {added} of {ITEMS}")
        _look(zoo, ITEMS, result["problems"], f"two collectors, round {number}")
        print(f"two collectors: {number + 1}/{rounds}", file=sys.stderr, flush=True)
    return result
