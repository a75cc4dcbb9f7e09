"""Reading structure out of tensor names: which module a tensor belongs to and in which order modules come."""

from __future__ import annotations

import re
from collections.abc import Iterable

_DIGITS = re.compile(r"(\d+)")


def natural_key(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key that puts ``layer.2`` before ``layer.10``; numbers may have any length."""
    parts = [part.lstrip("0") if i % 2 else part for i, part in enumerate(_DIGITS.split(name))]
    return tuple((len(part) if i % 2 else 0, part) for i, part in enumerate(parts))


def module_of(name: str) -> str:
    """Path of the module that owns a tensor: the name without its last component."""
    return name.rpartition(".")[0]


def layer_index(modules: Iterable[str]) -> dict[str, int]:
    """Number modules in execution order.

    A file that keeps the order of the network gives it by first appearance. Files sorted by name have lost it; there
    the numbers in the names are counted as numbers, which is the best that the names can tell.

    Args:
        modules: module paths in file order, with repetitions.

    Returns:
        Index of each distinct module.
    """
    order = list(dict.fromkeys(modules))
    if order == sorted(order):
        order.sort(key=natural_key)
    return {module: i for i, module in enumerate(order)}
