"""From answers to a choice: shrunken paired differences, and the simplest candidate within their noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightgen.evaluation.classification import interval, macro_f1_weighted, resamples
from weightgen.solve.candidates import BASE, Candidate
from weightgen.solve.record import Prior, Record

GIVEN_UP = 0.01
"""Macro-F1 that is given up at most for a simpler candidate, in the estimate."""
DOUBT = 0.05
"""How likely a base that is wrong as often as ``most_left`` says answers all examples rightly."""
BY_CHANCE = 0.16
"""How likely the best of all candidates may be ahead of the way that is best on other tasks by chance, at most."""


@dataclass(frozen=True)
class Difference:
    """Estimate of what one candidate is better than another, in macro-F1.

    Attributes:
        value: the estimate.
        noise: its standard error.
    """

    value: float
    noise: float


@dataclass(frozen=True)
class Scored:
    """A candidate as it was judged.

    Attributes:
        candidate: it.
        macro_f1: on the labelled examples, ``None`` without.
        interval: 95 % of it, over resamples of the examples.
        gain: over the base.
    """

    candidate: Candidate
    macro_f1: float | None
    interval: tuple[float, float] | None
    gain: Difference


def most_left(right: int) -> float:
    """Share of wrong answers that so many right ones of as many do not rule out, at 95 % (about 3 by their number)."""
    return 1 - DOUBT ** (1 / right)


def settled(right: int, record: Record | None, shots: float) -> bool:
    """Whether a base that answered so many examples, all rightly, leaves less than the record promises."""
    return record is None or most_left(right) <= record.promise(shots)


class Comparison:
    """Compares candidates on the same labelled examples, or by the track record alone."""

    def __init__(
        self,
        y: Int[Tensor, " n"],
        answers: dict[str, Float[Tensor, "m c"]],
        record: Record | None,
        shots: float,
        share: float = 1.0,
    ) -> None:
        """Score everything once.

        Args:
            y: labels; empty without.
            answers: logits by candidate, all for the same examples; without labels those for unlabelled texts.
            record: of the ways.
            shots: labelled examples a label.
            share: of these that what learns had learned from when it answered.
        """
        self._y, self._record, self._shots, self._share = y, record, shots, share
        self._found = {name: logits.argmax(-1) for name, logits in answers.items()}
        self._means: dict[str, float] = {}
        self._spreads: dict[str, Tensor] = {}
        if len(y):
            weights, once = resamples(y, 0, stratified=True), torch.ones(1, len(y))
            self._spreads = {name: macro_f1_weighted(found, y, weights) for name, found in self._found.items()}
            self._means = {name: macro_f1_weighted(found, y, once).item() for name, found in self._found.items()}

    def difference(self, first: Candidate, second: Candidate) -> Difference | None:
        """What the first is better than the second; ``None`` if nothing is known.

        What learns is judged after learning from some of the examples and used after learning from all of them; what
        that is worth on other tasks is added. Nobody is better than right: the record of other tasks promises no more
        than the second leaves to be gained; a few right answers of the base leave what they do not rule out. Without
        labels it promises no more than the share of texts that the two answer differently.
        """
        if first.name == second.name:
            return Difference(0.0, 0.0)
        prior = self._record and self._record.prior(first.way, second.way, self._shots)
        if not len(self._y):
            if prior is None:
                return None
            most = self._apart(first.name, second.name)
            return Difference(min(max(prior.mean, -most), most), prior.error)
        seen = self._means[first.name] - self._means[second.name] + self._growth(first) - self._growth(second)
        found = shrunken(seen, self._noise(first.name, second.name), prior)
        low, high = self._means[first.name] - 1, 1 - self._means[second.name]
        if high == 0 and second.name == BASE.name and not settled(len(self._y), self._record, self._shots):
            high = most_left(len(self._y))
        return Difference(min(max(found.value, low), high), found.noise)

    def usual(self, scored: Sequence[Scored]) -> Scored | None:
        """The candidate of the way that was best on other tasks, on average over those that had both."""
        found: Scored | None = None
        for one in scored:
            rival = BASE.way if found is None else found.candidate.way
            prior = self._record and self._record.prior(one.candidate.way, rival, self._shots)
            if prior is not None and prior.mean > 0:
                found = one
        return found

    def alike(self, first: Scored, second: Scored) -> bool:
        """Whether the second lost no more than ``GIVEN_UP`` to the first on other tasks; true without a record."""
        if self._record is None or first is second:
            return True
        prior = self._record.prior(first.candidate.way, second.candidate.way, self._shots)
        return prior is not None and prior.mean <= GIVEN_UP

    def recorded(self, candidate: Candidate) -> bool:
        """Whether the record knows what a candidate's way gains over the base, so that estimates are drawn to it."""
        return self._record is not None and self._record.prior(candidate.way, BASE.way, self._shots) is not None

    def _growth(self, candidate: Candidate) -> float:
        return self._record.growth(candidate.way, self._shots, self._share) if self._record else 0.0

    def _apart(self, first: str, second: str) -> float:
        """Share of the texts that two candidates answer differently; 1 where that is not known."""
        if not {first, second} <= self._found.keys():
            return 1.0
        return (self._found[first] != self._found[second]).float().mean().item()

    def _noise(self, first: str, second: str) -> float:
        """Standard error of a paired difference; never less than what one more disagreement would make of it."""
        drawn = float((self._spreads[first] - self._spreads[second]).std())
        right = [self._found[name] == self._y for name in (first, second)]
        share = (int((right[0] != right[1]).sum()) + 1) / (len(self._y) + 2)
        return max(drawn, math.sqrt(share / len(self._y)))

    def scored(self, candidate: Candidate) -> Scored | None:
        """A candidate beside the base."""
        gain = self.difference(candidate, BASE)
        if gain is None:
            return None
        if not len(self._y):
            return Scored(candidate, None, None, gain)
        return Scored(candidate, self._means[candidate.name], interval(self._spreads[candidate.name]), gain)


def shrunken(seen: float, noise: float, prior: Prior | None) -> Difference:
    """A measured difference drawn to what is usual, by precision; the noise is the standard error of the result."""
    if prior is None or noise == 0:
        return Difference(seen, noise)
    share = prior.spread**2 / (prior.spread**2 + noise**2)
    error = math.hypot(share * noise, (1 - share) * prior.error)
    return Difference(share * seen + (1 - share) * prior.mean, error)


def simplest_within_noise(scored: Sequence[Scored], comparison: Comparison) -> tuple[Candidate, Candidate]:
    """The choice and the best: the simplest candidate that the best does not beat by more than one standard error.

    The best of a dozen noisy scores is rarely the best. So it has to be ahead of the way that is best on other tasks,
    or that one takes its place: by a standard error if it is the only other candidate, by more if it is the best of
    many (``BY_CHANCE`` is divided among them, after Bonferroni).

    With few labels the error is large, and on average what the best is ahead is lost. So no more than ``GIVEN_UP`` of
    the estimate is given up for simplicity. Without a record the best of many scores is ahead of the base by chance, so
    there the base is taken wherever the best is within the noise of it.
    Nothing is given up for what is no simpler; the simplest of several is taken, and of equals the better one.
    """
    best = max(scored, key=lambda one: (one.gain.value, -one.candidate.level))
    usual = comparison.usual(scored)
    if usual is not None:
        ahead = comparison.difference(best.candidate, usual.candidate)
        errors = NormalDist().inv_cdf(1 - BY_CHANCE / max(1, len(scored) - 1))
        if ahead is None or ahead.value <= errors * ahead.noise:
            best = usual
    simpler = [one for one in scored if one.candidate.level < best.candidate.level]
    for one in sorted(simpler, key=lambda one: (one.candidate.level, -one.gain.value)):
        ahead = comparison.difference(best.candidate, one.candidate)
        if ahead is None:
            continue
        base = one.candidate.way == BASE.way
        most = ahead.noise if base and not comparison.recorded(best.candidate) else min(ahead.noise, GIVEN_UP)
        if ahead.value <= most and (base or comparison.alike(best, one)):
            return one.candidate, best.candidate
    return best.candidate, best.candidate
