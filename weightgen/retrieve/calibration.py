"""From similarity to the probability that a hit beats the base, learned from pairs of tasks and records of a zoo.

A pair is a task, a record that was trained on another task (or by another run on the same one), how similar they are in
every view, and whether the record is better on the task than the base. Its score is turned into a probability by a
logistic function (Platt 1999, with his corrected targets). It is judged with every task left out in turn; if it says no
more than the plain rate of success does, the rate is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import minimize

from zoo.errors import BadArtefact
from zoo.store import disk_errors

LEAST_PAIRS, LEAST_TASKS, LEAST_OUTCOMES = 20, 4, 3


@dataclass(frozen=True)
class Pair:
    """One measured pair.

    Attributes:
        task: what was looked for.
        record: id of the record.
        same: whether the record was trained on that task.
        strengths: by view, in deviations above unrelated records.
        gain: score of the record minus that of the base, on validation examples of the task.
    """

    task: str
    record: str
    same: bool
    strengths: Mapping[str, float]
    gain: float


@dataclass(frozen=True)
class Calibration:
    """A fitted map from strength to probability.

    Attributes:
        slope, intercept: of the logistic function; the slope is 0 where the plain rate says as much.
        pairs, tasks: what it was learned from.
        rate: share of pairs that beat the base.
        brier: mean squared error of the probabilities of tasks that were left out.
        brier_rate: the same of the plain rate.
    """

    slope: float
    intercept: float
    pairs: int
    tasks: int
    rate: float
    brier: float
    brier_rate: float

    def probability(self, strength: float) -> float:
        """Probability that a hit of this strength beats the base."""
        return float(sigmoid(np.array([self.slope * strength + self.intercept]))[0])

    def describe(self) -> str:
        """One sentence for people."""
        what = "the score says more than the plain rate" if self.slope else "no more than the plain rate is known"
        return (
            f"probability of beating the base, from {self.pairs} pairs of {self.tasks} tasks "
            f"({100 * self.rate:.0f} % beat it; Brier {self.brier:.3f}, plain rate {self.brier_rate:.3f}: {what})"
        )


def fused(strengths: Mapping[str, float], views: Sequence[str]) -> float:
    """Mean strength over views; a record without a vector in a view counts there as unrelated."""
    return sum(strengths.get(view, 0.0) for view in views) / len(views)


def calibrate(pairs: Sequence[Pair], views: Sequence[str]) -> Calibration | str:
    """Fit probabilities for some views.

    Args:
        pairs: measured; only those that have all the views are used.
        views: what is compared at once.

    Returns:
        The calibration, or the reason why there is none.
    """
    used = [pair for pair in pairs if all(view in pair.strengths for view in views)]
    wins = np.array([pair.gain > 0 for pair in used], float)
    tasks = np.array([pair.task for pair in used])
    count = len(set(tasks.tolist()))
    if len(used) < LEAST_PAIRS or count < LEAST_TASKS:
        return f"{len(used)} measured pairs of {count} tasks are too few ({LEAST_PAIRS} of {LEAST_TASKS} are needed)"
    if min(wins.sum(), len(wins) - wins.sum()) < LEAST_OUTCOMES:
        return f"{int(wins.sum())} of {len(used)} measured pairs beat the base: there is nothing to tell apart"
    x = np.array([fused(pair.strengths, views) for pair in used])
    left_out, plain = np.zeros(len(x)), np.zeros(len(x))
    for task in sorted(set(tasks.tolist())):
        here = tasks == task
        slope, intercept = logistic(x[~here], wins[~here])
        left_out[here] = sigmoid(slope * x[here] + intercept)
        plain[here] = _rate(wins[~here])
    brier, brier_rate = float(((left_out - wins) ** 2).mean()), float(((plain - wins) ** 2).mean())
    slope, intercept = logistic(x, wins)
    if slope <= 0 or brier >= brier_rate:
        rate = _rate(wins)
        slope, intercept, brier = 0.0, math.log(rate / (1 - rate)), brier_rate
    return Calibration(slope, intercept, len(x), count, float(wins.mean()), brier, brier_rate)


def sigmoid(x: Float[ndarray, "*n"]) -> Float[ndarray, "*n"]:
    """The logistic function."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def _rate(wins: Float[ndarray, " n"]) -> float:
    return float((wins.sum() + 1) / (len(wins) + 2))


def logistic(x: Float[ndarray, " n"], wins: Float[ndarray, " n"]) -> tuple[float, float]:
    """Slope and intercept of the likeliest logistic function, with Platt's targets in place of 0 and 1."""
    up, down = wins.sum(), len(wins) - wins.sum()
    target = np.where(wins > 0, (up + 1) / (up + 2), 1 / (down + 2))
    centre, scale = x.mean(), max(float(x.std()), 1e-9)
    z = (x - centre) / scale

    def loss(p: Float[ndarray, " two"]) -> tuple[float, Float[ndarray, " two"]]:
        logit = p[0] * z + p[1]
        value = float((np.logaddexp(0, logit) - target * logit).mean())
        error = (sigmoid(logit) - target) / len(z)
        return value, np.array([error @ z, error.sum()])

    best = minimize(loss, np.array([0.0, math.log((up + 1) / (down + 1))]), jac=True, method="BFGS").x
    return float(best[0] / scale), float(best[1] - best[0] * centre / scale)


def save_pairs(path: Path, pairs: Sequence[Pair], encoder: str) -> None:
    """Write the pairs and their number; the file is replaced at once or not at all.

    Raises:
        WeightgenError: if the disk refuses.
    """
    content = {"encoder": encoder, "count": len(pairs), "pairs": [asdict(pair) for pair in pairs]}
    with disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        side = path.with_suffix(".partial")
        side.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        side.replace(path)


def load_pairs(path: Path, encoder: str) -> list[Pair]:
    """Read what ``save_pairs`` wrote; nothing if there is none, or it was measured with another encoder.

    Raises:
        BadArtefact: if the file is damaged.
    """
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pairs = [Pair(**{**one, "strengths": dict(one["strengths"])}) for one in content["pairs"]]
        return pairs if content["encoder"] == encoder else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadArtefact(f"{path} holds no calibration ({error!r})", "delete it and calibrate again") from None
