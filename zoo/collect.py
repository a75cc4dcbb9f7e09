"""Taking in weights that exist already: files, adapter folders, archives, folders of them, repositories of the Hub."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo import kinds, scratch, unpickle
from zoo.entry import Entry
from zoo.errors import BadArtefact, UsageError, WeightgenError
from zoo.kinds import Found
from zoo.metadata_table import MetadataTable
from zoo.sidecar import About, merged, read_about
from zoo.sources import Item, files_of, find, is_archive, unpacked
from zoo.threads import torch_threads
from zoo.types import Record, Weights
from zoo.zoo import Zoo

BATCH_ENTRIES = 128
BATCH_BYTES = 64 << 20
BATCH_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Collected:
    """What became of one item.

    Attributes:
        path: the file or folder, or the source as given if it could not be reached; inside an archive or repository its
            name comes first.
        status: ``"added"``, ``"duplicate"`` or ``"refused"``.
        id: identifier of the record, ``None`` if refused.
        kind: kind of weights, ``None`` if not recognised.
        reason: why it was refused, what was left aside, or which record it is a twin of; ``None`` if there is nothing
            to say.
        files: names of its files, relative to the folder they are in; listed in a dry run.
        bytes: size of its files; counted in a dry run.
        parameters: number of weights; 0 if refused.
        code: exit code of the error that refused it, else 0.
    """

    path: str
    status: str
    id: str | None = None
    kind: str | None = None
    reason: str | None = None
    files: tuple[str, ...] = ()
    bytes: int = 0
    parameters: int = 0
    code: int = 0


def collect(
    sources: Sequence[str | Path],
    zoo: Zoo | Path | None,
    *,
    dry_run: bool = False,
    metadata: MetadataTable | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Collected]:
    """Read, check and store every set of weights that the sources hold.

    Items are committed in batches; when the work is interrupted, everything that was reported to ``on_progress`` is in
    the zoo, and running it again skips it as duplicates.

    Args:
        sources: files, adapter folders, archives, folders of these at any depth, or Hub ids such as
            ``org/name@revision``.
        zoo: where to put them; a folder that is new or empty becomes a zoo when the first weights are found to be good.
            It may be ``None`` in a dry run.
        dry_run: read and check everything, write nothing.
        metadata: statements that count more than those beside the weights.
        on_progress: called with the number of finished items and of all items known.

    Returns:
        One entry an item, in the order found. Items that cannot be taken say why; they stop nothing else.

    Raises:
        UsageError: if a path does not exist, there is no zoo to write to, or no row of ``metadata`` is about an item.
        BadArtefact: if a folder holds no weights, or ``zoo`` is a folder of something else.
        WeightgenError: if the disk is full.
    """
    if zoo is None and not dry_run:
        raise UsageError("there is no zoo to collect into", "open one with Zoo.open(path, create=True)")
    items = [item for source in sources for item in find(source)]
    if metadata is not None:
        _check_table(metadata, items)
    with torch_threads(1), _Run(zoo, dry_run, metadata, len(items), on_progress) as run, unpickle.shared():
        for item in items:
            run.take(item)
        run.commit()
    return [result for result in run.results if result is not None]


def _check_table(table: MetadataTable, items: Sequence[Item]) -> None:
    unknown = not any(is_archive(item) or table.about(item.path, item.name) for item in items)
    if unknown and len(table):
        raise UsageError(f"no row of {table.path} is about any of the {len(items)} items", "check its paths or names")


@dataclass(frozen=True, slots=True)
class _Waiting:
    position: int
    item: Item
    entry: Entry
    note: str | None


class _Run:
    """One collection: what was read and waits to be committed, and the results so far."""

    def __init__(
        self,
        zoo: Zoo | Path | None,
        dry_run: bool,
        table: MetadataTable | None,
        total: int,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self.results: list[Collected | None] = []
        self._zoo, self._dry_run, self._table, self._on_progress = zoo, dry_run, table, on_progress
        self._total = total
        self._batch: list[_Waiting] = []
        self._bytes, self._started = 0, time.monotonic()
        self._stack = contextlib.ExitStack()
        self._folders = contextlib.ExitStack()

    def __enter__(self) -> _Run:
        if isinstance(self._zoo, Path) and self._zoo.exists() and (not self._zoo.is_dir() or any(self._zoo.iterdir())):
            self._zoo = self._stack.enter_context(Zoo.open(self._zoo, create=not self._dry_run))
        self._sweep()
        return self

    def __exit__(self, *_: object) -> None:
        self._folders.close()
        self._stack.close()

    def _sweep(self) -> None:
        scratch.sweep()
        if isinstance(self._zoo, Zoo) and not self._dry_run:
            self._zoo.sweep()

    def take(self, item: Item) -> None:
        """Read one item, or all that an archive holds; commit when enough is waiting."""
        if is_archive(item):
            try:
                inner = unpacked(item, Path(self._folders.enter_context(scratch.folder())))
            except (WeightgenError, OSError) as error:
                self._refuse(item, error)
            else:
                self._total += len(inner) - 1
                for each in inner:
                    self._take_one(each)
        else:
            self._take_one(item)
        waited = time.monotonic() - self._started > BATCH_SECONDS
        if waited or len(self._batch) >= BATCH_ENTRIES or self._bytes > BATCH_BYTES:
            self.commit()

    def _take_one(self, item: Item) -> None:
        if item.refused:
            self.results.append(Collected(item.name, "refused", reason=item.refused, code=item.code))
            return
        kind = kinds.match(item.path)
        try:
            if kind is None:
                known = "see the documentation for known formats"
                raise BadArtefact(f"{item.path} is not a known kind of weights", known)
            found = kind.read(item.path, root=item.root)
            about = read_about(item.path)
        except (WeightgenError, OSError) as error:
            self._refuse(item, error, kind.name if kind else None)
            return
        stated = self._table.about(item.path, item.name) if self._table else None
        entry = _entry(item, found, about, stated or About())
        self._batch.append(_Waiting(len(self.results), item, entry, "; ".join(found.notes) or None))
        self.results.append(None)
        self._bytes += sum(tensor.nbytes for tensor in found.weights.tensors.values())

    def _refuse(self, item: Item, error: Exception, kind: str | None = None) -> None:
        code = error.exit_code if isinstance(error, WeightgenError) else BadArtefact.exit_code
        self.results.append(Collected(item.name, "refused", None, kind, str(error), code=code, **self._size(item)))

    def _size(self, item: Item) -> dict[str, Any]:
        if not self._dry_run:
            return {}
        files = files_of(item.path)
        folder = item.path if item.path.is_dir() else item.path.parent
        size = sum(file.stat().st_size for file in files if file.exists())
        return {"files": tuple(file.relative_to(folder).as_posix() for file in files), "bytes": size}

    def commit(self) -> None:
        """Add what is waiting to the zoo, all or nothing, and report it."""
        entries = [waiting.entry for waiting in self._batch]
        if entries and isinstance(self._zoo, Path) and not self._dry_run:
            self._zoo = self._stack.enter_context(Zoo.open(self._zoo, create=True))
        zoo = self._zoo if isinstance(self._zoo, Zoo) else None
        if self._dry_run or zoo is None:
            ids = [zoo.contains(entry.weights) if zoo else None for entry in entries]
            outcome = [(key, key is None, None) for key in ids]
        else:
            added = zoo.add_many(entries) if entries else []
            outcome = [(record.id, new, _twin(zoo, record) if new else None) for record, new in added]
        for waiting, (key, new, twin) in zip(self._batch, outcome, strict=True):
            layout = waiting.entry.weights.layout
            self.results[waiting.position] = Collected(
                waiting.item.name,
                "added" if new else "duplicate",
                key,
                layout.kind,
                "; ".join(filter(None, (waiting.note, twin))) or None,
                parameters=layout.numel,
                **self._size(waiting.item),
            )
        self._batch.clear()
        self._folders.close()
        self._bytes, self._started = 0, time.monotonic()
        if self._on_progress is not None:
            self._on_progress(len(self.results), self._total)


def _twin(zoo: Zoo, record: Record) -> str | None:
    try:
        twin = zoo.twin(record)
    except BadArtefact as error:  # what was added is sound, what it resembles is not
        return f"not compared with a possible twin: {error.cause}"
    return f"twin of {twin.of}: {twin.how}" if twin else None


def _entry(item: Item, found: Found, about: About, stated: About) -> Entry:
    """Put together what files, side-cars and the table say; the table counts most."""
    said = merged(stated, about)
    return Entry(
        _described(found.weights, said, stated.base_model),
        task=said.task,
        description=said.description,
        lineage=said.lineage,
        split=said.split,
        metrics=said.metrics,
        license=said.license,
        source=said.source or item.name,
        dataset=said.dataset,
        revision=said.revision,
        extra_files=found.extra_files,
    )


def _described(weights: Weights, about: About, base_model: str | None) -> Weights:
    """Put base model and architecture where the files themselves do not say them, or the table says otherwise."""
    layout = weights.layout
    base = base_model or layout.base_model or about.base_model
    if base != layout.base_model:
        layout = replace(layout, base_model=base)
    if layout.kind == "dense" and about.architecture is not None:
        layout = replace(layout, config={**layout.config, "architecture": dict(about.architecture)})
    return weights if layout is weights.layout else Weights(layout, weights.tensors)
