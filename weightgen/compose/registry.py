"""What a method of composition is given, what it returns, and the names of all methods.

A method is one file in ``weightgen/compose/methods`` with one decorated function; nothing else has to be edited, and
one contract suite runs over every name.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from weightgen.compose.delta import Delta
from zoo.architectures import UnitGroup
from zoo.config import StrictConfig
from zoo.errors import UsageError

Objective = Callable[[Mapping[str, Tensor]], Tensor]
"""Scalar to minimise, of the changes of the base's tensors by name. One with a method ``at(step)`` gives the objective
of a gradient step, for example on a part of the examples; see ``weightgen.compose.objectives``."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What is composed.

    Attributes:
        sources: changes of each parent, by tensor name; whole values where networks have no common base.
        weights: one number a parent.
        keys: what each parent is known by, independent of the order they are given in.
        adapters: whether the parents are adapters; otherwise they are whole networks.
        based: whether changes of networks are relative to a base network.
        groups: interchangeable hidden units of the networks; empty for adapters.
        objective: what learned methods minimise.
        seed: decides every random number.
    """

    sources: Sequence[Mapping[str, Delta]]
    weights: Float[Tensor, " s"]
    keys: Sequence[str]
    adapters: bool
    based: bool
    groups: Sequence[UnitGroup]
    objective: Objective | None
    seed: int

    def wanted(self) -> Objective:
        """The objective.

        Raises:
            UsageError: if there is none.
        """
        if self.objective is None:
            raise UsageError("this method learns and has no objective", "give objective=..., or --data FILE --base ID")
        return self.objective


@dataclass(frozen=True, eq=False)
class Mixture:
    """What a method makes.

    Attributes:
        deltas: changes by tensor name.
        report: JSON values for the receipt: what was learned or cut.
        coefficients: by tensor name one number a parent, or one a parent and output, where the method has such.
    """

    deltas: Mapping[str, Delta]
    report: Mapping[str, Any] = field(default_factory=dict)
    coefficients: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: what users write.
        run: does it.
        config: its settings.
        mean: whether weights are shares of 1 if none are given; otherwise each is 1.
        affine: whether the result is the weighted sum of the parents, so that weights of sum 1 mix whole tensors too.
        learned: whether it needs an objective.
        adapters: whether it takes adapters.
        networks: whether it takes whole networks.
        exact: settings under which a single parent of weight 1 is given back.
    """

    name: str
    run: Callable[[Problem, Any], Mixture]
    config: type[StrictConfig]
    mean: bool
    affine: bool
    learned: bool
    adapters: bool
    networks: bool
    exact: Mapping[str, Any]


class Plain(StrictConfig):
    """Settings of a method that has none."""


_METHODS: dict[str, Method] = {}


def method(
    name: str,
    config: type[StrictConfig] = Plain,
    *,
    mean: bool = False,
    affine: bool = False,
    learned: bool = False,
    adapters: bool = True,
    networks: bool = True,
    exact: Mapping[str, Any] | None = None,
) -> Callable[[Callable[[Problem, Any], Mixture]], Callable[[Problem, Any], Mixture]]:
    """Register a method; arguments as in ``Method``."""

    def register(run: Callable[[Problem, Any], Mixture]) -> Callable[[Problem, Any], Mixture]:
        if name in _METHODS:
            raise ValueError(f"two methods are named {name!r}")
        _METHODS[name] = Method(name, run, config, mean, affine, learned, adapters, networks, dict(exact or {}))
        return run

    return register


@functools.cache
def _discover() -> None:
    from weightgen.compose import methods

    for module in pkgutil.iter_modules(methods.__path__):
        importlib.import_module(f"{methods.__name__}.{module.name}")


def method_names() -> list[str]:
    """Names of all methods, sorted."""
    _discover()
    return sorted(_METHODS)


def get_method(name: str) -> Method:
    """Method by name.

    Raises:
        UsageError: if there is none of that name.
    """
    _discover()
    if name not in _METHODS:
        raise UsageError(f"unknown method of composition {name!r}", f"known are {', '.join(method_names())}")
    return _METHODS[name]
