"""The catalogue of a zoo: one SQLite file with a row for every record, layout, task, data set and failure.

Only ``zoo.zoo`` uses this module. It knows rows and transactions; it does not know blobs or kinds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import BadArtefact, UsageError, WeightgenError
from zoo.migrations import MIGRATIONS
from zoo.query import MetricCondition
from zoo.types import Layout, Record, Task

FILE = "catalog.sqlite"
BUSY_SECONDS = 60.0
FILTERS = ("kind", "base_model", "task", "split", "lineage", "license", "dataset")
RESTORE = "restore it from a copy, or collect the sources into a new zoo"
COLUMNS: dict[str, tuple[str, ...]] = {
    "layouts": ("fingerprint", "kind", "base_model", "body"),
    "records": (
        *("id", "blob", "layout", "kind", "base_model", "task", "description", "lineage", "split"),
        *("metrics", "license", "source", "extra", "created", "dataset", "revision", "twin_key", "twin_number"),
    ),
    "tasks": ("name", "description", "dataset", "classes", "class_names", "split"),
    "datasets": ("name", "blob", "description", "license"),
    "failures": ("lineage", "reason", "created"),
    "meta": ("key", "value"),
}

FIRST_COLUMNS = {"records": 14}  # columns of the first version, where later ones were added


def row_digest(table: str, values: tuple[Any, ...]) -> str:
    """Hash of a row, kept beside it; see ``zoo.migrations`` for columns that were added later."""
    while len(values) > FIRST_COLUMNS.get(table, len(values)) and values[-1] is None:
        values = values[:-1]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _insert(table: str, conflict: str) -> str:
    columns = (*COLUMNS[table], "digest")
    marks = ", ".join("?" * len(columns))
    key = columns[0]
    if conflict == "update":
        action = "UPDATE SET " + ", ".join(f"{c} = excluded.{c}" for c in columns[1:])
    else:
        action = "NOTHING"
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) ON CONFLICT({key}) DO {action}"


class Catalog:
    """An open catalogue file; safe to share between threads.

    Args:
        path: the SQLite file.
        create: make the file if it is missing.

    Raises:
        BadArtefact: if the file is missing, damaged, or of a newer version than this program.
        WeightgenError: if it stays locked or the disk is full.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._layouts: dict[str, Layout] = {}
        mode = "rwc" if create else "rw"
        with self._errors():
            self._db = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode={mode}",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the file; no method works afterwards."""
        self._db.close()

    def _prepare(self) -> None:
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        if self._version() > len(MIGRATIONS):
            raise BadArtefact(
                f"{self.path} has version {self._version()}, this program knows versions up to {len(MIGRATIONS)}",
                "install a newer weightgen",
            )
        if self._version() < len(MIGRATIONS):
            self._write_ahead()
            with self.transaction():
                for number in range(self._version(), len(MIGRATIONS)):
                    for statement in MIGRATIONS[number]:
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {number + 1}")

    def _write_ahead(self) -> None:
        """Choose the journal. SQLite does not wait here while another process opens the same new file."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _version(self) -> int:
        return self._db.execute("PRAGMA user_version").fetchone()[0]

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            text = str(error)
            if "locked" in text or "busy" in text:
                raise WeightgenError(f"{self.path} stayed locked for {BUSY_SECONDS:.0f} s", "try again") from error
            if "full" in text:
                raise WeightgenError(f"cannot write {self.path}: {text}", "free some space and run it again") from error
            raise BadArtefact(f"cannot use the catalogue {self.path}: {text}", RESTORE) from error
        except sqlite3.DatabaseError as error:
            raise BadArtefact(f"the catalogue {self.path} is damaged: {error}", RESTORE) from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes inside the block are kept together or not at all; other writers wait."""
        with self._lock, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _all(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._errors():
            return self._db.execute(query, values).fetchall()

    def _put(self, table: str, values: tuple[Any, ...], conflict: str = "update") -> bool:
        with self._lock, self._errors():
            done = self._db.execute(_insert(table, conflict), (*values, row_digest(table, values)))
            return done.rowcount > 0

    # records

    def put_record(
        self, record: Record, extra: Mapping[str, str], created: str, sketch: tuple[str, float] | None = None
    ) -> bool:
        """Add a record with its layout; returns whether it is new. Call it inside ``transaction``.

        A failure noted for its lineage is struck out: it could be made after all.

        Args:
            record: the record.
            extra: hash of every extra file, by file name.
            created: time in ISO 8601.
            sketch: see ``zoo.twins.sketch``.
        """
        layout = record.layout
        body = json.dumps(layout.to_json())
        self._put("layouts", (layout.fingerprint, layout.kind, layout.base_model, body), "ignore")
        values = self._values(record, json.dumps(dict(extra)), created, *(sketch or (None, None)))
        self._all("DELETE FROM failures WHERE lineage = ?", (record.lineage,))
        return self._put("records", values, "ignore")

    def _values(
        self, record: Record, extra: str, created: str, key: str | None, number: float | None
    ) -> tuple[Any, ...]:
        layout = record.layout
        return (
            *(record.id, record.blob, layout.fingerprint, layout.kind, layout.base_model, record.task),
            *(record.description, record.lineage, record.split, json.dumps(dict(record.metrics)), record.license),
            *(record.source, extra, created, record.dataset, record.revision, key, number),
        )

    def replace_record(self, record: Record) -> None:
        """Write what is known about a record again; its blob, layout and extra files stay. Inside ``transaction``."""
        query = "SELECT extra, created, twin_key, twin_number FROM records WHERE id = ?"
        self._put("records", self._values(record, *self._all(query, (record.id,))[0]))

    def layout(self, fingerprint: str) -> Layout:
        """Layout by fingerprint; equal layouts are one object.

        Raises:
            BadArtefact: if it is missing or damaged.
        """
        if fingerprint not in self._layouts:
            rows = self._all("SELECT body FROM layouts WHERE fingerprint = ?", (fingerprint,))
            try:
                layout = Layout.from_json(json.loads(rows[0][0]))
            except (IndexError, ValueError):
                raise BadArtefact(f"layout {fingerprint[:16]} of {self.path} is damaged", RESTORE) from None
            self._layouts[fingerprint] = layout
        return self._layouts[fingerprint]

    def _record(self, row: tuple[Any, ...]) -> Record:
        key, blob, layout, *about = row
        about[4] = self._metrics(row)
        return Record(key, blob, self.layout(layout), *about)

    def _metrics(self, row: tuple[Any, ...]) -> dict[str, float]:
        try:
            return json.loads(row[7])
        except ValueError:
            raise BadArtefact(f"record {row[0]} of {self.path} is damaged", RESTORE) from None

    _RECORD = (
        "SELECT id, blob, layout, task, description, lineage, split, metrics, license, source, dataset, revision "
        "FROM records"
    )

    def records(self, filters: Mapping[str, str | None], conditions: Sequence[MetricCondition] = ()) -> list[Record]:
        """Records whose columns equal the filters that are not ``None``, ordered by lineage, then id.

        Args:
            filters: value by column, for the columns ``FILTERS``.
            conditions: what their metrics have to pass as well.
        """
        given = {name: value for name, value in filters.items() if value is not None}
        if unknown := set(given) - set(FILTERS):
            raise UsageError(f"unknown filter {sorted(unknown)[0]!r}", f"known are {', '.join(FILTERS)}")
        where = " AND ".join(f"{name} = ?" for name in given)
        query = f"{self._RECORD} {'WHERE ' + where if where else ''} ORDER BY lineage, id"
        rows = self._all(query, tuple(given.values()))
        if conditions:
            rows = [row for row in rows if all(c.holds(self._metrics(row)) for c in conditions)]
        return [self._record(row) for row in rows]

    def in_order(self) -> list[Record]:
        """All records in the order they were added."""
        return [self._record(row) for row in self._all(f"{self._RECORD} ORDER BY rowid")]

    def sketch(self, record_id: str) -> tuple[str, float] | None:
        """Sketch that ``put_record`` was given."""
        rows = self._all("SELECT twin_key, twin_number FROM records WHERE id = ?", (record_id,))
        return (rows[0][0], rows[0][1]) if rows and rows[0][0] is not None else None

    def earlier(
        self, record_id: str, *, blob: str | None = None, key: str = "", between: tuple[float, float] = (0, 0)
    ) -> list[Record]:
        """Records added before one, oldest first, that have a blob, or a sketch with this key and a number between."""
        which, values = (
            ("blob = ?", (blob,)) if blob else ("twin_key = ? AND twin_number BETWEEN ? AND ?", (key, *between))
        )
        before = "rowid < (SELECT rowid FROM records WHERE id = ?)"
        rows = self._all(f"{self._RECORD} WHERE {which} AND {before} ORDER BY rowid", (*values, record_id))
        return [self._record(row) for row in rows]

    def find(self, prefix: str) -> Record:
        """The one record whose id starts with ``prefix``.

        Raises:
            UsageError: if there is none, or more than one.
        """
        upper = prefix + "\uffff"
        rows = self._all(f"{self._RECORD} WHERE id >= ? AND id < ? ORDER BY id LIMIT 3", (prefix, upper))
        if not rows or not prefix:
            raise UsageError(f"no record has the id {prefix!r}", "list the ids with: weightgen zoo ls")
        if len(rows) > 1 and rows[0][0] != prefix:
            raise UsageError(f"id {prefix!r} is ambiguous: {rows[0][0]}, {rows[1][0]}", "give more characters")
        return self._record(rows[0])

    def count(self) -> int:
        """Number of records."""
        return self._all("SELECT COUNT(*) FROM records")[0][0]

    def extra(self, record_id: str) -> dict[str, str]:
        """Hashes of the extra files of a record, by file name."""
        rows = self._all("SELECT extra FROM records WHERE id = ?", (record_id,))
        return json.loads(rows[0][0]) if rows else {}

    def delete_record(self, record_id: str) -> None:
        """Remove a record, and its layout if no other has it. Call it inside ``transaction``."""
        self._all("DELETE FROM records WHERE id = ?", (record_id,))
        self._all("DELETE FROM layouts WHERE fingerprint NOT IN (SELECT layout FROM records)")

    def blobs(self) -> set[str]:
        """Hashes of all tensor blobs in use by records and data sets."""
        return {row[0] for row in self._all("SELECT blob FROM records UNION SELECT blob FROM datasets")}

    def extra_blobs(self) -> set[str]:
        """Hashes of all extra files in use."""
        rows = self._all("SELECT DISTINCT extra FROM records")
        return {digest for row in rows for digest in json.loads(row[0]).values()}

    # tasks, data sets, failures, notes

    def put_task(self, task: Task) -> None:
        """Add a task, or replace the one of that name."""
        classes, names = json.dumps(task.classes), json.dumps(task.class_names)
        self._put("tasks", (task.name, task.description, task.dataset, classes, names, task.split))

    def tasks(self, split: str | None) -> list[Task]:
        """Tasks in the order they were added."""
        where, values = ("WHERE split = ?", (split,)) if split else ("", ())
        columns = ", ".join(COLUMNS["tasks"])
        rows = self._all(f"SELECT {columns} FROM tasks {where} ORDER BY rowid", values)
        return [Task(n, d, s, tuple(json.loads(c)), tuple(json.loads(cn)), sp) for n, d, s, c, cn, sp in rows]

    def put_dataset(self, name: str, blob: str, description: str, license: str | None) -> None:
        """Add a data set, or replace what is said about it."""
        self._put("datasets", (name, blob, description, license))

    def datasets(self) -> dict[str, str]:
        """Blob of each data set, by name."""
        return dict(self._all("SELECT name, blob FROM datasets ORDER BY name"))  # pyright: ignore[reportReturnType, reportArgumentType]

    def put_failure(self, lineage: str, reason: str, created: str) -> None:
        """Note that a member could not be made; a later note for the same lineage replaces it."""
        self._put("failures", (lineage, reason, created))

    def failures(self) -> dict[str, str]:
        """Reason by lineage."""
        return {row[0]: row[1] for row in self._all("SELECT lineage, reason FROM failures ORDER BY lineage")}

    def put_meta(self, key: str, value: Any) -> None:
        """Keep a JSON value under a key."""
        self._put("meta", (key, json.dumps(value)))

    def meta(self, key: str) -> Any:
        """Value kept under a key, or ``None``."""
        rows = self._all("SELECT value FROM meta WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else None

    # checks

    def damaged_rows(self) -> list[str]:
        """What is wrong inside the file: pages that SQLite finds broken and rows that do not match their digest."""
        try:
            broken = [row[0] for row in self._all("PRAGMA integrity_check") if row[0] != "ok"]
            if broken:
                return [f"catalogue: {text}" for text in broken]
            problems = []
            for table, columns in COLUMNS.items():
                rows = self._all(f"SELECT {', '.join(columns)}, digest FROM {table}")
                damaged = [row[0] for row in rows if row_digest(table, row[:-1]) != row[-1]]
                problems += [f"catalogue: row {key!r} of {table} is damaged" for key in damaged]
            return problems
        except (WeightgenError, TypeError) as error:
            return [f"catalogue: {error}"]
