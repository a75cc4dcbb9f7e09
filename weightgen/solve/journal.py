"""What is measured already, in one file beside the result, so that an interrupted search goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from weightgen.solve.budget import Budget, Meter
from zoo.store import disk_errors


@final
class Journal:
    """Answers of candidates by block, and what was spent on them."""

    def __init__(self, path: Path | None, key: str, budget: Budget) -> None:
        """Read what an earlier run of the same search left, if it is whole.

        Args:
            path: the file; ``None`` keeps everything in memory.
            key: of the search: task, sources, seed; answers of another search are not used.
            budget: of the search.
        """
        self._path, self._key = path, key
        self._answers: dict[str, dict[str, list[list[float]]]] = {}
        found = self._read()
        self._answers = found.get("answers", {})
        self.resumed = bool(self._answers)
        self.meter = Meter(budget, found.get("steps", 0.0), found.get("seconds", 0.0))

    def _read(self) -> dict[str, Any]:
        if self._path is None or not self._path.is_file():
            return {}
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return found if found["key"] == self._key else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def get(self, name: str, block: int) -> Float[Tensor, "n c"] | None:
        """Logits that were kept."""
        found = self._answers.get(name, {}).get(str(block))
        return None if found is None else torch.tensor(found)

    def put(self, name: str, block: int, logits: Float[Tensor, "n c"]) -> None:
        """Keep logits, to four digits so that a resumed search is the same one."""
        rows = [[round(value, 4) for value in row] for row in logits.tolist()]
        self._answers.setdefault(name, {})[str(block)] = rows

    def save(self) -> None:
        """Write the file, whole or not at all.

        Raises:
            WeightgenError: if the disk refuses.
        """
        if self._path is None:
            return
        content = {"key": self._key, "steps": self.meter.steps, "seconds": self.meter.seconds()}
        with disk_errors(str(self._path)):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            side = self._path.with_suffix(".partial")
            side.write_text(json.dumps({**content, "answers": self._answers}), encoding="utf-8")
            side.replace(self._path)

    def remove(self) -> None:
        """The result is written: nothing is left to go on with."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
