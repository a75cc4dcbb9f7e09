"""What jobs return: frozen, printable, and plain JSON for scripts. Those on zoos are in ``zoo_results``."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class JobResult(abc.ABC):
    """Result of one job. Its fields are what Python callers read; the command line prints one of the two forms."""

    @property
    def exit_code(self) -> int:
        """What the command returns: 0 unless the job finished and found something wrong."""
        return 0

    def to_json(self) -> Any:
        """JSON-serialisable form."""
        return plain(dataclasses.asdict(self))

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
            again = stage.get("val_reconstruction_accuracy")
            lines.append(
                f"  {name}: {stage['seconds']:.0f} s, validation accuracy {100 * stage['val_accuracy']:.1f} % "
                f"({stage['judged_by']})" + ("" if again is None else f", reconstructed networks {100 * again:.1f} %")
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class GenerateResult(JobResult):
    """Networks that were generated.

    Attributes:
        files: one safetensors file a network.
        given_accuracy: accuracy of each network on the given examples.
        seconds: time of sampling, without loading.
        curves: loss and accuracy on the given examples while fine-tuning, if that was asked for.
    """

    files: tuple[Path, ...]
    given_accuracy: tuple[float, ...]
    seconds: float
    curves: tuple[tuple[Mapping[str, float], ...], ...] = ()

    def summary(self) -> str:
        return "\n".join(
            f"{path}: {100 * accuracy:.1f} % of the given examples"
            for path, accuracy in zip(self.files, self.given_accuracy, strict=True)
        )


@dataclass(frozen=True)
class AdapterResult(JobResult):
    """Adapters that were generated.

    Attributes:
        folders: one folder an adapter, which PEFT loads.
        given: accuracy of the base and of the adapter on the labelled examples; ``None`` without such examples.
        curves: loss and accuracy on these examples while fine-tuning, if that was asked for.
        seconds: time of reading the task and writing the weights, without loading.
    """

    folders: tuple[Path, ...]
    given: tuple[Mapping[str, float] | None, ...]
    curves: tuple[Sequence[Mapping[str, float]], ...]
    seconds: float

    def summary(self) -> str:
        return "\n".join(_adapter_line(*pair) for pair in zip(self.folders, self.given, strict=True))


def _adapter_line(folder: Path, given: Mapping[str, float] | None) -> str:
    if given is None:
        return f"{folder}: loads with PEFT; not measured, there are no labelled examples"
    base, own = given["base_accuracy"], given["accuracy"]
    return f"{folder}: {100 * own:.1f} % of the labelled examples, the base {100 * base:.1f} %"


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
        return plain(self.card)

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


def plain(value: Any) -> Any:
    """Nested values as JSON has them: keys and paths as text, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
