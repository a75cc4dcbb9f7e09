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


@dataclass(frozen=True)
class TrainResult(JobResult):
    """What training did.

    Attributes:
        generator: folder of the trained generator.
        parameters: number of parameters of the whole generator.
        stages: seconds and validation accuracies of every stage, in order.
    """

    generator: Path
    parameters: int
    stages: Mapping[str, Mapping[str, Any]]

    def summary(self) -> str:
        lines = [f"{self.generator}: {self.parameters:,} parameters"]
        for name, stage in self.stages.items():
            lines.append(
                f"  {name}: {stage['seconds']:.0f} s, validation accuracy {100 * stage['val_accuracy']:.1f} % "
                f"({stage['judged_by']}), reconstructed networks {100 * stage['val_reconstruction_accuracy']:.1f} %"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class GenerateResult(JobResult):
    """Networks that were generated.

    Attributes:
        files: one safetensors file a network.
        given_accuracy: accuracy of each network on the given examples.
        seconds: time of sampling, without loading.
    """

    files: tuple[Path, ...]
    given_accuracy: tuple[float, ...]
    seconds: float

    def summary(self) -> str:
        return "\n".join(
            f"{path}: {100 * accuracy:.1f} % of the given examples"
            for path, accuracy in zip(self.files, self.given_accuracy, strict=True)
        )


@dataclass(frozen=True)
class EvaluateResult(JobResult):
    """The verdict card and where it was written.

    Attributes:
        card: rows, controls, novelty, verdict, cost; see ``weightgen.evaluation.verdict``.
        json_file: the card as JSON.
        picture: the card as a PNG.
    """

    card: Mapping[str, Any]
    json_file: Path
    picture: Path

    def to_json(self) -> Any:
        """The card itself."""
        return _plain(self.card)

    def summary(self) -> str:
        rows = sorted(self.card["rows"].values(), key=lambda row: -row["mean"])
        lines = [f"accuracy on {rows[0]['n_tasks']} held-out tasks, {rows[0]['seeds']} seeds, %", ""]
        for row in [*rows, *self.card["controls"].values()]:
            name = row["name"] if row["name"] in self.card["rows"] else f"control: {row['name']}"
            best = (
                f"   best of {row['best_of']['candidates']}: {100 * row['best_of']['mean']:.1f}"
                if "best_of" in row
                else ""
            )
            lines.append(f"  {name:20s} {100 * row['mean']:5.1f} ± {100 * row['std']:.1f}   {row['what']}{best}")
        return "\n".join([*lines, "", self.card["verdict"]["sentence"]])


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
