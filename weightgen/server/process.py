"""The process of a job: started, told what to do, listened to, and ended with everything that it started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import weightgen

GRACE = 5.0
"""Seconds that a job has to stop by itself after it was told to."""
LAST_WORDS = 1.0
MOST_KEPT = 1024.0
"""MiB; a process that needed more is not kept."""
LONGEST_LINE = 1 << 20
HIDDEN = ("WEIGHTGEN_TOKEN",)


class Child:
    """A process that waits for a job, in a session of its own so that a signal reaches all of its processes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._exit = asyncio.create_task(process.wait())
        self._memory = 0.0

    @classmethod
    async def start(cls, root: Path, *, warm: bool = False, offline: bool = True) -> Child:
        """Start a process.

        Args:
            root: its working folder.
            warm: load the libraries while it waits.
            offline: let nothing be fetched from the Hub.
        """
        environment = {name: value for name, value in os.environ.items() if name not in HIDDEN}
        # The root is the working folder, and modules must not be found there.
        places = [str(Path(weightgen.__file__).parent.parent), *(path for path in sys.path if Path(path).is_absolute())]
        environment |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(dict.fromkeys(places))}
        if offline:
            environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        return cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "weightgen.server.child", *(["--warm"] if warm else [])),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                cwd=root,
                env=environment,
                start_new_session=True,
                limit=LONGEST_LINE,
            )
        )

    @property
    def alive(self) -> bool:
        """Whether it can take a job."""
        return not self._exit.done()

    @property
    def light(self) -> bool:
        """Whether it is worth keeping for another job."""
        return self.alive and self._memory < MOST_KEPT

    async def run(self, folder: Path, hear: Callable[[Mapping[str, Any]], None]) -> int | None:
        """Run the job of a folder to its end.

        Args:
            folder: of the job.
            hear: called with every step.

        Returns:
            ``None`` if the job ended and the process waits for another one, else the exit code of the process;
            negative: the signal that ended it.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):  # the exit code says that it is gone
            self._process.stdin.write(f"{folder}\n".encode())
            await self._process.stdin.drain()
        listening = asyncio.create_task(self._listen(hear))
        await asyncio.wait({listening, self._exit}, return_when=asyncio.FIRST_COMPLETED)
        if listening.done() and listening.result():
            return None
        code = await self._exit
        await asyncio.wait({listening}, timeout=LAST_WORDS)
        listening.cancel()
        self._signal(signal.SIGKILL)
        return code

    async def _listen(self, hear: Callable[[Mapping[str, Any]], None]) -> bool:
        """Hand on what it says; true if it says that the job has ended."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            if "ended" in said:
                self._memory = said["memory"]
                return True
            hear(said)
        return False

    async def end(self, grace: float = GRACE) -> None:
        """Stop it as Ctrl-C does, and after a while without asking."""
        self._signal(signal.SIGINT)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._exit), grace)
        self._signal(signal.SIGKILL)
        await self._exit

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
