"""A CSV file that says what is known about weights: one row an item, found by its path or name."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from zoo.errors import UsageError
from zoo.sidecar import METRIC, About
from zoo.types import SPLITS

KEYS = ("path", "name")
TEXTS = (*("task", "description", "dataset", "base_model", "revision", "license", "lineage", "split", "source"),)
PREFIX = "metrics."
MAX_BYTES = 256 << 20


class MetadataTable:
    """What a table says; every cell that is empty says nothing.

    Args:
        path: CSV file in UTF-8 with a heading. ``path`` (relative to the file or to the working directory) or ``name``
            (file name with or without its ending, or folder name) says which item a row is about. Other columns are
            ``TEXTS``, and metrics as ``metrics.NAME`` or under a name with accuracy, loss, f1 or the like in it.

    Raises:
        UsageError: if the file cannot be read, has unknown columns, says two things of one item, or a value is wrong.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._rows: dict[str, About] = {}
        try:
            if self.path.stat().st_size > MAX_BYTES:
                raise UsageError(f"{path} is larger than {MAX_BYTES >> 20} MiB", "split it")
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, strict=True)
                self._columns = self._heading(next(reader, []))
                for cells in reader:
                    if cells:
                        self._add(cells, reader.line_num)
        except OSError as error:
            raise UsageError(f"cannot read {path} ({error.strerror})", "check the path") from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"{path} is not a CSV file in UTF-8: {error}", "save it as CSV") from None

    def __len__(self) -> int:
        return len(self._rows)

    def about(self, path: Path, name: str) -> About | None:
        """What the table says about an item, or ``None``.

        Args:
            path: where the item is.
            name: what it is called in results.
        """
        if self._key == "name":
            stem = path.name.partition(".")[0] if path.is_file() else path.name
            candidates = [path.name, path.stem if path.is_file() else path.name, stem]
        else:
            candidates = [name, str(path), str(path.absolute()), str(path.resolve())]
            for folder in (Path.cwd(), self.path.absolute().parent, self.path.resolve().parent):
                if Path(name).absolute().is_relative_to(folder):
                    candidates.append(Path(name).absolute().relative_to(folder).as_posix())
        return next((self._rows[key] for key in candidates if key in self._rows), None)

    def _heading(self, columns: list[str]) -> list[str]:
        columns = [column.strip() for column in columns]
        keys = [column for column in columns if column in KEYS]
        known = (*KEYS, *TEXTS)
        unknown = [c for c in columns if c not in known and not c.startswith(PREFIX) and not METRIC.search(c)]
        if unknown:
            listed = ", ".join(repr(column) for column in unknown)
            raise UsageError(
                f"{self.path} has unknown columns: {listed}", f"known are {', '.join(known)}, {PREFIX}NAME"
            )
        if len(keys) != 1:
            raise UsageError(f"{self.path} has {len(keys)} of the columns path and name", "give exactly one of them")
        if twice := [column for column in set(columns) if columns.count(column) > 1]:
            raise UsageError(f"{self.path} has the column {twice[0]!r} twice", "remove one of them")
        self._key = keys[0]
        return columns

    def _add(self, cells: list[str], line: int) -> None:
        where = f"{self.path}, line {line}"
        if len(cells) != len(self._columns):
            raise UsageError(f"{where} has {len(cells)} cells, the heading {len(self._columns)}", "mend the row")
        row = {column: cell.strip() for column, cell in zip(self._columns, cells, strict=True) if cell.strip()}
        key = row.pop(self._key, "")
        if not key:
            raise UsageError(f"{where} has no {self._key}", "say which item it is about")
        key = key.rstrip("/").removeprefix("./") or key
        if key in self._rows:
            raise UsageError(f"{where} is about {key!r}, as an earlier row is", "remove one of them")
        if row.get("split", "train") not in SPLITS:
            raise UsageError(f"{where} has the split {row['split']!r}", f"known are {', '.join(SPLITS)}")
        texts = {column: row[column] for column in TEXTS if column in row}
        numbers = {column: row[column] for column in row if column not in TEXTS}
        self._rows[key] = About(**texts, metrics=_numbers(numbers, where))  # pyright: ignore[reportArgumentType]


def _numbers(cells: Mapping[str, str], where: str) -> dict[str, float]:
    metrics = {}
    for column, cell in cells.items():
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UsageError(f"{where}: {column} is {cell!r}, not a number", "leave unknown cells empty")
        metrics[column.removeprefix(PREFIX)] = value
    return metrics
