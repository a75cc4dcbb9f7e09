"""Weights as data: read, check, canonicalise, tokenise, store and build zoos of trained networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.errors import BadArtefact, MissingExtra, NetworkError, UsageError, WeightgenError
from zoo.types import Layout, Record, Task, TensorSpec, Tokens, Weights

if TYPE_CHECKING:
    from zoo.zoo import Entry, Zoo

__all__ = [
    "BadArtefact",
    "Entry",
    "Layout",
    "MissingExtra",
    "NetworkError",
    "Record",
    "Task",
    "TensorSpec",
    "Tokens",
    "UsageError",
    "WeightgenError",
    "Weights",
    "Zoo",
]

_LAZY = {"Zoo": "zoo.zoo", "Entry": "zoo.zoo"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
