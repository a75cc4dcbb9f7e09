"""Whole networks as changes of a base network, or of nothing, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from weightgen.compose.delta import Delta
from zoo.architectures import UnitGroup
from zoo.errors import UsageError
from zoo.kinds.dense import groups_of
from zoo.types import Weights


def read_network(weights: Weights, base: Weights | None, name: str) -> dict[str, Delta]:
    """Changes of a network's floating tensors relative to a base, in float64.

    Args:
        weights: of the kind ``dense``.
        base: the base; without one the values themselves are the change.
        name: for messages.

    Raises:
        UsageError: if it is no network, or base and network have different tensors.
    """
    if weights.layout.kind != "dense":
        raise UsageError(
            f"{name} is of the kind {weights.layout.kind!r}, the others are networks",
            "compose adapters with adapters, networks with networks",
        )
    zero = {} if base is None else base.tensors
    if base is not None:
        same_tensors([base, weights], ["the base", name])
    return {
        key: Delta.of(value.double() - zero[key].double() if zero else value.double())
        for key, value in weights.tensors.items()
        if value.is_floating_point()
    }


def same_tensors(networks: Sequence[Weights], names: Sequence[str]) -> None:
    """Refuse networks whose tensors have different names or shapes.

    Raises:
        UsageError: naming the first tensor that differs.
    """
    wanted = {key: tuple(value.shape) for key, value in networks[0].tensors.items()}
    for network, name in zip(networks[1:], names[1:], strict=True):
        found = {key: tuple(value.shape) for key, value in network.tensors.items()}
        if odd := sorted(set(wanted.items()) ^ set(found.items())):
            key = odd[0][0]
            here, there = wanted.get(key, "missing"), found.get(key, "missing")
            raise UsageError(
                f"tensor {key!r} is {here} in {names[0]} and {there} in {name}",
                "compose networks of one architecture only",
            )


def unit_groups(weights: Weights) -> Sequence[UnitGroup]:
    """Interchangeable hidden units of a network; none where they are not known."""
    return groups_of(weights.layout)


def write_network(deltas: Mapping[str, Delta], base: Weights | None, like: Weights) -> Weights:
    """The network that is the base with the given changes.

    Args:
        deltas: changes of all floating tensors.
        base: the base of the changes.
        like: a parent; layout, types and integer tensors come from it.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in like.tensors.items():
        if name not in deltas:
            tensors[name] = value
            continue
        changed = deltas[name].values()
        tensors[name] = (changed if base is None else base.tensors[name].double() + changed).to(value.dtype)
    return Weights(like.layout, tensors)
