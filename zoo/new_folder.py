"""Whether a folder may become a zoo."""

from __future__ import annotations

from pathlib import Path

from zoo.catalog import FILE
from zoo.errors import BadArtefact

MAKE_ONE = "make one with: weightgen zoo build or weightgen zoo collect"
OWN = {"blobs", "tmp", FILE, FILE + "-wal", FILE + "-shm", FILE + "-journal"}


def check_new(path: Path, create: bool) -> None:
    """Fail if a folder without a zoo cannot become one.

    Args:
        path: the folder.
        create: whether a zoo shall be made.

    Raises:
        BadArtefact: if none shall be made, or the folder holds something else.
    """
    if not create:
        what = "is empty" if path.is_dir() and not any(path.iterdir()) else "does not hold a zoo"
        raise BadArtefact(f"{path} {what if path.exists() else 'does not exist'}", MAKE_ONE)
    if path.exists() and not path.is_dir():
        raise BadArtefact(f"{path} is a file, not a folder", "choose another folder")
    if path.is_dir() and any(entry.name not in OWN for entry in path.iterdir()):
        raise BadArtefact(f"{path} holds other files and no zoo", "choose a new or empty folder")
