"""Conditions on the measured numbers of records, as people write them: ``val_accuracy>=0.9``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from zoo.errors import UsageError

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
_FORM = re.compile(rf"^\s*(?P<name>[^<>=!]+?)\s*(?P<sign>{'|'.join(OPERATORS)})\s*(?P<bound>\S+)\s*$")


@dataclass(frozen=True, slots=True)
class MetricCondition:
    """A comparison of one metric with a number.

    Attributes:
        name: name of the metric.
        sign: one of ``OPERATORS``.
        bound: what it is compared with.
    """

    name: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> MetricCondition:
        """Read ``NAME>=NUMBER``; the signs are ``>=``, ``<=``, ``>``, ``<``, ``=`` and ``!=``.

        Raises:
            UsageError: if the text has another form.
        """
        found = _FORM.match(text)
        try:
            bound = float(found["bound"]) if found else float("nan")
        except ValueError:
            bound = float("nan")
        if found is None or bound != bound:
            raise UsageError(f"{text!r} is no condition on a metric", "write for example val_accuracy>=0.9")
        return cls(found["name"], found["sign"], bound)

    def holds(self, metrics: Mapping[str, float]) -> bool:
        """Whether the metrics have this one and it passes; what was not measured does not."""
        return self.name in metrics and OPERATORS[self.sign](metrics[self.name], self.bound)
