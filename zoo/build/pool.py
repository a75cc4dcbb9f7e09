"""A pool of processes that train groups of members. The death of one costs the group it was at work on, no more."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from zoo.build.engines import Groups, cores, describe, failed, received, work
from zoo.build.memory import keep_freed_memory
from zoo.build.registry import Member, Recipe, make_recipe
from zoo.errors import WeightgenError


@dataclass
class _Worker:
    """A process, the line to it, and the number of the group it is at work on."""

    process: BaseProcess
    line: Connection
    group: int | None = None


def run_pool(
    resolved: Mapping[str, Any], plan: Recipe, groups: Groups, workers: int
) -> Iterator[tuple[int, list[Member]]]:
    """Train groups in fresh processes; arguments, results and errors as in ``zoo.build.engines.run``."""
    context = multiprocessing.get_context("spawn")  # a forked process would inherit locks of torch in any state
    workers = min(workers, len(groups))
    threads = max(1, cores() // max(1, workers))
    waiting = list(range(len(groups)))[::-1]
    pool: list[_Worker] = []

    def start() -> _Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, dict(resolved), threads), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def give(worker: _Worker) -> None:
        worker.group = waiting.pop() if waiting else None
        with contextlib.suppress(OSError):  # it died; that shows when its answer is awaited
            worker.line.send(None if worker.group is None else list(groups[worker.group]))

    try:
        pool.extend(start() for _ in range(workers))
        for worker in pool:
            give(worker)
        while busy := {worker.line: worker for worker in pool if worker.group is not None}:
            for line in wait(list(busy)):
                worker = busy[line]  # type: ignore[index]
                index = worker.group
                assert index is not None
                try:
                    members = received(worker.line.recv())
                except (EOFError, OSError):
                    worker.process.join()
                    reason = f"the process that trained it died (exit code {worker.process.exitcode})"
                    members = failed(plan, groups[index], reason)
                    pool.remove(worker)
                    if waiting:
                        worker = start()
                        pool.append(worker)
                    else:
                        worker.group = None
                        yield index, members
                        continue
                give(worker)
                yield index, members
    finally:
        for worker in pool:
            worker.line.close()
            worker.process.terminate()
        for worker in pool:
            worker.process.join()


def _end_with_parent() -> None:
    """End this process at once if the parent is killed: a group may take minutes, and nobody would read its answer."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _serve(line: Connection, resolved: dict[str, Any], threads: int) -> None:
    """What a process of the pool does: make the recipe, then train one group after the other until told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which then stops this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    import torch

    torch.set_num_threads(threads)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        members = line.recv()
        try:
            plan = make_recipe(resolved)
        except WeightgenError as error:
            line.send(("error", describe(error)))
            return
        while members is not None:
            line.send(work(plan, members))
            members = line.recv()
