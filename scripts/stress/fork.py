"""Running work in forked children that report through a pipe and may be killed."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Report = Callable[[Any], None]


@dataclass
class Child:
    """A forked process and what it reported so far."""

    process: int
    pipe: int
    data: bytes = b""
    status: int | None = None

    def wait(self, seconds: float, *, kill: bool = False) -> bool:
        """Read reports until the process ends; ``False`` if it ran longer than ``seconds``, and it is killed then."""
        deadline = time.monotonic() + seconds
        while True:
            ready, _, _ = select.select([self.pipe], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self.pipe, 1 << 16) if ready else b""
            if ready and not piece:
                break
            self.data += piece
            if not ready:
                os.kill(self.process, signal.SIGKILL)
                while piece := os.read(self.pipe, 1 << 16):
                    self.data += piece
                break
        os.close(self.pipe)
        self.status = os.waitpid(self.process, 0)[1]
        return bool(ready)

    @property
    def reports(self) -> list[Any]:
        """What it reported; an unfinished last line does not count."""
        return [json.loads(line) for line in self.data.split(b"\n")[:-1]]


def fork(work: Callable[[Report], None], *, memory: int | None = None, file_bytes: int | None = None) -> Child:
    """Start ``work`` in a child process.

    Args:
        work: is given a function that sends JSON to the parent.
        memory: limit of its address space in bytes.
        file_bytes: limit of each file it writes.
    """
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return Child(process, reading)
    code = 1
    try:
        os.close(reading)
        for which, amount in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, file_bytes)):
            if amount is not None:
                resource.setrlimit(which, (amount, resource.getrlimit(which)[1]))
        work(lambda value: _send(writing, value))
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _send(pipe: int, value: Any) -> None:
    data = json.dumps(value).encode() + b"\n"
    while data:
        data = data[os.write(pipe, data) :]
