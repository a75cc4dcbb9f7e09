"""A zoo on disk: blobs of weights, a catalogue, and the data sets and tasks they were trained on.

    with Zoo.open("my-zoo", create=True) as zoo:
        record, new = zoo.add(weights, task="digits", lineage="digits/seed0")
        again = zoo.weights(record)

Every change is kept whole or not at all: blobs reach the disk first, then one transaction names them.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import scratch
from zoo.catalog import FILE, FILTERS, Catalog
from zoo.entry import Entry, check_entry, check_split
from zoo.errors import UsageError
from zoo.export import export_files
from zoo.new_folder import check_new
from zoo.query import MetricCondition
from zoo.stats import summarise
from zoo.store import BYTES, Store, disk_errors, hash_tensors, read_weights, record_id
from zoo.twins import Twin, all_twins, find_twin, sketch
from zoo.types import Record, Task, Weights
from zoo.verify import find_problems

if TYPE_CHECKING:
    from torch import Tensor


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class Zoo:
    """An open zoo; use ``Zoo.open``. Safe to share between threads, and other processes may use the same folder.

    Attributes:
        path: folder of the zoo.
    """

    def __init__(self, path: Path, catalog: Catalog) -> None:
        self.path = path
        self.store = Store(path)
        self._catalog = catalog

    @classmethod
    def open(cls, path: str | Path, *, create: bool = False) -> Zoo:
        """Open a zoo.

        Args:
            path: its folder.
            create: make it if it does not exist; the folder must be new or empty then.

        Raises:
            BadArtefact: if there is no zoo, or it is damaged, or made by a newer version.
            WeightgenError: if the disk refuses.
        """
        path = Path(path)
        if not (path / FILE).is_file():
            check_new(path, create)
            Store(path).create()
        return cls(path, Catalog(path / FILE, create=create))

    def close(self) -> None:
        """Close the catalogue; the zoo cannot be used afterwards."""
        self._catalog.close()

    def __enter__(self) -> Zoo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Zoo.open, (self.path,)

    def __len__(self) -> int:
        return self._catalog.count()

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records())

    def __repr__(self) -> str:
        return f"Zoo({str(self.path)!r})"

    # adding

    def add(
        self,
        weights: Weights,
        *,
        task: str | None = None,
        description: str | None = None,
        lineage: str | None = None,
        split: str | None = None,
        metrics: Mapping[str, float] | None = None,
        license: str | None = None,
        source: str | None = None,
        dataset: str | None = None,
        revision: str | None = None,
        extra_files: Mapping[str, bytes] | None = None,
    ) -> tuple[Record, bool]:
        """Add one network, head or adapter; arguments as in ``Entry``.

        Returns:
            The record and whether it is new; for a duplicate it is the record that was there.

        Raises:
            BadArtefact: if a value is NaN or infinite, or a tensor cannot be stored exactly.
            UsageError: if the split or the name of an extra file is wrong.
            WeightgenError: if the disk is full.
        """
        about = (task, description, lineage, split, metrics, license, source, dataset, revision)
        return self.add_many([Entry(weights, *about, extra_files or {})])[0]

    def add_many(self, entries: Iterable[Entry]) -> list[tuple[Record, bool]]:
        """Add several entries at once: all are added, or none if this raises or the process dies.

        Returns:
            As ``add``, one for each entry, in order. They are on the disk when this returns.

        Raises:
            BadArtefact, UsageError, WeightgenError: as ``add``.
        """
        entries = list(entries)
        for entry in entries:
            check_entry(entry)
        sketches = [sketch(entry.weights) for entry in entries]
        while True:
            with self.store.batch() as batch:
                blobs = [batch.put(entry.weights.tensors) for entry in entries]
                extras = [{n: batch.put_bytes(data) for n, data in e.extra_files.items()} for e in entries]
                batch.commit()
            created = _now()
            with contextlib.suppress(_Vanished), self._catalog.transaction():
                return [self._insert(*each, created) for each in zip(entries, blobs, extras, sketches, strict=True)]

    def _insert(
        self, entry: Entry, blob: str, extra: dict[str, str], found: tuple[str, float] | None, created: str
    ) -> tuple[Record, bool]:
        files = [self.store.path(blob), *(self.store.path(digest, BYTES) for digest in extra.values())]
        if not all(file.exists() for file in files):
            raise _Vanished  # another process removed the last entry that used it; write it again
        layout = entry.weights.layout
        about = (entry.task, entry.description, entry.lineage, entry.split, dict(entry.metrics or {}))
        key = record_id(blob, layout.fingerprint)
        record = Record(key, blob, layout, *about, entry.license, entry.source, entry.dataset, entry.revision)
        new = self._catalog.put_record(record, extra, created, found)
        return (record, True) if new else (self._catalog.find(key), False)

    def contains(self, weights: Weights) -> str | None:
        """Id of the record with exactly these weights, or ``None``; writes nothing."""
        key = record_id(hash_tensors(weights.tensors), weights.layout.fingerprint)
        with contextlib.suppress(UsageError):
            return self._catalog.find(key).id
        return None

    # reading

    def records(
        self,
        *,
        kind: str | None = None,
        base_model: str | None = None,
        task: str | None = None,
        split: str | None = None,
        lineage: str | None = None,
        license: str | None = None,
        dataset: str | None = None,
        metrics: Sequence[str] = (),
    ) -> list[Record]:
        """Records that have all the given values, ordered by lineage, then id.

        Args:
            kind, base_model, task, split, lineage, license, dataset: the value of that field.
            metrics: conditions such as ``"val_accuracy>=0.9"``, all of which must hold.

        Raises:
            UsageError: if a condition has another form.
        """
        values = (kind, base_model, task, split, lineage, license, dataset)
        conditions = [MetricCondition.parse(text) for text in metrics]
        return self._catalog.records(dict(zip(FILTERS, values, strict=True)), conditions)

    def twin(self, record: Record) -> Twin | None:
        """The first record before this one with the same tensors, or the same up to symmetry.

        Raises:
            BadArtefact: if weights that have to be compared are damaged.
        """
        return find_twin(self._catalog, self.store, record)

    def twins(self) -> list[Twin]:
        """Every record that equals one before it; errors as in ``twin``."""
        return list(all_twins(self._catalog, self.store))

    def get(self, id_or_prefix: str) -> Record:
        """The record with this id or unique beginning of an id.

        Raises:
            UsageError: if none or several match.
        """
        return self._catalog.find(id_or_prefix)

    def weights(self, record: Record, *, verify: bool = False) -> Weights:
        """Load the weights of a record; large blobs are mapped into memory.

        Args:
            record: a record of this zoo.
            verify: compute the hash of the blob first.

        Raises:
            BadArtefact: if the blob is missing or damaged.
        """
        return read_weights(self.store, record, verify=verify)

    def extra_files(self, record: Record) -> dict[str, bytes]:
        """The small files that came with a record, by file name.

        Raises:
            BadArtefact: if one is missing or damaged.
        """
        return {name: self.store.get_bytes(digest) for name, digest in self._catalog.extra(record.id).items()}

    def export(self, id_or_prefix: str, out: str | Path, *, force: bool = False) -> list[Path]:
        """Write the files of a record as its kind wrote them at the source, tensors bit for bit.

        Args:
            id_or_prefix: as in ``get``.
            out: new or empty folder; for a record of a single file also a path that ends in ``.safetensors``.
            force: write into a folder that is not empty, replacing files of the same names only.

        Returns:
            The paths written.

        Raises:
            UsageError: if ``out`` is in use, or the id is wrong.
            BadArtefact: if the stored files are damaged.
            WeightgenError: if the disk is full.
        """
        record = self.get(id_or_prefix)
        weights, extra = self.weights(record, verify=True), self.extra_files(record)
        return export_files(weights, extra, Path(out), force=force)

    # changing

    def remove(self, id_or_prefix: str) -> Record:
        """Remove a record, and its blobs unless something else uses them.

        Raises:
            UsageError: if the id is wrong.
        """
        record = self.get(id_or_prefix)
        extra = self._catalog.extra(record.id)
        with self._catalog.transaction():
            self._catalog.delete_record(record.id)
        with self._catalog.transaction():  # no other process can add an entry between the question and the deletion
            if record.blob not in self._catalog.blobs():
                self.store.delete(record.blob)
            for digest in set(extra.values()) - self._catalog.extra_blobs():
                self.store.delete(digest, BYTES)
        return record

    def set_splits(self, splits: Mapping[str, str | None]) -> None:
        """Assign records, by id, to splits in one transaction.

        Raises:
            UsageError: if a split or an id is unknown.
        """
        with self._catalog.transaction():
            for key, split in splits.items():
                check_split(split)
                record = replace(self._catalog.find(key), split=split)
                self._catalog.replace_record(record)

    def record_failure(self, lineage: str, reason: str) -> None:
        """Note that a member of the zoo could not be made, so that it is not forgotten."""
        self._catalog.put_failure(lineage, reason, _now())

    def failures(self) -> dict[str, str]:
        """Reason of every recorded failure, by lineage."""
        return self._catalog.failures()

    # data sets, tasks, notes

    def put_dataset(
        self, name: str, tensors: Mapping[str, Tensor], *, description: str, license: str | None = None
    ) -> None:
        """Store the data that networks were trained on.

        Args:
            name: unique name.
            tensors: arrays by name.
            description: one sentence.
            license: as stated by the source.

        Raises:
            UsageError: if other data have that name already.
            BadArtefact: if a tensor cannot be stored.
            WeightgenError: if the disk is full.
        """
        blob = self.store.put(tensors)
        known = self._catalog.datasets().get(name, blob)
        if known != blob:
            raise UsageError(f"data set {name!r} is stored already with other content", "choose another name")
        self._catalog.put_dataset(name, blob, description, license)

    def dataset(self, name: str) -> dict[str, Tensor]:
        """Arrays of a stored data set.

        Raises:
            UsageError: if there is none of that name.
            BadArtefact: if it is damaged.
        """
        known = self._catalog.datasets()
        if name not in known:
            raise UsageError(f"no data set is named {name!r}", f"known are {', '.join(known) or 'none'}")
        return self.store.get(known[name])

    def dataset_names(self) -> list[str]:
        """Names of the stored data sets, sorted."""
        return list(self._catalog.datasets())

    def put_tasks(self, tasks: Iterable[Task]) -> None:
        """Store tasks in one transaction; a task of the same name is replaced.

        Raises:
            UsageError: if a split is unknown.
        """
        with self._catalog.transaction():
            for task in tasks:
                check_split(task.split)
                self._catalog.put_task(task)

    def tasks(self, split: str | None = None) -> list[Task]:
        """Stored tasks, in the order they were added."""
        return self._catalog.tasks(split)

    def task(self, name: str) -> Task:
        """Task by name.

        Raises:
            UsageError: if there is none of that name.
        """
        tasks = {task.name: task for task in self.tasks()}
        if name not in tasks:
            raise UsageError(f"no task is named {name!r}", f"known are {', '.join(tasks) or 'none'}")
        return tasks[name]

    def put_meta(self, key: str, value: Any) -> None:
        """Keep a JSON value with the zoo, for example the recipe it was built from."""
        self._catalog.put_meta(key, value)

    def meta(self, key: str) -> Any:
        """Value kept under a key, or ``None``."""
        return self._catalog.meta(key)

    # the whole

    def stats(self, records: Sequence[Record] | None = None) -> dict[str, Any]:
        """Numbers of all or some records, for people to read; see ``zoo.stats.summarise``."""
        found = summarise(self.records() if records is None else records, self.store)
        stored = {"stored_tasks": len(self.tasks()), "datasets": len(self.dataset_names())}
        return {**found, **stored, "failures": len(self._catalog.failures())}

    def sweep(self) -> int:
        """Remove temporary files of processes that died; returns how many there were.

        Raises:
            WeightgenError: if the disk refuses.
        """
        orphans = self.store.orphans()
        with disk_errors(str(self.store.temporary)):
            for path in orphans:
                path.unlink(missing_ok=True)
        return len(orphans)

    def verify(self) -> list[str]:
        """Read everything again and say what is wrong: an empty list means that every byte is as it was written.

        Folders that killed collectors left in the temporary folder of the system are removed.
        """
        scratch.sweep()
        return find_problems(self._catalog, self.store)


class _Vanished(Exception):
    """A blob was removed between writing it and naming it."""
