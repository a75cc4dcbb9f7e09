"""Folders that Hugging Face ``datasets`` saves with ``save_to_disk``, read through pyarrow alone."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import BadArtefact, MissingExtra

INSTALL = "pip install 'weightgen[arrow]'"
SAVE_AGAIN = "save it again with Dataset.save_to_disk"


@dataclass(frozen=True)
class ArrowSplit:
    """One split of a saved data set.

    Attributes:
        columns: values by column name.
        names: class names of columns whose type states them.
        description: as stated; may be empty.
        license: as stated, or ``None``.
    """

    columns: Mapping[str, Sequence[Any]]
    names: Mapping[str, tuple[str, ...]]
    description: str
    license: str | None

    def column(self, wanted: Sequence[str], where: object) -> str:
        """The first of some column names that is there.

        Raises:
            BadArtefact: if none is.
        """
        for name in wanted:
            if name in self.columns:
                return name
        have = ", ".join(self.columns)
        raise BadArtefact(f"{where} has none of the columns {', '.join(wanted)}; it has {have}", "rename a column")


def is_arrow(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()


def read_arrow(path: Path) -> dict[str, ArrowSplit]:
    """Read all splits of a saved data set; a single ``Dataset`` is the split ``train``.

    Raises:
        MissingExtra: if pyarrow is not installed.
        BadArtefact: if a file is missing or damaged.
    """
    try:
        arrow = importlib.import_module("pyarrow")
    except ImportError:
        raise MissingExtra("reading a saved data set needs pyarrow", INSTALL) from None
    try:
        if not (path / "dataset_dict.json").is_file():
            return {"train": _read_split(arrow, path)}
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        return {name: _read_split(arrow, path / _plain(name)) for name in splits}
    except (OSError, ValueError, KeyError, TypeError, arrow.ArrowException) as error:
        raise BadArtefact(f"{path} is damaged ({error})", SAVE_AGAIN) from None


def _read_split(arrow: Any, folder: Path) -> ArrowSplit:
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    files = json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]
    tables = []
    for file in files:
        with arrow.memory_map(str(folder / _plain(file["filename"]))) as source:
            tables.append(arrow.ipc.open_stream(source).read_all())
    columns = arrow.concat_tables(tables).to_pydict()
    features = info.get("features") or {}
    names = {
        name: tuple(map(str, feature["names"]))
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
    return ArrowSplit(columns, names, str(info.get("description") or ""), info.get("license") or None)


def _plain(name: str) -> str:
    if Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no plain file name")
    return name
