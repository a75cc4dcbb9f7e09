"""What a recipe for a zoo has to provide, and the table of recipes."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.config import StrictConfig
from zoo.types import Task, Weights

if TYPE_CHECKING:
    from zoo.build.sources import LabelledData


@dataclass(frozen=True, eq=False)
class Member:
    """One trained network on its way into a zoo; where training failed there are no ``weights`` but a ``failure``."""

    lineage: str
    task: Task
    weights: Weights | None
    metrics: dict[str, float]
    failure: str | None


class Recipe(abc.ABC):
    """A way to train a zoo. Members are independent of each other, so a build can stop and go on anywhere."""

    data: LabelledData

    @abc.abstractmethod
    def tasks(self) -> Sequence[Task]:
        """All tasks with their splits."""

    @abc.abstractmethod
    def members(self) -> Sequence[tuple[str, str]]:
        """Lineage and task name of every member, in building order."""

    @abc.abstractmethod
    def train(self, members: Sequence[tuple[str, str]]) -> Iterator[Member]:
        """Train some members; the result of one does not depend on the others."""


RECIPES: dict[str, tuple[type[StrictConfig], Callable[[Any], Recipe]]] = {}


def register_recipe(name: str, config: type[StrictConfig]) -> Callable[[type], type]:
    """Class decorator that makes a recipe available under the ``recipe`` key of a YAML file."""

    def register(cls: type) -> type:
        RECIPES[name] = (config, cls)
        return cls

    return register
