"""Rank records by several views at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from weightgen.retrieve.calibration import fused
from weightgen.retrieve.vectors import VectorIndex

POOL = 200
"""Candidates that every view proposes, at least, if there are several."""


@dataclass(frozen=True, eq=False)
class Asked:
    """One view of a query.

    Attributes:
        index: vectors of the records.
        query: of length one, in their frame.
        mean, deviation: of the cosine of two random records.
        allowed: rows that pass the filters; all by default.
    """

    index: VectorIndex
    query: Float[ndarray, " d"]
    mean: float = 0.0
    deviation: float = 1.0
    allowed: Bool[ndarray, " n"] | None = None


@dataclass(frozen=True)
class Ranked:
    """One record, ranked.

    Attributes:
        id: of the record.
        strength: mean over the views of (cosine - mean) / deviation.
        strengths, cosines: by view, those that the record has.
    """

    id: str
    strength: float
    strengths: Mapping[str, float]
    cosines: Mapping[str, float]


def rank(asked: Mapping[str, Asked], k: int) -> list[Ranked]:
    """The best records, by the mean over the views of how far a cosine lies above that of unrelated records.

    The unit is the deviation of the cosine of two random records, so that no view outweighs another by its scale. Every
    view proposes its nearest records, and all proposals are compared in all views exactly. A record without a vector in
    a view counts there as unrelated (0).

    Args:
        asked: views of the query, by name; at least one.
        k: how many are wanted.
    """
    if len(asked) == 1:  # the order of one view is that of its cosines
        name, only = next(iter(asked.items()))
        rows, scores = only.index.search(only.query, k, only.allowed)
        ids, inverse = only.index.ids, 1.0 / only.deviation
        found = []
        for row, cosine in zip(rows.tolist(), scores.tolist(), strict=True):
            strength = (cosine - only.mean) * inverse
            found.append(Ranked(ids[row], strength, {name: strength}, {name: cosine}))
        return found
    proposed: dict[str, None] = {}
    for one in asked.values():
        rows, _ = one.index.search(one.query, max(k, POOL), one.allowed)
        proposed |= dict.fromkeys(one.index.ids[row] for row in rows.tolist())
    return compare(asked, list(proposed))[:k]


def compare(asked: Mapping[str, Asked], ids: Sequence[str]) -> list[Ranked]:
    """Given records in all views, best first; arguments and rule as in ``rank``."""
    cosines: dict[str, dict[str, float]] = {id: {} for id in ids}
    for name, one in asked.items():
        pairs = [(id, row) for id in ids if (row := one.index.row(id)) is not None]
        scores = one.index.cosines(one.query, np.array([row for _, row in pairs], np.int64))
        for (id, _), cosine in zip(pairs, scores.tolist(), strict=True):
            cosines[id][name] = cosine
    names = list(asked)
    ranked = []
    for id, found in cosines.items():
        strengths = {name: (cosine - asked[name].mean) / asked[name].deviation for name, cosine in found.items()}
        ranked.append(Ranked(id, fused(strengths, names), strengths, found))
    return sorted(ranked, key=lambda one: (-one.strength, one.id))
