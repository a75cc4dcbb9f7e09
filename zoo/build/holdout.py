"""Which whole tasks of a recipe are held out, by name or by number."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from zoo.config import StrictConfig
from zoo.errors import UsageError
from zoo.split import split_tasks


class HoldoutConfig(StrictConfig):
    """Whole tasks kept from training: names of tasks, or how many to choose at random."""

    held_out: int | list[str] = Field(default=0, description="for the last measurement")
    validation: int | list[str] = Field(default=0, description="for model selection")


def assign(names: Sequence[str], config: HoldoutConfig, seed: int) -> dict[str, str]:
    """Split of each task.

    Args:
        names: distinct names of tasks.
        config: what to hold out.
        seed: decides the random choice.

    Raises:
        UsageError: if a name is unknown or held out twice, or no task would be left for training.
    """
    chosen: dict[str, str] = {}
    for split, wanted in (("test", config.held_out), ("val", config.validation)):
        for name in wanted if isinstance(wanted, list) else []:
            if name not in names or name in chosen:
                what = "is held out twice" if name in chosen else "is no task of the recipe"
                raise UsageError(f"the task {name!r} {what}", f"tasks are {', '.join(sorted(names)[:20])}")
            chosen[name] = split
    counts = [0 if isinstance(wanted, list) else wanted for wanted in (config.held_out, config.validation)]
    rest = [name for name in names if name not in chosen]
    return {**split_tasks(rest, test=counts[0], val=counts[1], seed=seed), **chosen}
