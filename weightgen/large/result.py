"""What an exploration returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightgen.results import JobResult, plain


@dataclass(frozen=True)
class ExploreResult(JobResult):
    """The best checkpoint and the account of how it was found.

    Attributes:
        checkpoint: folder that ``from_pretrained`` reads.
        card: rows, selected, verdict, test, layers, seconds, memory; see ``weightgen.large.card``.
    """

    checkpoint: Path
    card: Mapping[str, Any]

    def to_json(self) -> Any:
        """The card, with the folder."""
        return {"checkpoint": str(self.checkpoint), **plain(self.card)}

    def summary(self) -> str:
        card = self.card
        lines = [
            f"{card['metric']} on {card['task']} ({card['items']} items), minus the given model, change of weights"
        ]
        for row in sorted(card["rows"], key=lambda r: -r["mean"]):
            mark = "*" if row["name"] == card["selected"] else " "
            mean, low, high = row["minus_original"]
            lines.append(
                f"{mark} {row['name']:18s} {row['mean']:8.4f}   {mean:+.4f} [{low:+.4f}, {high:+.4f}]   "
                f"{row['distance']:.3f}"
            )
        return "\n".join([*lines, "", card["verdict"]["sentence"], f"written: {self.checkpoint}"])
