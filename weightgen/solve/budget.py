"""One budget for everything that is tried, in seconds or in steps."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self, final

from zoo.errors import UsageError

TEXTS_A_STEP = 48
"""Texts that are read at the cost of one step; a step trains on 16, forward and backward."""
TRAINED_A_STEP = 16
TO_WRITE = 3.0
"""Seconds that are kept for writing and checking the result."""
FINDING = 0.5
"""Share of the budget after which no further candidate is looked for: what is left judges those there are."""


@dataclass(frozen=True)
class Budget:
    """What may be spent.

    Attributes:
        amount: how much.
        unit: ``"seconds"`` of wall time, or ``"steps"``: one is a gradient step on 16 texts, or reading 48. A budget in
            steps gives the same result on every run.
    """

    amount: float
    unit: Literal["seconds", "steps"]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"60s"``, ``"2m"`` or ``"500steps"``.

        Raises:
            UsageError: if it is nothing of the kind.
        """
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|steps?)?", text.strip())
        amount = float(found[1]) if found else 0.0
        if found is None or amount <= 0:
            raise UsageError(f"{text!r} is no budget", "write for example 60s, 2m or 500steps")
        if (found[2] or "s").startswith("step"):
            return cls(amount, "steps")
        return cls(amount * (60 if found[2] == "m" else 1), "seconds")


@final
class Meter:
    """Counts what is spent; both units are counted, one of them is the limit.

    Attributes:
        budget: the limit.
        steps: what was charged so far.
    """

    def __init__(self, budget: Budget, steps: float = 0.0, seconds: float = 0.0) -> None:
        """Start counting; ``steps`` and ``seconds`` were spent by an earlier, interrupted run."""
        self.budget, self.steps = budget, steps
        self._before, self._start = seconds, time.perf_counter()
        self._paid_steps = self._paid_seconds = 0.0

    @contextlib.contextmanager
    def paying(self, steps: float) -> Iterator[None]:
        """Count the work of the ``with`` block, if it ends well."""
        started = time.perf_counter()
        yield
        self.steps += steps
        self._paid_steps += steps
        self._paid_seconds += time.perf_counter() - started

    def seconds(self) -> float:
        """Wall time, that of interrupted runs included."""
        return self._before + time.perf_counter() - self._start

    def spent(self) -> float:
        """What was spent, in the unit of the budget."""
        return self.steps if self.budget.unit == "steps" else self.seconds()

    def finds(self) -> bool:
        """Whether further candidates may be looked for."""
        return self.spent() <= FINDING * self.budget.amount

    def allows(self, steps: float) -> bool:
        """Whether work of so many steps still fits, at the pace so far."""
        if self.budget.unit == "steps":
            return self.steps + steps <= self.budget.amount
        pace = self._paid_seconds / self._paid_steps if self._paid_steps else 0.0
        return self.seconds() + pace * steps + TO_WRITE <= self.budget.amount


def reading(texts: int) -> float:
    """Steps that reading some texts costs."""
    return math.ceil(texts / TEXTS_A_STEP)
