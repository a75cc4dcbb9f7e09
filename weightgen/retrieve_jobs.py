"""The ``retrieve`` job: what is known about a task in, the records of a zoo most likely to help out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightgen.progress import Progress
from weightgen.results import JobResult

if TYPE_CHECKING:
    from weightgen.retrieve import Found, Query
    from zoo.types import Weights
    from zoo.zoo import Zoo

TEXTS = 64


@dataclass(frozen=True)
class RetrieveResult(JobResult):
    """What was found.

    Attributes:
        found: hits and what their scores are.
    """

    found: Found

    def to_json(self) -> dict[str, Any]:
        found = self.found
        hits = [
            {
                "id": hit.record.id,
                "score": hit.score,
                "strength": hit.strength,
                "cosines": dict(hit.cosines),
                "task": hit.record.task,
                "description": hit.record.description,
                "kind": hit.record.layout.kind,
                "base_model": hit.record.layout.base_model,
                "license": hit.record.license,
                "metrics": dict(hit.record.metrics),
            }
            for hit in found.hits
        ]
        return {
            "hits": hits,
            "use_base": found.use_base,
            "views": list(found.views),
            "calibrated": found.calibrated,
            "about_scores": found.about_scores,
            "min_score": found.min_score,
            "best_dropped": found.best_dropped,
            "considered": found.considered,
            "notes": list(found.notes),
        }

    def summary(self) -> str:
        found = self.found
        lines = [f"{found.considered} records compared by {', '.join(found.views)}; score: {found.about_scores}"]
        lines += [f"  {hit.score:6.3f}  {hit.record.id[:16]}  {hit.record.task or ''}" for hit in found.hits]
        if found.use_base and found.best_dropped is not None:
            lines.append(f"use the base: the best score is {found.best_dropped:.3f}, below {found.min_score:g}")
        elif found.use_base:
            lines.append("use the base: no record passes the filters")
        return "\n".join([*lines, *found.notes])


def retrieve(
    zoo: Path | str,
    *,
    description: str | None = None,
    labels: Sequence[str] = (),
    data: Path | str | None = None,
    task: Path | str | None = None,
    weights: Path | str | None = None,
    architecture: str | None = None,
    base: str | None = None,
    kind: str | None = None,
    license: str | None = None,
    split: str | None = None,
    k: int = 5,
    min_score: float | None = None,
    encoder: str | None = None,
    generator: Path | str | None = None,
    index: Path | str | None = None,
    factory: str | None = "Flat",
    calibrate: int = 0,
    calibrate_on: Sequence[Path | str] = (),
    rebuild: bool = False,
    progress: Progress | None = None,
) -> RetrieveResult:
    """Find the weights of a zoo that are most likely to help with a task, or advise to use the base.

    Args:
        zoo: folder of the zoo.
        description: the task in a sentence.
        labels: each label in words.
        data: unlabelled texts (a line each, or a task file), or labelled examples (``.npz`` with ``x`` and ``y``).
        task: file of a text task; its description, labels and 64 texts without labels are used.
        weights: weights that similar ones are wanted to: adapter folder, network file, or id in the zoo.
        architecture: the wanted network in words.
        base, kind, license, split: what a record has to be, before anything is ranked.
        k: hits at most.
        min_score: score below which hits are dropped; by default 0.5 if scores are calibrated.
        encoder: frozen text encoder; by default MiniLM.
        generator: folder of a trained generator whose shared space is used as well.
        index: where vectors are kept; by default in the zoo.
        factory: FAISS index; one query is answered fastest by comparing all. ``None`` chooses by size.
        calibrate: first measure this many records of other tasks on every stored task, once.
        calibrate_on: files and folders of text tasks to measure on in place of stored ones.
        rebuild: make all vectors again.
        progress: told what is done.

    Raises:
        UsageError: if nothing is known, or nothing can be compared.
        BadArtefact: if a file is missing or damaged.
        NetworkError: if the encoder is needed and not on this machine.
    """
    from weightgen.retrieve import Filters, Index, VectorConfig
    from weightgen.retrieve.measure import measure_pairs
    from zoo.build.encoder import MINILM
    from zoo.build.text_tasks import load_text_tasks
    from zoo.errors import UsageError
    from zoo.zoo import Zoo

    if calibrate < 0:
        raise UsageError(f"cannot measure {calibrate} records a task", "give 0 or more")
    if calibrate_on and not calibrate:
        raise UsageError("there are tasks to calibrate on, but no records a task", "add --calibrate 8, for example")
    given = load_text_tasks([str(path) for path in calibrate_on], 0.15, 0)
    with Zoo.open(Path(zoo)) as opened:
        query = _query(opened, description, labels, data, task, weights, architecture)
        config = VectorConfig(factory=factory)
        found = Index.open(
            opened, index, encoder=encoder or MINILM, generator=generator, config=config, progress=progress
        )
        if rebuild:
            found.rebuild()
        if calibrate:
            measure_pairs(found, per_task=calibrate, given=given, progress=progress)
        path = None if weights is None or Path(weights).exists() else str(weights)
        itself = frozenset[str]() if path is None else frozenset({opened.get(path).id})
        filters = Filters(kind, base, license, split=split, without_ids=itself)
        return RetrieveResult(found.search(query, k=k, min_score=min_score, filters=filters))


def _query(
    zoo: Zoo,
    description: str | None,
    labels: Sequence[str],
    data: Path | str | None,
    task: Path | str | None,
    weights: Path | str | None,
    architecture: str | None,
) -> Query:
    from weightgen.generate.examples import read_examples
    from weightgen.generate.task import given_task
    from weightgen.retrieve import Query

    data, task = None if data is None else Path(data), None if task is None else Path(task)
    examples, words = None, Query(description or "", tuple(labels))
    if data is not None and data.suffix == ".npz":
        examples, data = read_examples(data), None
    if data is not None or task is not None:
        given = given_task(description, labels, task, data, TEXTS if task and data is None else 0, 0, 0).text
        words = Query(given.description, given.labels, given.texts)
    model = None if weights is None else _weights(zoo, str(weights))
    return Query(words.description, words.labels, words.texts, examples, model, architecture or "")


def _weights(zoo: Zoo, name: str) -> Weights:
    from weightgen.compose import load

    return load(name) if Path(name).exists() else zoo.weights(zoo.get(name))
