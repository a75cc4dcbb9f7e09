"""What a recipe for a zoo has to provide, and the table of recipes."""

from __future__ import annotations

import abc
import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from zoo.config import StrictConfig
from zoo.types import Task, Weights

if TYPE_CHECKING:
    from torch import Tensor

MemberName = tuple[str, str]
"""Lineage of a member and name of its task."""


class Data(Protocol):
    """Data that a zoo stores beside the networks trained on them."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def license(self) -> str | None: ...

    def tensors(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True, eq=False)
class Member:
    """One trained network on its way into a zoo; where training failed there are no ``weights`` but a ``failure``.

    Several checkpoints of one training share its lineage. ``extra_files`` are those of ``zoo.kinds.Found``.
    """

    lineage: str
    task: Task
    weights: Weights | None
    metrics: dict[str, float]
    failure: str | None
    extra_files: Mapping[str, bytes] = field(default_factory=dict)


class Recipe(abc.ABC):
    """A way to train a zoo. Members are independent of each other, so a build can stop and go on anywhere."""

    @abc.abstractmethod
    def datasets(self) -> Sequence[Data]:
        """The data that tasks refer to."""

    @abc.abstractmethod
    def tasks(self) -> Sequence[Task]:
        """All tasks with their splits."""

    @abc.abstractmethod
    def members(self) -> Sequence[MemberName]:
        """Lineage and task name of every member, in building order."""

    @abc.abstractmethod
    def train(self, members: Sequence[MemberName]) -> Iterator[Member]:
        """Train some members; the result of one does not depend on the others."""

    def groups(self, size: int) -> list[Sequence[MemberName]]:
        """The members in the groups that are trained together and committed at once, the same in every run.

        Args:
            size: largest group where the recipe has no reason for another one.
        """
        members = self.members()
        return [members[start : start + size] for start in range(0, len(members), size)]


_RECIPES: dict[str, tuple[type[StrictConfig], Callable[[Any], Recipe]]] = {}


def register_recipe(name: str, config: type[StrictConfig]) -> Callable[[type], type]:
    """Class decorator that makes a recipe available under the ``recipe`` key of a YAML file."""

    def register(cls: type) -> type:
        _RECIPES[name] = (config, cls)
        return cls

    return register


@functools.cache
def recipes() -> Mapping[str, tuple[type[StrictConfig], Callable[[Any], Recipe]]]:
    """Config class and factory of every recipe: adding one is a new file in this folder."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
    return _RECIPES


def make_recipe(resolved: Mapping[str, Any]) -> Recipe:
    """The recipe of a resolved config, as ``zoo.config.dump_config`` gives it."""
    from zoo.config import parse_config

    config, factory = recipes()[resolved["recipe"]]
    return factory(parse_config(resolved, config, source="recipe"))
