"""Folders for a while, such as that of an unpacked archive, and the removal of those whose process was killed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import tempfile
from pathlib import Path

from zoo.store import is_alive

_NAME = re.compile(r"weightgen-(?P<host>.*)-(?P<process>\d+)@\w+")


def folder() -> tempfile.TemporaryDirectory[str]:
    """A new temporary folder that is named after this process; use it as a context manager."""
    return tempfile.TemporaryDirectory(prefix=f"weightgen-{socket.gethostname()}-{os.getpid()}@")


def sweep() -> int:
    """Remove the folders that dead processes of this user on this machine left; returns how many there were."""
    removed = 0
    try:
        found = list(Path(tempfile.gettempdir()).glob("weightgen-*@*"))
    except OSError:
        return 0
    for path in found:
        name = _NAME.fullmatch(path.name)
        if name is None or name["host"] != socket.gethostname() or is_alive(int(name["process"])):
            continue
        try:
            status = path.lstat()
        except OSError:
            continue
        if stat.S_ISDIR(status.st_mode) and (os.name != "posix" or status.st_uid == os.getuid()):
            shutil.rmtree(path, ignore_errors=True)
            removed += not path.exists()
    return removed
