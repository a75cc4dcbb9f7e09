"""The index of a zoo: several views, filters before ranking, calibrated scores, advice to use the base."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, final

import numpy as np

from weightgen.retrieve.calibration import Calibration, Pair, calibrate, load_pairs
from weightgen.retrieve.fuse import Asked, Ranked, rank
from weightgen.retrieve.latent import LatentView
from weightgen.retrieve.query import Filters, Found, Hit, Query
from weightgen.retrieve.stored import StoredView
from weightgen.retrieve.vectors import VectorConfig
from weightgen.retrieve.views import (
    ArchitectureView,
    ClassesView,
    DescriptionView,
    Encoder,
    ExamplesView,
    LabelsView,
    Tasks,
    TextsView,
    View,
    WeightsView,
)
from zoo.build.encoder import MINILM
from zoo.errors import UsageError
from zoo.zoo import Zoo

FOLDER = "retrieve"
PAIRS = "calibration.json"
EVEN = 0.5


def pairs_file(zoo: Path) -> Path:
    """Where the measured pairs of a zoo lie by default."""
    return zoo / FOLDER / PAIRS


def add_pairs(zoo: Path, source: Path) -> None:
    """Give a zoo pairs that were measured on such records elsewhere, unless it has some."""
    target = pairs_file(zoo)
    if source.is_file() and not target.exists():
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)


@final
class Index:
    """Searches the records of a zoo. Vectors of a view are made when a query first needs them, and kept.

    Attributes:
        zoo: the zoo.
        folder: where vectors are kept; ``None`` if the zoo cannot be written to.
        notes: what the reader should know about the index itself.
    """

    def __init__(
        self,
        zoo: Zoo,
        folder: Path | None,
        encoder: str = MINILM,
        generator: Path | str | None = None,
        config: VectorConfig | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Use ``Index.open``."""
        self.zoo, self.folder = zoo, folder
        self.encoder = Encoder(encoder)
        self._config = config or VectorConfig()
        self._report = progress or (lambda *_: None)
        texts = (DescriptionView, LabelsView, TextsView, ArchitectureView)
        views: list[View] = [view(self.encoder) for view in texts]
        views += [ExamplesView(), ClassesView(), WeightsView()]
        views += [] if generator is None else [LatentView(generator)]
        self.views = {view.name: view for view in views}
        self._stored: dict[str, StoredView] = {}
        self._fresh: set[str] = set()
        self.notes: list[str] = []
        self.refresh()

    @classmethod
    def open(
        cls,
        zoo: Zoo | Path | str,
        folder: Path | str | None = None,
        *,
        encoder: str = MINILM,
        generator: Path | str | None = None,
        config: VectorConfig | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Self:
        """Open the index of a zoo.

        Args:
            zoo: the zoo or its folder.
            folder: where vectors are kept; by default ``retrieve`` in the zoo, and nowhere if that is read-only.
            encoder: frozen text encoder, id on the Hub or folder.
            generator: folder of a trained generator over latents, whose shared space becomes a view.
            config: kinds of index by size.
            progress: told what is done.

        Raises:
            BadArtefact: if there is no zoo, or no generator.
            UsageError: if the generator has no shared space.
        """
        opened = zoo if isinstance(zoo, Zoo) else Zoo.open(zoo)
        where = None if folder is None else Path(folder)
        if where is None and os.access(opened.path, os.W_OK):
            where = opened.path / FOLDER
        return cls(opened, where, encoder, generator, config, progress)

    def close(self) -> None:
        """Close the zoo; the index cannot be used afterwards."""
        self.zoo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refresh(self) -> None:
        """Read the catalogue again; views are compared with it when they are next needed."""
        self.records = {record.id: record for record in self.zoo.records()}
        self._tasks = Tasks(self.zoo)
        self._fresh.clear()

    def rebuild(self) -> None:
        """Forget all vectors; they are made again when they are next needed."""
        for name in self.views:
            for path in () if self.folder is None else self.folder.glob(f"{name}*"):
                if path.name == f"{name}.json" or path.name.startswith(f"{name}-"):
                    path.unlink(missing_ok=True)
        self._stored.clear()
        self.refresh()

    def stored(self, name: str) -> StoredView:
        """The vectors of a view, up to date with the catalogue."""
        if name not in self._stored:
            self._stored[name] = StoredView(self.views[name], self.folder, self._config)
            if self._stored[name].damaged:
                self.notes.append(f"the stored view {name} did not fit and was made again")
        if name not in self._fresh:
            self._stored[name].refresh(self.zoo, self._tasks, list(self.records.values()), self._report)
            self._fresh.add(name)
        return self._stored[name]

    def asked(self, query: Query, filters: Filters) -> dict[str, Asked]:
        """The views that a query has something for, ready to be ranked.

        Texts are compared with descriptions where no record has texts of its own; that view is called ``texts`` too.
        """
        known = set(query.parts())
        crossed = known & {"texts", "description"} == {"texts"} and self.stored("texts").index is None
        result = {}
        for name, view in self.views.items():
            cross = crossed and name == "description"
            if not cross and not known & set(view.reads):
                continue
            stored = self.stored(name)
            if stored.index is None:
                continue
            vector = self.encoder.mean(query.texts) if cross else view.query(query)
            if vector is None:
                continue
            if vector.shape != (stored.index.size,):
                raise UsageError(
                    f"the query has {vector.shape[0]} values in the view {name}, the records {stored.index.size}",
                    "give the encoder that the index was made with, or --rebuild",
                )
            allowed = None
            if not filters.pass_all():
                passed = self._passed(filters)
                allowed = np.array([id in passed for id in stored.index.ids], bool)
            one = Asked(stored.index, stored.query(vector), stored.mean, stored.deviation, allowed)
            result["texts" if cross else name] = one
        return result

    def _passed(self, filters: Filters) -> set[str]:
        return {id for id, record in self.records.items() if filters.holds(record)}

    def rank(self, query: Query, filters: Filters | None = None, k: int = 5) -> list[Ranked]:
        """The best records without probabilities and without advice; empty if no view has anything to compare."""
        asked = self.asked(query, _of_one_kind(query, filters or Filters()))
        return rank(asked, k) if asked else []

    def pairs(self) -> list[Pair]:
        """Measured pairs of tasks and records; see ``weightgen.retrieve.measure``."""
        return [] if self.folder is None else load_pairs(self.folder / PAIRS, self.encoder.name)

    def search(
        self,
        query: Query | None = None,
        *,
        k: int = 5,
        min_score: float | None = None,
        filters: Filters | None = None,
        **about: Any,
    ) -> Found:
        """Find the best records for a task, or advise to use the base.

        Args:
            query: what is known; or give its fields as arguments, for example ``description="..."``.
            k: hits at most.
            min_score: score below which hits are dropped; by default 0.5 if scores are probabilities, else nothing is.
            filters: applied before anything is ranked.
            about: fields of ``Query``.

        Raises:
            UsageError: if nothing is known, or the zoo has nothing to compare it with.
            NetworkError: if texts are compared and the encoder is not on this machine.
        """
        query = dataclasses.replace(query or Query(), **about)
        if k < 1:
            raise UsageError(f"cannot find {k} hits", "ask for at least one")
        filters = _of_one_kind(query, filters or Filters())
        asked = self.asked(query, filters)
        if not asked:
            self._explain(query)
        views = tuple(asked)
        fitted = calibrate(self.pairs(), views)
        threshold = EVEN if min_score is None and isinstance(fitted, Calibration) else min_score
        considered = len(self.records) if filters.pass_all() else len(self._passed(filters))
        hits = [self._hit(one, views, fitted) for one in rank(asked, k)]
        hits.sort(key=lambda hit: -hit.strength)
        kept = tuple(hit for hit in hits if threshold is None or hit.score >= threshold)
        dropped = max((hit.score for hit in hits if hit not in kept), default=None)
        about_scores = (
            fitted.describe() if isinstance(fitted, Calibration) else f"mean cosine, not calibrated: {fitted}"
        )
        return Found(
            kept,
            views,
            isinstance(fitted, Calibration),
            about_scores,
            threshold,
            considered,
            dropped,
            tuple(self.notes),
        )

    def _hit(self, one: Ranked, views: Sequence[str], fitted: Calibration | str) -> Hit:
        score = sum(one.cosines.values()) / len(views)
        if isinstance(fitted, Calibration):
            score = fitted.probability(one.strength)
        return Hit(self.records[one.id], score, one.strength, one.cosines)

    def _explain(self, query: Query) -> None:
        if not query.parts():
            raise UsageError("nothing is known to search by", "give a description, data, weights or an architecture")
        if not self.records:
            raise UsageError(f"the zoo {self.zoo.path} is empty", "fill it with: weightgen zoo build or collect")
        raise UsageError(
            f"no record of {self.zoo.path} can be compared with what was given",
            "search by a description or by weights, or store the tasks and data sets with the zoo",
        )


def _of_one_kind(query: Query, filters: Filters) -> Filters:
    """Weights are compared with those of their own kind only."""
    if query.weights is None or filters.kind is not None:
        return filters
    return dataclasses.replace(filters, kind=query.weights.layout.kind)
