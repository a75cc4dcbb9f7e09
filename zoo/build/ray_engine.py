"""Train the members of a recipe as tasks on a Ray cluster: the one of ``RAY_ADDRESS``, or one on this machine.

Machines of a cluster read data and models from the paths in the recipe; results come back and are stored here.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from zoo.build.engines import Groups, describe, failed, received, work
from zoo.build.registry import Member, MemberName, Recipe, make_recipe
from zoo.errors import MissingExtra, WeightgenError

INSTALL = "pip install 'weightgen[ray]'"


def run_ray(
    resolved: Mapping[str, Any], plan: Recipe, groups: Groups, workers: int
) -> Iterator[tuple[int, list[Member]]]:
    """Train groups on a cluster; arguments, results and errors as in ``zoo.build.engines.run``."""
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise MissingExtra("the engine ray is not installed", INSTALL) from None
    return _run(ray, json.dumps(resolved), plan, groups, workers)


def _run(ray: Any, resolved: str, plan: Recipe, groups: Groups, workers: int) -> Iterator[tuple[int, list[Member]]]:
    own = not ray.is_initialized()
    if own:
        here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="ERROR", **here)
    task = ray.remote(num_cpus=1)(train_group)
    waiting, running = list(range(len(groups)))[::-1], {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                index = waiting.pop()
                running[task.remote(resolved, list(groups[index]))] = index
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            index = running.pop(done)
            try:
                members = received(ray.get(done))
            except ray.exceptions.RayError as error:
                members = failed(plan, groups[index], f"the task on the cluster was lost ({type(error).__name__})")
            yield index, members
    finally:
        if own:
            ray.shutdown()


def train_group(resolved: str, members: list[MemberName]) -> tuple[str, Any]:
    """What a task on the cluster does; arguments as JSON and plain values, result as ``zoo.build.engines.work``."""
    import torch

    torch.set_num_threads(1)
    try:
        return work(_plan(resolved), members)
    except WeightgenError as error:
        return "error", describe(error)


@functools.lru_cache(maxsize=1)
def _plan(resolved: str) -> Recipe:
    return make_recipe(json.loads(resolved))
