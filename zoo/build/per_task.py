"""What recipes share that train some members on each of some tasks: their names, their groups, the loop over tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from zoo.architectures import Architecture
from zoo.build.holdout import HoldoutConfig, assign
from zoo.build.registry import Data, Member, MemberName, Recipe
from zoo.kinds.dense import from_state_dict
from zoo.seeds import seed_of
from zoo.threads import torch_threads
from zoo.types import Task

if TYPE_CHECKING:
    from jaxtyping import Num
    from torch import Tensor

DIVERGED = "training diverged (non-finite weights)"


class Labelled(Data, Protocol):
    """Data with named classes; each is one task, with all its classes."""

    @property
    def class_names(self) -> tuple[str, ...]: ...


class PerTask(Recipe):
    """A recipe whose members are ``<task>/seed<k>``, one task for each data set.

    Args:
        data: the data sets.
        holdout: which tasks are held out.
        count: members of a task.
        seed: of the recipe.
        group: largest number of members trained together; by default all of a task.
    """

    def __init__(
        self, data: Sequence[Labelled], holdout: HoldoutConfig, count: int, seed: int, group: int | None = None
    ) -> None:
        splits = assign([d.name for d in data], holdout, seed_of(seed, "tasks"))
        self._data, self._count, self._group = list(data), count, min(group or count, count)
        self.task_of = {
            d.name: Task(d.name, d.description, d.name, tuple(range(len(d.class_names))), d.class_names, splits[d.name])
            for d in data
        }

    def datasets(self) -> Sequence[Data]:
        """All data sets."""
        return self._data

    def tasks(self) -> Sequence[Task]:
        """One task a data set."""
        return list(self.task_of.values())

    def members(self) -> Sequence[MemberName]:
        """Pairs of lineage and task: ``<task>/seed<k>``."""
        return [(f"{name}/seed{k}", name) for name in self.task_of for k in range(self._count)]

    def groups(self, size: int) -> list[Sequence[MemberName]]:
        """Groups within one task."""
        members, per = self.members(), self._count
        starts = [start for first in range(0, len(members), per) for start in range(first, first + per, self._group)]
        return [members[s : min(s + self._group, (s // per + 1) * per)] for s in starts]


def by_task(
    members: Sequence[MemberName], train_on: Callable[[str, Sequence[str]], Iterator[Member]]
) -> Iterator[Member]:
    """Train members, those of one task together, on one thread: threads wait for each other more than they help.

    Args:
        members: lineages and tasks.
        train_on: trains the given lineages on the task of a name.
    """
    for name in dict.fromkeys(task for _, task in members):
        with torch_threads(1):
            trained = list(train_on(name, [lineage for lineage, task in members if task == name]))
        yield from trained


def unstacked(
    tasks: Sequence[Task],
    lineages: Sequence[str],
    stacked: Mapping[str, Tensor],
    scores: Mapping[str, Num[Tensor, " m"]],
    architecture: Architecture,
    base_model: str | None = None,
) -> Iterator[Member]:
    """The members of networks that were trained together; one whose weights are not finite is a failure.

    Args:
        tasks: what each was trained on.
        lineages: one a network.
        stacked: state dict with a first axis over networks.
        scores: metrics of each network.
        architecture: of all of them.
        base_model: what they are heads of, if they are.
    """
    for i, (task, lineage) in enumerate(zip(tasks, lineages, strict=True)):
        state = {name: value[i].clone() for name, value in stacked.items()}
        metrics = {name: round(value[i].item(), 9) for name, value in scores.items()}
        if all(bool(torch.isfinite(value).all()) for value in state.values()):
            weights = from_state_dict(state, architecture=architecture, base_model=base_model)
            yield Member(lineage, task, weights, metrics, None)
        else:
            yield Member(lineage, task, None, metrics, DIVERGED)
