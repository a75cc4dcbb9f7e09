"""Where the members of a recipe are trained: in this process, in a pool of processes, or on a Ray cluster.

A group of members is the unit of work. What goes wrong in one member is recorded as its failure and stops nobody else;
what is wrong with the recipe itself stops the build.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from zoo import errors
from zoo.build.registry import Member, MemberName, Recipe
from zoo.errors import UsageError, WeightgenError
from zoo.types import Layout, Weights

Groups = Sequence[Sequence[MemberName]]
Results = Iterator[tuple[int, list[Member]]]
Engine = Callable[[Mapping[str, Any], Recipe, Groups, int], Results]


def run(engine: str, resolved: Mapping[str, Any], plan: Recipe, groups: Groups, workers: int | None) -> Results:
    """Train groups of members.

    Args:
        engine: ``inline``, ``local`` (a pool of processes) or ``ray``.
        resolved: the config of the recipe, from which other processes make the recipe again.
        plan: the recipe.
        groups: members that are trained together.
        workers: processes, or tasks on the cluster at a time; by default one a processor core.

    Yields:
        Number of a group and its members, in the order in which groups are done.

    Raises:
        UsageError: if the recipe cannot be used.
        MissingExtra: if the engine is not installed.
    """
    return ENGINES[engine](resolved, plan, groups, workers or cores())


def check(engine: str, workers: int | None) -> None:
    """Refuse an unknown engine, or a number of workers that it cannot use; arguments as in ``run``.

    Raises:
        UsageError: naming it.
    """
    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}", f"choose one of {', '.join(ENGINES)}")
    if workers is not None and (workers < 1 or engine == "inline"):
        wrong = "no number of processes" if workers < 1 else "more than the engine inline, this process, can use"
        raise UsageError(f"{workers} workers is {wrong}", "give --engine local and a number from 1 on")


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def attempt(plan: Recipe, members: Sequence[MemberName]) -> list[Member]:
    """Train a group; if that raises, its members one by one, and those that raise again become failures.

    Raises:
        WeightgenError: if the recipe cannot be used at all.
    """
    try:
        return list(plan.train(members))
    except WeightgenError:
        raise
    except Exception as error:
        if len(members) > 1:
            return [member for one in members for member in attempt(plan, [one])]
        return failed(plan, members, f"{type(error).__name__}: {error}")


def failed(plan: Recipe, members: Sequence[MemberName], reason: str) -> list[Member]:
    """The members of a group as failures."""
    tasks = {task.name: task for task in plan.tasks()}
    return [Member(lineage, tasks[name], None, {}, reason) for lineage, name in members]


def work(plan: Recipe, members: Sequence[MemberName]) -> tuple[str, Any]:
    """``attempt`` for another process: ``("done", members)`` or ``("error", description)``, plain and small to send."""
    try:
        return "done", [_packed(member) for member in attempt(plan, members)]
    except WeightgenError as error:
        return "error", describe(error)


def describe(error: WeightgenError) -> tuple[str, str, str]:
    """An expected error as plain values."""
    return type(error).__name__, error.cause, error.remedy


def received(answer: tuple[str, Any]) -> list[Member]:
    """The members that ``work`` sent.

    Raises:
        WeightgenError: the one that it sent.
    """
    kind, value = answer
    if kind == "error":
        name, cause, remedy = value
        raise getattr(errors, name, WeightgenError)(cause, remedy)
    return [_unpacked(*packed) for packed in value]


def _packed(member: Member) -> tuple[Member, dict[str, Any] | None, bytes]:
    if member.weights is None:
        return member, None, b""
    import safetensors.torch

    tensors = {name: tensor.contiguous().clone() for name, tensor in member.weights.tensors.items()}
    return replace(member, weights=None), member.weights.layout.to_json(), safetensors.torch.save(tensors)


def _unpacked(member: Member, layout: dict[str, Any] | None, data: bytes) -> Member:
    if layout is None:
        return member
    import safetensors.torch

    tensors, shape = safetensors.torch.load(data), Layout.from_json(layout)
    return replace(member, weights=Weights(shape, {spec.name: tensors[spec.name] for spec in shape.tensors}))


def _inline(resolved: Mapping[str, Any], plan: Recipe, groups: Groups, workers: int) -> Results:
    for index, members in enumerate(groups):
        yield index, attempt(plan, members)


def _local(resolved: Mapping[str, Any], plan: Recipe, groups: Groups, workers: int) -> Results:
    from zoo.build.pool import run_pool

    return run_pool(resolved, plan, groups, workers)


def _ray(resolved: Mapping[str, Any], plan: Recipe, groups: Groups, workers: int) -> Results:
    from zoo.build.ray_engine import run_ray

    return run_ray(resolved, plan, groups, workers)


ENGINES: dict[str, Engine] = {"inline": _inline, "local": _local, "ray": _ray}
