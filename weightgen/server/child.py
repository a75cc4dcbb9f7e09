"""The process of a job. It is told a folder on stdin, runs the job that is written there, and waits for the next.

On stdout it says one JSON line for each step; the result is a file in the folder, written to the side and renamed.
When stdin closes, the server is done with it, or gone: a job that runs stops as after Ctrl-C.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

CALL, RESULT, LOG = "call.json", "result.json", "log.txt"
INTERRUPTED = 130
UNEXPECTED = "Unexpected"
GRACE = 10.0
"""Seconds in which a job without a server may stop by itself."""
RARELY = 0.1
"""Seconds between two reports on one stage."""
HEAVY = ("weightgen.generate.adapters", "weightgen.retrieve")


def main(arguments: list[str]) -> int:
    """Wait for jobs and run them, one after the other.

    Args:
        arguments: ``--warm`` to load libraries while waiting; the folder of the job if the trainer started this process
            as one of several.

    Returns:
        The exit code of the process.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored below a shell's background job
    says = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    if arguments and arguments[0] != "--warm":
        return run(Path(arguments[0]), says)
    told, busy = queue.SimpleQueue[str](), threading.Event()
    threading.Thread(target=_listen, args=(told, busy), daemon=True).start()
    try:
        for name in HEAVY if arguments else ():
            importlib.import_module(name)
        while folder := told.get():
            sys.argv[1:] = [folder]
            if code := run(Path(folder), says):
                return code
            busy.clear()
            says.write(json.dumps({"ended": True, "memory": _peak_memory()}) + "\n")
    except (KeyboardInterrupt, BrokenPipeError):
        return INTERRUPTED
    return 0


def _listen(told: queue.SimpleQueue[str], busy: threading.Event) -> None:
    """Hand on what stdin says; without a buffer, whose lock would be held when the process ends."""
    with os.fdopen(0, "rb", buffering=0, closefd=False) as orders:
        for line in orders:
            busy.set()
            told.put(line.decode().strip())
    told.put("")
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(GRACE)
        os.killpg(0, signal.SIGKILL)


def _peak_memory() -> float:
    """MiB that the process had at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / (1 << 20)


def run(folder: Path, says: TextIO) -> int:
    """Run the job that is written in a folder, and write its result there.

    Args:
        folder: of the job.
        says: takes one JSON line a step.

    Returns:
        0 if there is a result, good or bad, else the exit code after Ctrl-C.
    """
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    call = json.loads((folder / CALL).read_text(encoding="utf-8"))
    try:
        result = _result(call, folder, says)
    except KeyboardInterrupt:
        return INTERRUPTED
    if result is not None:
        write_json(folder / RESULT, _without(result, f"{Path.cwd()}/"))
    return 0


def _result(call: Mapping[str, Any], folder: Path, says: TextIO) -> dict[str, Any] | None:
    from weightgen import jobs
    from weightgen.console import finite
    from weightgen.processes import is_first
    from weightgen.server.inline import write_inline
    from zoo.errors import WeightgenError

    def say(**what: Any) -> None:
        try:
            if is_first():
                says.write(json.dumps(what) + "\n")
        except BrokenPipeError:  # the server is gone
            raise KeyboardInterrupt from None

    callbacks = {"progress": Steps(say), "on_text": lambda piece: say(text=piece)}
    job = getattr(jobs, call["job"])
    try:
        arguments = {**call["arguments"], **write_inline(call["inline"], folder)}
        done = job(**arguments, **{name: callbacks[name] for name in call["callbacks"]})
    except WeightgenError as error:
        found: dict[str, Any] = {"error": error.cause, "remedy": error.remedy, "kind": type(error).__name__}
    except Exception as error:
        traceback.print_exc()
        cause = f"the job stopped at an unexpected {type(error).__name__}"
        remedy = "this is a bug; the log beside the job has the details"
        found = {"error": cause, "remedy": remedy, "kind": UNEXPECTED}
    else:
        found = {"result": finite(done.to_json()), "summary": done.summary(), "exit_code": done.exit_code}
    return found if is_first() else None


class Steps:
    """Progress callback that reports a stage when it begins and ends, and now and then between."""

    def __init__(self, say: Any) -> None:
        self._say = say
        self._said: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage not in self._said or 0 < total <= done or now - self._said[stage] > RARELY:
            self._said[stage] = now
            self._say(stage=stage, done=done, total=total)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is complete or not there."""
    side = path.with_name(f".{path.name}.partial")
    with side.open("w", encoding="utf-8") as file:
        json.dump(content, file, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    side.replace(path)


def _without(value: Any, prefix: str) -> Any:
    """The same with paths relative to the root."""
    if isinstance(value, str):
        return value.replace(prefix, "")
    if isinstance(value, Mapping):
        return {key: _without(item, prefix) for key, item in value.items()}
    return [_without(item, prefix) for item in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
