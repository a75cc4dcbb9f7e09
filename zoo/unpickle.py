"""Opening PyTorch checkpoints in a child process with limits; see ``zoo._unpickle`` for what runs there.

A process takes a second or two to start. Inside ``with shared():`` one process reads all files that this thread asks
for; it is replaced when it dies, takes too long or has grown. Outside each file gets a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import safefile, scratch
from zoo.errors import BadArtefact, WeightgenError

if TYPE_CHECKING:
    from torch import Tensor

SPARE_BYTES = 512 << 20
SECONDS = 120
START_SECONDS = 120


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """One child process for all checkpoints that are read inside the block."""
    with Worker() as worker:
        token = _SHARED.set(worker)
        try:
            yield
        finally:
            _SHARED.reset(token)


def read(path: Path) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Read the tensors of a checkpoint.

    Args:
        path: an existing file.

    Returns:
        Tensors by name in the order of the file, the keys that were taken off around them (``state_dict`` ...), and
        the entries that were left aside because they are not weights.

    Raises:
        BadArtefact: if it holds anything but plain tensors and containers, is damaged, or needs too much.
        WeightgenError: if no child process can be started.
    """
    worker = _SHARED.get()
    if worker is not None:
        return worker.read(path)
    with Worker() as own:
        return own.read(path)


class Worker:
    """A child process that is started when it is needed. Use it as a context manager, in one thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def read(self, path: Path) -> tuple[dict[str, Tensor], list[str], list[str]]:
        """As the function ``read`` of this module."""
        self._start()
        assert self._folder is not None
        target = Path(self._folder.name) / "converted.safetensors"
        size = path.stat().st_size
        request = {
            "source": str(path.resolve()),
            "target": str(target),
            "memory": 3 * size + SPARE_BYTES,
            "file_bytes": 4 * size + (64 << 20),
            "seconds": SECONDS + (size >> 24),
        }
        try:
            answer = self._ask(request, path)
            if "error" in answer:
                raise BadArtefact(
                    f"{path} cannot be read as plain weights: {answer['error']}", answer.get("remedy", "")
                )
            tensors, _ = safefile.load(target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        target.unlink()  # what is mapped into memory stays there
        return tensors, answer["unwrapped"], answer["aside"]

    def _ask(self, request: dict[str, Any], path: Path) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        seconds = START_SECONDS + 2 * request["seconds"]
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = self._line(seconds)
        except OSError:
            line = b""
        except BaseException:  # the answer to this request must not be taken for that to the next one
            self._stop()
            raise
        if line is None:
            self._stop()
            raise BadArtefact(f"{path} took more than {seconds} s to unpickle", "convert it yourself")
        try:
            answer = json.loads(line)
        except ValueError:
            return {"error": f"the reading process died ({self._last_words()})", "remedy": "convert it yourself"}
        if answer.pop("end", False):
            self._stop()
        return answer

    def _line(self, seconds: float) -> bytes | None:
        """One line from the process; empty if it died, ``None`` if it took longer than ``seconds``."""
        assert self._process is not None
        assert self._process.stdout is not None
        deadline, data = time.monotonic() + seconds, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not data.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                piece = os.read(self._process.stdout.fileno(), 1 << 16)
                if not piece:
                    return b""
                data += piece
        return data

    def _start(self) -> None:
        alive = self._process is not None and self._process.poll() is None
        if alive and self._owner == os.getpid():
            return
        if self._owner == os.getpid():
            self._stop()
        package = str(Path(__file__).resolve().parents[1])
        search = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self._owner = os.getpid()
        self._folder = scratch.folder()
        try:
            with (Path(self._folder.name) / "stderr").open("wb") as errors:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "zoo._unpickle"],
                    cwd=self._folder.name,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    bufsize=0,
                )
        except OSError as error:
            self._stop()
            raise WeightgenError(f"cannot start a child process to read checkpoints: {error}", "try again") from None

    def _last_words(self) -> str:
        assert self._process is not None
        assert self._folder is not None
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            code = None
        text = (Path(self._folder.name) / "stderr").read_text(errors="replace").strip()
        self._stop()
        return text.splitlines()[-1][:200] if text else f"exit code {code}"

    def _stop(self) -> None:
        if self._owner != os.getpid():
            return  # a forked copy: the process belongs to the parent
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            process.wait()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


_SHARED: ContextVar[Worker | None] = ContextVar("_SHARED", default=None)
