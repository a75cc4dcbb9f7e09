"""Answers that come bit by bit: events of a job, and the files of a folder as one zip archive."""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from weightgen.server.record import Job, happens

EVENTS, ZIP = "text/event-stream", "application/zip"
HEARTBEAT = 15.0
"""Seconds without an event after which a comment keeps the connection open."""
PIECE = 1 << 20


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


async def events(job: Job) -> AsyncIterator[str]:
    """Server-sent events of a job, from what is known now until it has ended.

    Args:
        job: which.

    Yields:
        ``status`` at each change, ``progress`` for each stage that moved, ``text`` for each piece that was decoded,
        and at the end ``done`` with everything about the job. Whoever comes late is told all of it once.
    """
    status, stages, length = "", dict[str, tuple[int, int]](), 0
    while True:
        changed = job.changed
        if job.status != status:
            status = job.status
            yield _event("status", {"id": job.id, "status": status})
        for name, (done, total) in list(job.stages.items()):
            if stages.get(name) != (done, total):
                stages[name] = (done, total)
                yield _event("progress", {"stage": name, "done": done, "total": total})
        if len(job.text) > length:
            piece, length = job.text[length:], len(job.text)
            yield _event("text", {"text": piece})
        if not job.is_open:
            yield _event("done", job.full())
            return
        if not await happens(changed, HEARTBEAT):
            yield ": still here\n\n"


class _Pipe(io.RawIOBase):
    """Keeps what is written until it is taken; ``zipfile`` writes to it without going back."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def files_below(folder: Path) -> list[Path]:
    """Regular files in a folder or a file itself, in order; links and unfinished files are left out."""
    if folder.is_file():
        return [folder]
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(place) / name for name in sorted(names) if not name.startswith("."))
        found += [path for path in paths if path.is_file() and not path.is_symlink()]
    return found


def zipped(folder: Path) -> Iterator[bytes]:
    """The files of a folder as a zip archive; weights hardly get smaller, so they are stored as they are.

    Args:
        folder: folder, or a single file.

    Yields:
        The archive, piece by piece.
    """
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:  # pyright: ignore[reportArgumentType]
        for path in files_below(folder):
            name = path.name if path == folder else path.relative_to(folder).as_posix()
            info = zipfile.ZipInfo(name, time.localtime(max(path.stat().st_mtime, 315532800 + 86400))[:6])
            info.external_attr = 0o644 << 16
            with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                while piece := source.read(PIECE):
                    target.write(piece)
                    yield pipe.take()
    yield pipe.take()
