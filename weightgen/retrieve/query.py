"""What a user knows about the wanted weights, and what is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zoo.types import Record, Weights

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Query:
    """Any of these; parts that are not known stay empty.

    Attributes:
        description: the task in a sentence.
        labels: each label in words.
        texts: unlabelled example texts.
        examples: labelled examples of another form than text: inputs ``[n, ...]`` and labels ``[n]`` from 0.
        weights: weights that similar ones are wanted to.
        architecture: the wanted network in words.
    """

    description: str = ""
    labels: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    examples: tuple[Tensor, Tensor] | None = None
    weights: Weights | None = None
    architecture: str = ""

    def parts(self) -> list[str]:
        """Names of the parts that are known."""
        named = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return [
            name
            for name, part in named.items()
            if part is not None and not (isinstance(part, str | tuple) and len(part) == 0)
        ]


@dataclass(frozen=True)
class Filters:
    """What a record has to be before it is ranked; ``None`` asks for nothing.

    Attributes:
        kind, base_model, license, task, split: the value of that field of the record.
        without_tasks: tasks whose records are left out.
        without_ids: records that are left out.
    """

    kind: str | None = None
    base_model: str | None = None
    license: str | None = None
    task: str | None = None
    split: str | None = None
    without_tasks: frozenset[str] = frozenset()
    without_ids: frozenset[str] = frozenset()

    def pass_all(self) -> bool:
        """Whether nothing is asked for."""
        return self == Filters()

    def holds(self, record: Record) -> bool:
        """Whether a record passes."""
        layout = record.layout
        pairs = (
            (self.kind, layout.kind),
            (self.base_model, layout.base_model),
            (self.license, record.license),
            (self.task, record.task),
            (self.split, record.split),
        )
        wanted = all(given is None or given == has for given, has in pairs)
        return wanted and record.task not in self.without_tasks and record.id not in self.without_ids


@dataclass(frozen=True)
class Hit:
    """One record that was found.

    Attributes:
        record: from the catalogue.
        score: probability that it beats the base if calibrated, else the mean cosine.
        strength: what hits are ranked by: deviations above unrelated records, mean over the views.
        cosines: by view.
    """

    record: Record
    score: float
    strength: float
    cosines: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """Answer to a query.

    Attributes:
        hits: best first; none if the advice is to use the base.
        views: what was compared.
        calibrated: whether scores are probabilities.
        about_scores: what the scores are, in words, with the number of pairs behind them.
        min_score: score below which hits were dropped, or ``None``.
        considered: records that passed the filters.
        best_dropped: score of the best hit that was dropped, if any.
        notes: what else the reader should know.
    """

    hits: tuple[Hit, ...]
    views: tuple[str, ...]
    calibrated: bool
    about_scores: str
    min_score: float | None
    considered: int
    best_dropped: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def use_base(self) -> bool:
        """Whether nothing was found that is worth using."""
        return not self.hits
