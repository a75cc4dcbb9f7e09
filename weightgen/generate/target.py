"""The folder that generated weights are written to: complete or not there, and never in place of something else."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from zoo.errors import UsageError

RECEIPT = "weightgen.json"


def check_target(out: Path) -> None:
    """Fail if a folder is in use by anything but an earlier generation.

    Raises:
        UsageError: if it is a file, or holds anything else.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", "give a folder")
    if out.is_dir() and any(out.iterdir()) and not _is_generation(out):
        raise UsageError(f"{out} is not empty and holds no earlier generation", "give a new or empty folder")


def _is_generation(folder: Path) -> bool:
    """Whether a folder holds the files of one earlier generation, all of them, and nothing else."""
    try:
        listed = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))["generated"]["files"]
        return {path.name for path in folder.iterdir()} <= {RECEIPT, *listed}
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextlib.contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """A new folder to write to; it takes the place of ``out`` when the ``with`` block ends well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        side = Path(scratch) / "new"
        side.mkdir()
        yield side
        if out.exists():
            shutil.rmtree(out)
        side.rename(out)
