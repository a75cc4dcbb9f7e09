"""Bookkeeping for ``zoo.tracing``: which positions of which tensors carry one and the same hidden unit.

Every position of a channel axis carries a wire. Operations that need two wires to be the same unit (an addition, a
second use of a layer) join them. Wires that something reads in a way that is not understood, and those of inputs and
outputs, are frozen. At the end, units that appear at the same places in the same way are interchangeable.

Factors have wires of their own: a normalisation between two layers lets permutations through, but no scale.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from zoo.architectures import Gauge, Part, UnitGroup

Axis = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Channels:
    """The channel axis of an intermediate tensor.

    Attributes:
        axis: which axis it is.
        wires: unit that each position carries.
        tags: which of the positions of that unit it is, counted from 0: flattening gives each channel several.
        factors: free factor of each position.
    """

    axis: int
    wires: np.ndarray
    tags: np.ndarray
    factors: np.ndarray

    def at(self, axis: int) -> Channels:
        """The same channels on another axis."""
        return Channels(axis, self.wires, self.tags, self.factors)

    def take(self, index: slice) -> Channels:
        """Some of the channels."""
        return Channels(self.axis, self.wires[index], self.tags[index], self.factors[index])


class Joined:
    """Disjoint sets of numbered elements, each with a set of remarks."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.remarks: list[set[str]] = []

    def new(self, count: int) -> np.ndarray:
        """Fresh elements, each a set of its own."""
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        self.remarks.extend(set() for _ in range(count))
        return np.arange(start, start + count)

    def find(self, element: int) -> int:
        """Representative of the set of an element."""
        while self.parent[element] != element:
            self.parent[element] = self.parent[self.parent[element]]
            element = self.parent[element]
        return element

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Unite the sets of elements, one by one."""
        for x, y in zip(map(int, a), map(int, b), strict=True):
            p, q = self.find(x), self.find(y)
            if p != q:
                self.parent[q] = p
                self.remarks[p] |= self.remarks[q]

    def remark(self, elements: np.ndarray, text: str) -> None:
        """Note something about sets."""
        for element in map(int, elements):
            self.remarks[self.find(element)].add(text)


@dataclass
class Wiring:
    """Everything that is known about the units of a network while it is traced.

    Attributes:
        units: wires of units; the remark ``frozen`` keeps one where it is.
        factors: wires of factors; ``killed`` fixes one at 1, ``positive`` and ``sign`` say what is free.
        placed: units of each axis of each parameter.
        scaled: factors that multiply (+1) or divide (-1) each axis of each parameter.
    """

    units: Joined = field(default_factory=Joined)
    factors: Joined = field(default_factory=Joined)
    placed: dict[Axis, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    scaled: dict[tuple[Axis, int], np.ndarray] = field(default_factory=dict)
    slices: int = 0

    def fresh(self, axis: int, count: int) -> Channels:
        """Channels of their own."""
        return Channels(axis, self.units.new(count), np.zeros(count, int), self.factors.new(count))

    def zeros(self, axis: int, count: int) -> Channels:
        """Channels that no parameter makes; told apart from those of other origin."""
        made = self.fresh(axis, count)
        self.units.remark(made.wires, f"zeros {len(self.units.parent)}")
        return made

    def cut(self, channels: Channels, index: slice) -> Channels:
        """Some of the channels; told apart from the others, as what follows treats them differently."""
        some = channels.take(index)
        if len(some.wires) < len(channels.wires):
            self.slices += 1
            self.units.remark(some.wires, f"slice {self.slices}")
        return some

    def freeze(self, channels: Channels | None) -> None:
        """Keep units where they are, as something reads them that is not understood."""
        if channels is not None:
            self.units.remark(channels.wires, "frozen")
            self.kill(channels)

    def kill(self, channels: Channels) -> None:
        """Fix factors at 1."""
        self.factors.remark(channels.factors, "killed")

    def join(self, a: Channels, b: Channels, *, factors: bool = True) -> bool:
        """Make channels the same units; false (and both frozen) where they cannot be."""
        if len(a.wires) != len(b.wires) or not np.array_equal(a.tags, b.tags):
            self.freeze(a)
            self.freeze(b)
            return False
        self.units.join(a.wires, b.wires)
        if factors:
            self.factors.join(a.factors, b.factors)
        return True

    def reads(self, name: str, axis: int, channels: Channels, power: int) -> None:
        """Note that an axis of a parameter holds these channels.

        Args:
            name: parameter.
            axis: axis of it.
            channels: the units.
            power: how their factors enter: 1 multiplied, -1 divided, 0 not at all.
        """
        key = (name, axis)
        if key in self.placed:
            known = Channels(channels.axis, *self.placed[key], channels.factors)
            self.join(known, channels, factors=False)
        else:
            self.placed[key] = (channels.wires, channels.tags)
        if power:
            first = self.scaled.setdefault((key, power), channels.factors)
            self.factors.join(first, channels.factors)

    def never(self, names: Sequence[str]) -> None:
        """Freeze everything in parameters that are also used in a way that is not understood."""
        for (name, _), (wires, _) in self.placed.items():
            if name in names:
                self.units.remark(wires, "frozen")
        for ((name, _), _), factors in self.scaled.items():
            if name in names:
                self.factors.remark(factors, "killed")

    def groups(self, names: dict[str, tuple[str, ...]]) -> tuple[UnitGroup, ...]:
        """Groups of interchangeable units.

        Args:
            names: all names of each parameter in the state dict.
        """
        where: dict[int, dict[Axis, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
        for axis, (wires, tags) in self.placed.items():
            for position, (wire, tag) in enumerate(zip(map(int, wires), map(int, tags), strict=True)):
                unit = self.units.find(wire)
                if where[unit][axis].setdefault(tag, position) != position:
                    self.units.remarks[unit].add("frozen")  # twice in one place: which is which is not known
        free = self._free(where)
        alike: dict[tuple[object, tuple[Gauge, ...]], list[int]] = defaultdict(list)
        for unit, places in where.items():
            if "frozen" not in self.units.remarks[unit]:
                looks = tuple((axis, tuple(sorted(tags))) for axis, tags in sorted(places.items()))
                path = tuple(sorted(self.units.remarks[unit]))
                alike[(looks, path), free.get(unit, ())].append(unit)
        found = [
            self._group([where[unit] for unit in units], gauges, names)
            for (_, gauges), units in alike.items()
            if len(units) > 1 or gauges
        ]
        return tuple(found)

    def _free(self, where: dict[int, dict[Axis, dict[int, int]]]) -> dict[int, tuple[Gauge, ...]]:
        """Factors that are free, by unit."""
        ways: dict[int, dict[int, set[Axis]]] = defaultdict(lambda: {1: set(), -1: set()})
        unit_of: dict[int, set[int]] = defaultdict(set)
        covered: dict[tuple[int, Axis, int], int] = defaultdict(int)
        for (axis, power), factors in self.scaled.items():
            for factor, wire in zip(map(int, factors), map(int, self.placed[axis][0]), strict=True):
                root, unit = self.factors.find(factor), self.units.find(wire)
                ways[root][power].add(axis)
                unit_of[root].add(unit)
                covered[root, axis, power] += 1
        found: dict[int, list[Gauge]] = defaultdict(list)
        for root, way in ways.items():
            remarks = self.factors.remarks[root]
            if "killed" in remarks or not remarks & {"positive", "sign"} or len(unit_of[root]) > 1 or way[1] & way[-1]:
                continue
            (unit,) = unit_of[root]
            if "frozen" in self.units.remarks[unit] or not way[1] or not way[-1]:
                continue
            if any(covered[root, axis, p] != len(where[unit][axis]) for p in (1, -1) for axis in way[p]):
                continue  # a factor of some positions of the unit only
            if {"positive", "sign"} <= remarks:
                continue
            found[unit].append(Gauge(tuple(sorted(way[1])), tuple(sorted(way[-1])), "positive" in remarks))
        return {unit: tuple(gauges) for unit, gauges in found.items()}

    def _group(
        self, units: list[dict[Axis, dict[int, int]]], gauges: tuple[Gauge, ...], names: dict[str, tuple[str, ...]]
    ) -> UnitGroup:
        axes: list[Axis] = []
        parts: list[Part] = []
        first = next(iter(units[0]))
        units.sort(key=lambda unit: min(unit[first].values()))
        for name, axis in units[0]:
            index = [unit[name, axis][tag] for unit in units for tag in sorted(units[0][name, axis])]
            for alias in names[name]:
                if index == list(range(len(self.placed[name, axis][0]))):
                    axes.append((alias, axis))
                else:
                    parts.append(Part(alias, axis, _ranges(index)))
        full = {*axes, *((part.name, part.axis) for part in parts)}
        renamed = [
            Gauge(_all_names(gauge.up, names), _all_names(gauge.down, names), gauge.positive) for gauge in gauges
        ]
        odd = next((g for g in renamed if not g.positive and {*g.up, *g.down} == full), None)
        rest = tuple(g for g in renamed if g is not odd)
        return UnitGroup(tuple(axes), len(units), odd is not None, tuple(parts), rest)


def _all_names(way: tuple[Axis, ...], names: dict[str, tuple[str, ...]]) -> tuple[Axis, ...]:
    return tuple((alias, axis) for name, axis in way for alias in names[name])


def _ranges(index: list[int]) -> tuple[tuple[int, int], ...]:
    """Positions as stretches that follow one another."""
    result = []
    for _, run in itertools.groupby(enumerate(index), lambda pair: pair[1] - pair[0]):
        values = [value for _, value in run]
        result.append((values[0], values[-1] + 1))
    return tuple(result)
