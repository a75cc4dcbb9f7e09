"""What the jobs on zoos return; see ``weightgen.results``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightgen.results import JobResult, plain
from zoo.errors import BadArtefact, NetworkError
from zoo.types import Record


@dataclass(frozen=True)
class CollectedSource:
    """What became of one source.

    Attributes:
        path: the source.
        status: ``"added"``, ``"duplicate"`` or ``"refused"``.
        id: identifier in the zoo, if it has one.
        kind: kind of weights, if it was recognised.
        reason: why it was refused, what was left aside, or which record it is a twin of.
        files: names of its files, relative to the folder they are in.
        bytes: size of its files.
        parameters: number of weights, 0 if refused.
        code: exit code of the error that refused it, else 0.
    """

    path: str
    status: str
    id: str | None
    kind: str | None
    reason: str | None
    files: tuple[str, ...] = ()
    bytes: int = 0
    parameters: int = 0
    code: int = 0


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
        """That of a bad artefact if any source was refused; that of the network if it was the only reason."""
        codes = {source.code for source in self.sources if source.status == "refused"}
        return NetworkError.exit_code if codes == {NetworkError.exit_code} else BadArtefact.exit_code if codes else 0

    def count(self, status: str) -> int:
        """Number of sources with one status."""
        return sum(source.status == status for source in self.sources)

    def to_json(self) -> list[dict[str, Any]]:
        """One entry a source: path, status, id, kind and reason; a dry run adds files, bytes and parameters."""
        left_out = {"code"} if self.dry_run else {"code", "files", "bytes", "parameters"}
        entries = (dataclasses.asdict(source) for source in self.sources)
        return [{key: value for key, value in entry.items() if key not in left_out} for entry in entries]

    def summary(self) -> str:
        counts = ", ".join(f"{self.count(status)} {status}" for status in ("added", "duplicate", "refused"))
        if not self.dry_run:
            return counts
        files = sum(len(source.files) for source in self.sources)
        size, weights = (sum(getattr(source, name) for source in self.sources) for name in ("bytes", "parameters"))
        return f"{counts}; {files} files, {size:,} bytes, {weights:,} weights (dry run: nothing was written)"


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
            "config": plain(layout.config),
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
        scored: number of networks whose likelihood was measured.
        outliers: one line for each of them that is far less likely than its like, the least likely first.
    """

    zoo: Path
    records: int
    problems: tuple[str, ...]
    scored: int = 0
    outliers: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """That of a bad artefact if there is any problem."""
        return BadArtefact.exit_code if self.problems else 0

    def to_json(self) -> dict[str, Any]:
        """The fields and ``ok``."""
        return {"ok": not self.problems, **super().to_json()}

    def summary(self) -> str:
        found = "all intact" if not self.problems else f"{len(self.problems)} problems"
        lines = [f"{self.zoo}: {self.records} records, {found}", *self.problems]
        if self.scored:
            lines += [f"{self.scored} scored, {len(self.outliers)} stand out", *self.outliers]
        return "\n".join(lines)


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


@dataclass(frozen=True)
class RemoveResult(JobResult):
    """A record that was taken out of a zoo.

    Attributes:
        record: the row as it was.
    """

    record: Record

    def to_json(self) -> dict[str, Any]:
        """What was known about it."""
        return describe(self.record)

    def summary(self) -> str:
        return f"removed {self.record.id} ({self.record.layout.kind}, {self.record.source or 'source not stated'})"


@dataclass(frozen=True)
class TwinRecord:
    """A record that another one makes superfluous.

    Attributes:
        id: the record.
        of: the first record with the same weights.
        how: whether the tensors are the same, or the function up to symmetry.
    """

    id: str
    of: str
    how: str


@dataclass(frozen=True)
class DedupeResult(JobResult):
    """Twins in a zoo.

    Attributes:
        twins: one entry for each record that equals one before it.
        applied: whether they were removed.
    """

    twins: tuple[TwinRecord, ...]
    applied: bool

    def summary(self) -> str:
        done = "removed" if self.applied else "found (nothing was removed: pass --apply)" if self.twins else "found"
        lines = [f"{twin.id} is a twin of {twin.of}: {twin.how}" for twin in self.twins]
        return "\n".join([*lines, f"{len(self.twins)} twins {done}"])


@dataclass(frozen=True)
class StatsResult(JobResult):
    """Numbers of a zoo, or of the records that pass the filters.

    Attributes:
        zoo: folder of the zoo.
        stats: see ``zoo.stats.summarise``.
    """

    zoo: Path
    stats: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The folder and every number."""
        return {"zoo": str(self.zoo), **plain(self.stats)}

    def summary(self) -> str:
        lines = [f"{self.zoo}: {self.stats['records']} records"]
        for name, value in self.stats.items():
            if isinstance(value, Mapping):
                lines.append(f"{name}: " + (", ".join(f"{key} {count}" for key, count in value.items()) or "none"))
            elif name != "records":
                lines.append(f"{name}: {value:,}")
        return "\n".join(lines)


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
        "dataset": record.dataset,
        "revision": record.revision,
    }
