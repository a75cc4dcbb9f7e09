"""The vectors of one view on disk and in memory: compared with the catalogue, made again if in doubt."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from weightgen.retrieve.vectors import VectorConfig, VectorIndex, unit
from weightgen.retrieve.views import Tasks, View, WeightsView
from zoo import safefile
from zoo.errors import BadArtefact
from zoo.seeds import seed_of
from zoo.store import disk_errors
from zoo.types import Record
from zoo.zoo import Zoo

FORMAT = 1
LEAST_CENTRED = 8
"""Records below which no mean is taken off: it would hold too much of each of them."""


@final
class StoredView:
    """One view of all records that have a vector in it.

    Attributes:
        view: makes the vectors.
        index: searches them, centred and of length one; ``None`` if there is none yet.
        mean, deviation: of the cosine of two random records.
    """

    def __init__(self, view: View, folder: Path | None, config: VectorConfig) -> None:
        """Read what is stored under the name of the view, if it fits."""
        self.view, self._folder, self._config = view, folder, config
        self.index: VectorIndex | None = None
        self.mean, self.deviation = 0.0, 1.0
        self._keys: dict[str, str] = {}
        self._raw: dict[str, Float[ndarray, " d"]] = {}
        self._centre: Float[ndarray, " d"] | None = None
        self.damaged = False
        with contextlib.suppress(BadArtefact, OSError, ValueError, KeyError, TypeError):
            self._load()
        self.damaged = not self._keys and folder is not None and (folder / f"{view.name}.json").exists()
        self._arrange()

    def __len__(self) -> int:
        return len(self._raw)

    def _load(self) -> None:
        if self._folder is None:
            return
        about = json.loads((self._folder / f"{self.view.name}.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT or about["about"] != self.view.about:
            return
        if not re.fullmatch(rf"{self.view.name}-[0-9a-f]{{12}}\.safetensors", about["file"]):
            return
        x = safefile.load(self._folder / about["file"])[0]["vectors"].numpy()
        if hashlib.sha256(x.tobytes()).hexdigest() != about["digest"] or len(about["ids"]) != len(x):
            return
        if isinstance(self.view, WeightsView):
            self.view.scales = {str(key): int(value) for key, value in about["scales"].items()}
        self._raw = dict(zip(about["ids"], x, strict=True))
        self._keys = {str(id): str(key) for id, key in about["keys"].items()}

    def refresh(
        self, zoo: Zoo, tasks: Tasks, records: Sequence[Record], report: Callable[[str, int, int], None]
    ) -> tuple[int, int]:
        """Compare with the catalogue; make missing vectors, forget those of records that are gone, and save.

        Returns:
            How many vectors were made and forgotten.
        """
        keys = {record.id: self.view.key(record, tasks) for record in records}
        gone = [id for id in self._keys if id not in keys]
        new = [record for record in records if self._keys.get(record.id) != keys[record.id]]
        if not gone and not new:
            return 0, 0
        made = self.view.vectors(zoo, tasks, new, lambda done, total: report(f"view {self.view.name}", done, total))
        for id in (*gone, *(record.id for record in new)):
            self._keys.pop(id, None)
            self._raw.pop(id, None)
        self._raw |= {id: vector.detach().float().numpy() for id, vector in made.items()}
        self._keys |= {record.id: keys[record.id] for record in new}
        self._arrange(gone, list(made))
        self._save()
        report(f"view {self.view.name}", len(new), len(new))
        return len(made), len(gone)

    def _arrange(self, gone: Sequence[str] = (), made: Sequence[str] | None = None) -> None:
        """Bring the index up to date; from the beginning if the mean that is taken off has moved."""
        if not self._raw:
            self.index = None
            return
        if self.index is None or self.view.centred or made is None:
            ids = list(self._raw)
            x = np.stack([self._raw[id] for id in ids])
            centred = self.view.centred and len(ids) >= LEAST_CENTRED
            self._centre = x.mean(0) if centred else None
            self.index = VectorIndex(x.shape[1], self._config)
            self.index.add(ids, x if self._centre is None else x - self._centre)
        else:
            self.index.delete(gone)
            if made:
                self.index.add(made, np.stack([self._raw[id] for id in made]))
        self.mean, self.deviation = self.index.background(seed_of("background", self.view.name) % 2**32)

    def query(self, vector: torch.Tensor) -> Float[ndarray, " d"]:
        """A query in the same frame as the records."""
        raw = vector.detach().float().numpy()
        return unit(raw if self._centre is None else raw - self._centre)

    def strength(self, cosine: float) -> float:
        """Deviations of a cosine above that of two random records."""
        return (cosine - self.mean) / self.deviation

    def _save(self) -> None:
        if self._folder is None:
            return
        ids = list(self._raw)
        x = np.stack([self._raw[id] for id in ids]) if ids else np.zeros((0, 0), np.float32)
        digest = hashlib.sha256(x.tobytes()).hexdigest()
        name = f"{self.view.name}-{digest[:12]}.safetensors"
        about: dict[str, Any] = {
            "format": FORMAT,
            "about": self.view.about,
            "file": name,
            "digest": digest,
            "ids": ids,
            "keys": self._keys,
        }
        if isinstance(self.view, WeightsView):
            about["scales"] = self.view.scales
        with disk_errors(str(self._folder)):
            self._folder.mkdir(parents=True, exist_ok=True)
            side = self._folder / f"{name}.partial"
            safefile.save(side, {"vectors": torch.from_numpy(x)})
            side.replace(self._folder / name)
            side = self._folder / f"{self.view.name}.json.partial"
            side.write_text(json.dumps(about), encoding="utf-8")
            side.replace(self._folder / f"{self.view.name}.json")
            for path in self._folder.glob(f"{self.view.name}-*.safetensors"):
                if path.name != name:
                    path.unlink(missing_ok=True)
