"""What the jobs on weak-to-strong decoding return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightgen.results import JobResult


def gigabytes(size: float) -> str:
    """A size in gigabytes for people: two digits of small ones, one after the point of large ones."""
    return f"{size:.1f}" if size >= 10 else f"{size:.2g}"


@dataclass(frozen=True)
class DecodeResult(JobResult):
    """One answer.

    Attributes:
        prompt: what was asked.
        text: the answer.
        tokens: its tokens.
        alphas: weight of each expert at each token.
        rule: the fusion rule.
        seconds: time of decoding, without loading.
        trace: picture of the weights, if one was asked for.
    """

    prompt: str
    text: str
    tokens: tuple[str, ...]
    alphas: tuple[tuple[float, ...], ...]
    rule: str
    seconds: float
    trace: Path | None = None

    def summary(self) -> str:
        return self.text


@dataclass(frozen=True)
class DoctorResult(JobResult):
    """Whether fusion helps on a pair.

    Attributes:
        items: labelled examples that were used.
        rows: for each method its share of right answers, mean log-probability of an answer token, and both minus the
            strong model's, with the ends of 95 % intervals.
        memory: gigabytes that each model and the caches need, by name.
        verdict: the answer in a sentence.
    """

    items: int
    rows: Mapping[str, Mapping[str, Any]]
    memory: Mapping[str, float]
    verdict: str

    def summary(self) -> str:
        lines = ["memory, GB: " + ", ".join(f"{name} {gigabytes(size)}" for name, size in self.memory.items())]
        if self.rows:
            lines.append(f"\n{self.items} items; differences to the strong model with 95 % intervals")
        for name, row in self.rows.items():
            gain, low, high = row["log_probability_gain"]
            more, least, most = row["accuracy_gain"]
            lines.append(
                f"  {name:12s} right {100 * row['accuracy']:5.1f} % ({100 * more:+.1f}, {100 * least:+.1f} to "
                f"{100 * most:+.1f})   log-probability a token {row['log_probability']:.3f} ({gain:+.3f}, {low:+.3f} "
                f"to {high:+.3f})"
            )
        return "\n".join([*lines, "", self.verdict])
