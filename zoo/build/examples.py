"""Labelled examples of one task as a file for ``weightgen generate``:

python -m zoo.build.examples --zoo runs/zoo --split test --out examples.npz

They are validation images: no network of the zoo was trained on them, and none of them is used in the last measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from zoo.datasets import bank_of
from zoo.errors import UsageError, WeightgenError
from zoo.tasks import VAL
from zoo.types import SPLITS, Task
from zoo.zoo import Zoo


def choose_task(zoo: Zoo, split: str, name: str | None = None) -> Task:
    """Return a task of a split: the one of that name, or the first.

    Raises:
        UsageError: if the split has no tasks, or the task of that name belongs to another split.
    """
    tasks = {task.name: task for task in zoo.tasks(split=split)}
    if not tasks:
        raise UsageError(f"the zoo {zoo.path} has no tasks in the split {split!r}", "build one: weightgen zoo build")
    if name is None:
        return next(iter(tasks.values()))
    if name not in tasks:
        raise UsageError(f"no task of the split {split!r} is named {name!r}", f"known are {', '.join(tasks)}")
    return tasks[name]


def draw_examples(zoo: Zoo, task: Task, shots: int, seed: int) -> dict[str, np.ndarray]:
    """Draw distinct validation images of every class of a task.

    Args:
        zoo: where the data set of the task is stored.
        task: what to draw examples of.
        shots: examples a class.
        seed: decides which, and their order.

    Returns:
        Inputs ``x``, labels ``y`` (0, 1, ... in the order of the task's classes) and names of the ``classes``.

    Raises:
        UsageError: if ``shots`` is not positive, or a class has fewer examples.
    """
    if shots < 1:
        raise UsageError(f"cannot draw {shots} examples a class", "ask for at least one")
    generator = torch.Generator().manual_seed(seed)
    x, y = bank_of(zoo, [task], VAL).support(torch.tensor([0]), shots, generator).flat()
    counts = torch.bincount(y)
    if int(counts.min()) < shots:
        raise UsageError(
            f"class {task.class_names[int(counts.argmin())]!r} has {int(counts.min())} validation images, not {shots}",
            "ask for fewer shots",
        )
    order = torch.randperm(len(y), generator=generator)
    return {"x": x[order].numpy(), "y": y[order].numpy(), "classes": np.array(task.class_names)}


def write_examples(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an ``.npz`` file, complete or not at all.

    Raises:
        UsageError: if the name has another ending or is that of a folder, or the disk refuses.
    """
    if path.suffix != ".npz" or path.is_dir():
        raise UsageError(f"cannot write examples to {path}", "give a file that ends in .npz")
    partial = path.with_suffix(".partial.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(partial, x=arrays["x"], y=arrays["y"], classes=arrays["classes"])
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path} ({error.strerror})", "choose another path") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    Args:
        arguments: words of the command line; those of this process by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m zoo.build.examples", description="Write labelled examples of a task."
    )
    parser.add_argument("--zoo", type=Path, required=True, help="folder of the zoo")
    parser.add_argument("--split", choices=SPLITS, default="test", help="split of the task (default: test)")
    parser.add_argument("--task", help="name of the task (default: the first of the split)")
    parser.add_argument("--shots", type=int, default=10, help="examples a class (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="decides which examples (default: 0)")
    parser.add_argument("--out", type=Path, required=True, help=".npz file to write")
    options = parser.parse_args(arguments)
    try:
        with Zoo.open(options.zoo) as zoo:
            task = choose_task(zoo, options.split, options.task)
            arrays = draw_examples(zoo, task, options.shots, options.seed)
        write_examples(options.out, arrays)
    except WeightgenError as error:
        print(f"error: {error.cause}", file=sys.stderr)
        if error.remedy:
            print(f"remedy: {error.remedy}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {len(arrays['y'])} examples of the task {task.name!r} to {options.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
