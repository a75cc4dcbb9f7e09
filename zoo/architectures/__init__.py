"""Network families the toolkit can run: how to build one, and which of its axes may be permuted together.

An architecture is a JSON mapping with a ``family`` and that family's own fields, for example
``{"family": "mlp", "sizes": [64, 16, 5], "activation": "tanh"}``. It is stored in ``Layout.config["architecture"]``.
Adding a family is one new file in this folder with a registered class.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from zoo.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

Architecture = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an axis that holds the units of a group, where the rest of the axis holds something else.

    Attributes:
        name: tensor.
        axis: axis of it.
        ranges: stretches ``(start, stop)`` of the axis; put one after the other and cut into equal blocks, they are the
            units. Heads in a packed query/key/value matrix of width ``d`` are three parts, ``(0, d)``, ``(d, 2 d)`` and
            ``(2 d, 3 d)``.
    """

    name: str
    axis: int
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Gauge:
    """A free factor of every unit of a group.

    Attributes:
        up: tensor and axis of what a unit's factor multiplies (the weights that come in, and the bias).
        down: tensor and axis of what it divides (the weights that go out).
        positive: whether any positive factor is free (ReLU) or only the sign (odd activations).
    """

    up: tuple[tuple[str, int], ...]
    down: tuple[tuple[str, int], ...]
    positive: bool


@dataclass(frozen=True, slots=True)
class FreeMap:
    """Linear maps that are free inside of every unit of a group: between queries and keys, or values and outputs.

    The function depends on the two sides of a unit through their products alone, so that one may be multiplied by any
    invertible matrix and the other by its inverse.

    Attributes:
        left: what makes up one side: parts whose units are blocks of as many positions as the space has dimensions.
        right: the other side; a unit may hold several such blocks (heads that share values).
        bias: added to what ``right`` meets, with an effect that is the same for every input.
        into: bias that can take up this effect; ``None`` if it has none (a bias of keys, which the softmax ignores).
    """

    left: tuple[Part, ...]
    right: tuple[Part, ...]
    bias: Part | None = None
    into: str | None = None


@dataclass(frozen=True, slots=True)
class UnitGroup:
    """Axes that index one and the same set of hidden units.

    Permuting all of them alike leaves the network's function unchanged. If ``odd`` is true, the units pass
    through an odd activation, and flipping the sign of a unit on every axis leaves it unchanged too.

    Attributes:
        axes: pairs of tensor name and axis. The axis is cut into ``size`` equal blocks, one a unit: rows of a matrix,
            channels after flattening, heads of attention.
        size: number of units.
        odd: whether the sign of a unit is free.
        parts: axes that hold the units beside other things.
        gauges: factors that are free on some of the axes only.
        maps: linear maps that are free inside of the units.
    """

    axes: tuple[tuple[str, int], ...]
    size: int
    odd: bool = False
    parts: tuple[Part, ...] = ()
    gauges: tuple[Gauge, ...] = ()
    maps: tuple[FreeMap, ...] = ()


class Family(Protocol):
    """What a registered family provides, as static methods."""

    @staticmethod
    def build(architecture: Architecture) -> nn.Module:
        """Return a freshly initialised module whose state dict is the network."""
        ...

    @staticmethod
    def groups(architecture: Architecture) -> tuple[UnitGroup, ...]:
        """Return the groups of interchangeable hidden units."""
        ...

    @staticmethod
    def outputs(architecture: Architecture) -> UnitGroup:
        """Return the axes that index the classes; permuting them renames the classes.

        Raises:
            UsageError: if the outputs are no classes.
        """
        ...

    @staticmethod
    def describe(architecture: Architecture) -> str:
        """Return one short phrase for people and text encoders."""
        ...


_FAMILIES: dict[str, type[Family]] = {}
F = TypeVar("F", bound=type)


def register_family(name: str) -> Callable[[F], F]:
    """Class decorator that makes a family available under ``name``."""

    def register(cls: F) -> F:
        _FAMILIES[name] = cls
        return cls

    return register


def tied(architecture: Architecture) -> frozenset[str]:
    """Names that a file may leave out, because the network shares these tensors with others.

    A family says so with a static method ``tied(architecture)``; most have none.
    """
    method = getattr(family(architecture), "tied", None)
    return frozenset() if method is None else frozenset(method(architecture))


def resized(
    architecture: Architecture, tensors: Mapping[str, Tensor], wanted: Architecture, seed: int = 0
) -> dict[str, Tensor] | None:
    """Networks brought into another shape of their family without training; ``None`` where that is not known.

    A family says how with a static method ``resized`` that leaves the output layers as they are; others have one shape
    only. Output layers of another number of classes are zero.

    Args:
        architecture: of the networks.
        tensors: state dict whose values have a leading axis over networks.
        wanted: the shape wanted.
        seed: of incoming weights of units that change nothing.
    """
    if architecture.get("family") != wanted.get("family"):
        return None
    made = family(wanted)
    method = getattr(made, "resized", None)
    if method is not None:
        tensors = method(architecture, tensors, wanted, seed)
    elif {**architecture, "classes": None} != {**wanted, "classes": None}:
        return None
    if tensors is None:
        return None
    found, outputs = dict(tensors), made.outputs(wanted)
    for name, axis in outputs.axes:
        shape = list(found[name].shape)
        if shape[axis + 1] != outputs.size:
            shape[axis + 1] = outputs.size
            found[name] = found[name].new_zeros(shape)
    return found


def family(architecture: Architecture) -> type[Family]:
    """Return the family class of an architecture.

    Raises:
        UsageError: if the family is missing or unknown.
    """
    if not _FAMILIES:
        for module in pkgutil.iter_modules(__path__):
            importlib.import_module(f"{__name__}.{module.name}")
    name = architecture.get("family")
    if name not in _FAMILIES:
        raise UsageError(f"unknown network family {name!r}", f"known families: {', '.join(sorted(_FAMILIES))}")
    return _FAMILIES[name]
