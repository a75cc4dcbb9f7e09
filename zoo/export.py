"""Writing stored weights back as files, whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from zoo import kinds
from zoo.errors import UsageError
from zoo.pretrained import CONFIG_FILE
from zoo.store import TENSORS, disk_errors, flush
from zoo.types import Weights


def export_files(weights: Weights, extra_files: Mapping[str, bytes], out: Path, *, force: bool = False) -> list[Path]:
    """Write weights as files of their kind.

    The files are written into a temporary folder beside ``out`` and moved when all of them are complete.

    Args:
        weights: what to write.
        extra_files: as ``Kind.read`` gave them.
        out: new or empty folder; for weights in a single file also a path that ends in ``.safetensors``, which takes
            the weights without the ``config.json`` beside them.
        force: write into a folder that is not empty, replacing files of the same names only.

    Returns:
        The paths written, sorted.

    Raises:
        UsageError: if ``out`` is in use.
        WeightgenError: if the disk does not take the files.
    """
    used = out.is_symlink() or (any(out.iterdir()) if out.is_dir() else out.exists())
    if used and not force:
        raise UsageError(f"{out} exists already", "choose a new folder or pass force (--force)")
    with disk_errors(str(out)):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as name:
            ready = Path(name) / "ready"
            ready.mkdir()
            kinds.get(weights.layout.kind).write(weights, ready, extra_files)
            files = sorted(ready.iterdir())
            if out.suffix == TENSORS and not out.is_dir():
                alone = [file for file in files if file.name != CONFIG_FILE]
                if len(alone) > 1:
                    raise UsageError(f"the record has {len(files)} files, {out} is one", "give a folder")
                alone[0].replace(out)
                written = [out]
            elif out.exists():
                if not out.is_dir():
                    raise UsageError(f"{out} is a file", "give a folder")
                written = [file.replace(out / file.name) for file in files]
            else:
                ready.rename(out)
                written = [out / file.name for file in files]
        flush(out.parent)
    return written
