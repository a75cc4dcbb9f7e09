"""What the jobs on zoos return: frozen, printable, and plain JSON for scripts."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import BadArtefact
from zoo.types import Record


@dataclass(frozen=True)
class JobResult(abc.ABC):
    """Result of one job. Its fields are what Python callers read; the command line prints one of the two forms."""

    @property
    def exit_code(self) -> int:
        """What the command returns: 0 unless the job finished and found something wrong."""
        return 0

    def to_json(self) -> Any:
        """JSON-serialisable form."""
        return _plain(dataclasses.asdict(self))

    @abc.abstractmethod
    def summary(self) -> str:
        """One or more lines for people."""


@dataclass(frozen=True)
class BuildResult(JobResult):
    """What building a zoo did.

    Attributes:
        zoo: folder of the zoo.
        added: networks trained and stored by this run.
        skipped: networks that were there already.
        failed: networks whose training failed.
        total: networks that the zoo holds now.
        seconds: wall time.
    """

    zoo: Path
    added: int
    skipped: int
    failed: int
    total: int
    seconds: float

    def summary(self) -> str:
        return (
            f"{self.zoo}: {self.added} networks added, {self.skipped} were there, {self.failed} failed, "
            f"{self.total} in the zoo, {self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class CollectedSource:
    """What became of one source.

    Attributes:
        path: the source.
        status: ``"added"``, ``"duplicate"`` or ``"refused"``.
        id: identifier in the zoo, if it has one.
        kind: kind of weights, if it was recognised.
        reason: why it was refused, or what was left aside.
    """

    path: str
    status: str
    id: str | None
    kind: str | None
    reason: str | None


@dataclass(frozen=True)
class CollectResult(JobResult):
    """What became of each source of a collection, in order.

    Attributes:
        sources: one entry a source.
        dry_run: whether the zoo was left as it was.
    """

    sources: tuple[CollectedSource, ...]
    dry_run: bool

    @property
    def exit_code(self) -> int:
        """That of a bad artefact if any source was refused."""
        return BadArtefact.exit_code if self.count("refused") else 0

    def count(self, status: str) -> int:
        """Number of sources with one status."""
        return sum(source.status == status for source in self.sources)

    def to_json(self) -> list[dict[str, Any]]:
        """One entry a source."""
        return [dataclasses.asdict(source) for source in self.sources]

    def summary(self) -> str:
        counts = ", ".join(f"{self.count(status)} {status}" for status in ("added", "duplicate", "refused"))
        return f"{counts} (dry run: nothing was written)" if self.dry_run else counts


@dataclass(frozen=True)
class ListResult(JobResult):
    """The rows of a catalogue that pass the filters.

    Attributes:
        records: the rows.
    """

    records: tuple[Record, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """One entry a record, without the tensors of its layout."""
        return [describe(record) for record in self.records]

    def summary(self) -> str:
        return f"{len(self.records)} records"


@dataclass(frozen=True)
class ShowResult(JobResult):
    """One row of a catalogue in full.

    Attributes:
        record: the row.
    """

    record: Record

    def to_json(self) -> dict[str, Any]:
        """The record with blob, layout configuration and tensors."""
        layout = self.record.layout
        return {
            **describe(self.record),
            "blob": self.record.blob,
            "fingerprint": layout.fingerprint,
            "config": _plain(layout.config),
            "tensors": [
                {"name": s.name, "shape": list(s.shape), "dtype": s.dtype, "layer": s.layer, "role": s.role}
                for s in layout.tensors
            ],
        }

    def summary(self) -> str:
        return f"{self.record.id}: {self.record.layout.kind}, {self.record.layout.numel:,} weights"


@dataclass(frozen=True)
class VerifyResult(JobResult):
    """Whether everything a zoo holds is intact.

    Attributes:
        zoo: folder of the zoo.
        records: number of rows checked.
        problems: one sentence for each thing that is damaged or missing.
    """

    zoo: Path
    records: int
    problems: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """That of a bad artefact if there is any problem."""
        return BadArtefact.exit_code if self.problems else 0

    def to_json(self) -> dict[str, Any]:
        """The fields and ``ok``."""
        return {"ok": not self.problems, **super().to_json()}

    def summary(self) -> str:
        found = "all intact" if not self.problems else f"{len(self.problems)} problems"
        return "\n".join([f"{self.zoo}: {self.records} records, {found}", *self.problems])


@dataclass(frozen=True)
class ExportResult(JobResult):
    """Files that an export wrote.

    Attributes:
        id: identifier of the exported record.
        files: the files, as they were at the source.
    """

    id: str
    files: tuple[Path, ...]

    def summary(self) -> str:
        return "\n".join(str(path) for path in self.files)


def describe(record: Record) -> dict[str, Any]:
    """Metadata of a record as JSON; what is not known is null.

    Args:
        record: a row of the catalogue.

    Returns:
        Identifier, kind, base model, size and everything that is known about its origin.
    """
    return {
        "id": record.id,
        "kind": record.layout.kind,
        "base_model": record.layout.base_model,
        "weights": record.layout.numel,
        "task": record.task,
        "split": record.split,
        "description": record.description,
        "lineage": record.lineage,
        "metrics": dict(record.metrics),
        "license": record.license,
        "source": record.source,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
