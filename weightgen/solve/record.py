"""The track record: what every way gained on other tasks, where everything was tried and measured on test examples.

A few labelled examples say little about a difference of two candidates. The record says what the difference of their
ways was on other tasks, and how much it varied; the two are weighted by their precision, as in the normal-normal model
of empirical Bayes (Efron and Morris 1975). Without labels the record is all there is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from zoo.errors import BadArtefact

SHIPPED = Path(__file__).parent / "record.json"
LEAST_TASKS = 4
DRAW = "#"
"""What stands between the name of a task and the number of another draw of its labelled examples."""


@dataclass(frozen=True)
class Prior:
    """What is known of a difference of two ways before anything is measured.

    Attributes:
        mean: over tasks.
        spread: standard deviation over tasks.
        error: standard error of the mean.
    """

    mean: float
    spread: float
    error: float


@dataclass(frozen=True)
class Record:
    """Macro-F1 by way, labelled examples a label, and task.

    Attributes:
        base_model: the base it was measured on.
        about: where it comes from, in words.
        scores: way, number of examples a label (0 for ways that learn nothing), task, ``task#1`` for the same task with
            other labelled examples. Ways are compared draw by draw, and draws of a task are averaged.
    """

    base_model: str
    about: str
    scores: Mapping[str, Mapping[int, Mapping[str, float]]]

    @classmethod
    def load(cls, path: Path, base_model: str) -> Self | None:
        """Read a record, or nothing if there is none or it is of another base.

        Raises:
            BadArtefact: if the file is damaged.
        """
        if not path.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            scores = {way: {int(n): dict(t) for n, t in shots.items()} for way, shots in found["ways"].items()}
            record = cls(found["base_model"], found["about"], scores)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadArtefact(f"{path} holds no track record ({error!r})", "delete it or measure it again") from None
        return record if record.base_model == base_model else None

    def prior(self, first: str, second: str, shots: float) -> Prior | None:
        """What the first way was better than the second, on tasks where both were measured.

        Args:
            first, second: keys of ``WAYS``.
            shots: labelled examples a label.
        """
        if first == second:
            own = None if first == "base" else self.prior(first, "base", shots)
            return None if own is None else Prior(0.0, own.spread, own.error)
        one, two = self._at(first, shots), self._at(second, shots)
        gains = _gains(one, two)
        if len(gains) < LEAST_TASKS:
            return None
        mean = sum(gains) / len(gains)
        spread = math.sqrt(sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1))
        return Prior(mean, spread, spread / math.sqrt(len(gains)))

    def promise(self, shots: float) -> float:
        """What the best way gained over the base on average, 0 if none gained."""
        known = [self.prior(way, "base", shots) for way in self.scores]
        return max([0.0, *(one.mean for one in known if one is not None)])

    def growth(self, way: str, shots: float, share: float) -> float:
        """What a way gains when it learns from all examples and not from a share of them, on average over tasks.

        Scores lie on lines over the logarithm of the number of examples; the first goes on below what was measured.
        Nothing for ways that learn nothing, or were measured at one number of examples.
        """
        if len(self.scores.get(way, {})) < 2 or not 0 < share < 1:
            return 0.0
        whole, part = (self._at(way, n, further=True) for n in (shots, shots * share))
        gains = _gains(whole, part)
        return sum(gains) / len(gains) if gains else 0.0

    def _at(self, way: str, shots: float, *, further: bool = False) -> Mapping[str, float]:
        """Scores at a number of examples, on lines between those that were measured, over its logarithm.

        Below the least number that was measured they are those at that number, or further down the first line.
        """
        known = self.scores.get(way, {})
        if not known:
            return {}
        at = min(shots if further else max(shots, min(known)), max(known))
        if exact := [tasks for count, tasks in known.items() if count == at]:
            return exact[0]
        low, high = next(pair for pair in pairwise(sorted(known)) if at < pair[1])
        share = math.log(at / low) / math.log(high / low)
        tasks = known[low].keys() & known[high].keys()
        return {task: (1 - share) * known[low][task] + share * known[high][task] for task in tasks}


def _gains(one: Mapping[str, float], two: Mapping[str, float]) -> list[float]:
    """What the first scores are above the second, a task each; only draws that both were measured on."""
    drawn: dict[str, list[float]] = {}
    for key in sorted(one.keys() & two.keys()):
        drawn.setdefault(key.partition(DRAW)[0], []).append(one[key] - two[key])
    return [sum(gains) / len(gains) for gains in drawn.values()]
