"""Finding weights that are equal: the same tensors, or the same function up to a symmetry that their kind knows.

Every record carries a sketch: a hash of what twins must share exactly (kind, names, shapes, what the configuration says
about the function) and one number that symmetries do not change, up to rounding. Records with one hash and nearly one
number are loaded and compared. A hash of rounded canonical weights would not do: among thousands of values some always
lie so near to the edge of a rounding step that twins fall on its two sides.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from zoo import kinds
from zoo.catalog import Catalog
from zoo.store import Store, read_weights
from zoo.types import Layout, Record, Weights

TENSORS, SYMMETRY = "same tensors", "same up to symmetry"
DESCRIPTION = "same tensors, described as something else"


@dataclass(frozen=True, slots=True)
class Twin:
    """A record that says nothing new.

    Attributes:
        id: the record.
        of: the first record that it equals.
        how: ``TENSORS`` (names, types and bits), ``SYMMETRY`` (another gauge or order of hidden units, another order of
            names), or ``DESCRIPTION`` (the tensors are equal and the configuration says that the function is not).
    """

    id: str
    of: str
    how: str


def sketch(weights: Weights) -> tuple[str, float] | None:
    """Hash and invariant by which twins find each other; ``None`` where the kind knows no symmetry of them."""
    kind = kinds.get(weights.layout.kind)
    number = kind.invariant(weights)
    if number is None or not math.isfinite(number):
        return None
    shapes = sorted((spec.name, list(spec.shape)) for spec in weights.layout.tensors)
    text = json.dumps([shapes, _described(weights.layout)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32], number


def _described(layout: Layout) -> str:
    """What a layout says about the function beside its tensors."""
    config = kinds.get(layout.kind).function_config(layout)
    return json.dumps([layout.kind, layout.base_model, config], sort_keys=True)


def near(number: float, layout: Layout) -> tuple[float, float]:
    """Range of invariants in which twins lie: rounding errors of single weights cancel in a norm over many."""
    width = number * (1e-5 / max(layout.numel, 1) ** 0.5 + 2e-8)
    return number - width, number + width


def find_twin(catalog: Catalog, store: Store, record: Record) -> Twin | None:
    """The first record before this one that equals it.

    Args:
        catalog: catalogue that holds the record.
        store: its blobs.
        record: the record.

    Raises:
        BadArtefact: if weights that have to be compared are damaged.
    """
    equal = catalog.earlier(record.id, blob=record.blob)
    for other in equal:
        if _described(other.layout) == _described(record.layout):
            return Twin(record.id, other.id, TENSORS)
    if (found := catalog.sketch(record.id)) is not None:
        for other in catalog.earlier(record.id, key=found[0], between=near(found[1], record.layout)):
            if _equal(read_weights(store, other), read_weights(store, record)):
                return Twin(record.id, other.id, SYMMETRY)
    return Twin(record.id, equal[0].id, DESCRIPTION) if equal else None


def _equal(a: Weights, b: Weights) -> bool:
    return kinds.get(a.layout.kind).same_function(a, b)


def all_twins(catalog: Catalog, store: Store) -> Iterator[Twin]:
    """Every record with the function of one before it; ``Twin.of`` is always a record that is no twin itself.

    Raises:
        BadArtefact: if weights that have to be compared are damaged.
    """
    by_blob: dict[tuple[str, str], str] = {}
    known: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for record in catalog.in_order():
        exact = (record.blob, _described(record.layout))
        if exact in by_blob:
            yield Twin(record.id, by_blob[exact], TENSORS)
            continue
        by_blob[exact] = record.id
        found = catalog.sketch(record.id) or sketch(read_weights(store, record))
        if found is None:
            continue
        key, number = found
        smallest, largest = near(number, record.layout)
        start = bisect.bisect_left(known[key], (smallest, ""))
        stop = bisect.bisect_right(known[key], (largest, "~"))
        for _, other in known[key][start:stop]:
            if _equal(read_weights(store, catalog.find(other)), read_weights(store, record)):
                by_blob[exact] = other
                yield Twin(record.id, other, SYMMETRY)
                break
        else:
            bisect.insort(known[key], (number, record.id))
