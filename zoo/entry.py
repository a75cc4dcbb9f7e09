"""What is handed to a zoo to be added, and the checks it has to pass first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zoo import kinds, safefile
from zoo.errors import UsageError
from zoo.types import SPLITS, Weights


@dataclass(frozen=True, eq=False)
class Entry:
    """Weights and what is known about them, ready to be added. Fields as in ``Record``; unknown ones are ``None``.

    Attributes:
        weights: the weights.
        extra_files: small files to give back on export, by plain file name.
    """

    weights: Weights
    task: str | None = None
    description: str | None = None
    lineage: str | None = None
    split: str | None = None
    metrics: Mapping[str, float] | None = None
    license: str | None = None
    source: str | None = None
    dataset: str | None = None
    revision: str | None = None
    extra_files: Mapping[str, bytes] = field(default_factory=dict)


def check_split(split: str | None) -> None:
    """Refuse a split that is not one of ``zoo.types.SPLITS`` or ``None``.

    Raises:
        UsageError: naming it.
    """
    if split is not None and split not in SPLITS:
        raise UsageError(f"unknown split {split!r}", f"known are {', '.join(SPLITS)}")


def check_entry(entry: Entry) -> None:
    """Refuse an entry that could not be stored and read back exactly.

    Raises:
        BadArtefact: if a value is NaN or infinite.
        UsageError: if split, file names, types or order of the tensors do not fit.
    """
    check_split(entry.split)
    kinds.get(entry.weights.layout.kind)
    for name in entry.extra_files:
        if Path(name).name != name or name in ("", ".", "..") or "\\" in name:
            raise UsageError(f"extra file {name!r} is not a plain file name", "leave out its folder")
    for spec in entry.weights.layout.tensors:
        found = safefile.dtype_name(entry.weights.tensors[spec.name].dtype)
        if found != spec.dtype:
            raise UsageError(f"tensor {spec.name!r} is {found}, its layout says {spec.dtype}", "make a new layout")
    if [spec.name for spec in entry.weights.layout.tensors] != list(entry.weights.tensors):
        raise UsageError("the tensors are not in the order of their layout", "order them as layout.tensors")
    safefile.check_finite(entry.weights.tensors, entry.source or "the new entry")
