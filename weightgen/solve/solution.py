"""What a search found, and what it cost."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weightgen.solve.candidates import Candidate, Sources
from weightgen.solve.halving import Search
from weightgen.solve.journal import Journal
from zoo.types import Weights


@dataclass(frozen=True, eq=False)
class Solution:
    """What was found.

    Attributes:
        weights: what was chosen; an adapter that changes nothing where that is the base, no network.
        choice: the chosen candidate.
        search: every candidate and what became of it.
        basis: ``"labels"``, ``"track record"``, ``"retrieval"`` or ``"nothing"``: what the choice rests on.
        notes: what the reader should know.
        sources: what was retrieved.
        controls: macro-F1 of what should be worse: the most frequent label, the least similar adapter.
        cost: steps, seconds and peak memory.
    """

    weights: Weights | None
    choice: Candidate
    search: Search
    basis: str
    notes: tuple[str, ...]
    sources: Sources
    controls: Mapping[str, float]
    cost: dict[str, Any]


def spent(journal: Journal) -> dict[str, Any]:
    """Budget, steps and seconds of a search, and the largest memory of this process so far."""
    meter, peak = journal.meter, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "budget": {"amount": meter.budget.amount, "unit": meter.budget.unit},
        "steps": round(meter.steps, 1),
        "seconds": round(meter.seconds(), 2),
        "peak_memory_mib": round((peak if sys.platform == "darwin" else peak * 1024) / 2**20),
    }
