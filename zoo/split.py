"""Splits that hold out whole tasks and never separate relatives.

A split is a property of a task: every network trained on it, and every relative of such a network (same lineage),
carries the split of the task.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from zoo.errors import BadArtefact, UsageError
from zoo.types import Record


def split_tasks(names: Sequence[str], *, test: int, val: int, seed: int) -> dict[str, str]:
    """Assign whole tasks to splits at random.

    Args:
        names: distinct task names.
        test: number of tasks held out for the last measurement.
        val: number of tasks held out for model selection.
        seed: decides the assignment together with the sorted names; their order does not matter.

    Returns:
        Split of each task.

    Raises:
        UsageError: if no task would be left for training, or a name occurs twice.
    """
    if len(set(names)) != len(names):
        raise UsageError("task names are not distinct", "give every task its own name")
    if min(test, val) < 0 or test + val >= len(names):
        raise UsageError(f"cannot hold out {test} + {val} of {len(names)} tasks", "leave at least one for training")
    order = sorted(names)
    random.Random(seed).shuffle(order)
    return {name: "test" if i < test else "val" if i < test + val else "train" for i, name in enumerate(order)}


def check_splits(records: Iterable[Record], *, whole_tasks: bool = True) -> None:
    """Fail if one task, one lineage or one blob occurs in two splits.

    Args:
        records: of a zoo; those without a split are left aside.
        whole_tasks: false lets a task occur in two splits, for what is to be done on known tasks.

    Raises:
        BadArtefact: naming the first relative that crosses splits.
    """
    seen: dict[tuple[str, str], str] = {}
    for record in records:
        if record.split is None:
            continue
        for what, value in (("task", record.task), ("lineage", record.lineage), ("blob", record.blob)):
            if value is None or (what == "task" and not whole_tasks):
                continue
            other = seen.setdefault((what, value), record.split)
            if other != record.split:
                raise BadArtefact(
                    f"{what} {value!r} occurs in the splits {other!r} and {record.split!r}",
                    "put all relatives into one split; otherwise held-out results mean nothing",
                )
