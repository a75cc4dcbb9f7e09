"""One job as the server knows it, on disk and in memory."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightgen.server.child import RESULT, write_json

QUEUED, RUNNING, DONE, FAILED, CANCELLED, INTERRUPTED = (
    "queued",
    "running",
    "done",
    "failed",
    "cancelled",
    "interrupted",
)
OPEN = (QUEUED, RUNNING)
RECORD = "job.json"


async def happens(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event; false if it takes longer."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


@dataclass(eq=False)
class Job:
    """A job that was asked for.

    Attributes:
        id: names it, and its folder.
        job: name of the function.
        folder: of the job, with its record, its result, and what it writes unless told otherwise.
        request: the request as it came.
        created, started, finished: seconds since 1970.
        status: queued, running, done, failed, cancelled or interrupted.
        out: path below the root of what it writes, if it writes anything.
        stages: steps done and steps in all of each stage, in order.
        text: what was decoded so far.
        answer: result or error, once there is one.
        stop_as: what it becomes when its process ends without a result, if it was told to stop.
        changed: set at the next change.
    """

    id: str
    job: str
    folder: Path
    request: Mapping[str, Any]
    created: float = field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None
    status: str = QUEUED
    out: str | None = None
    stages: dict[str, tuple[int, int]] = field(default_factory=dict)
    text: str = ""
    answer: Mapping[str, Any] = field(default_factory=dict)
    stop_as: str | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_open(self) -> bool:
        """Whether there is more to come."""
        return self.status in OPEN

    def touch(self) -> None:
        """Wake everyone who waits for a change."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def ended(self, seconds: float) -> bool:
        """Wait until there is no more to come; false if it takes longer."""
        limit = time.monotonic() + seconds
        while self.is_open:
            left = limit - time.monotonic()
            if left <= 0 or not await happens(self.changed, left):
                return False
        return True

    def become(self, status: str) -> None:
        """Change the status, on disk first."""
        self.status = status
        if status == RUNNING:
            self.started, self.finished = time.time(), None
        elif status != QUEUED:
            self.finished = time.time()
        self.save()
        self.touch()

    def hear(self, said: Mapping[str, Any]) -> None:
        """Take in one step that the process of the job reports."""
        if "stage" in said:
            self.stages[said["stage"]] = (said["done"], said["total"])
        self.text += said.get("text", "")
        self.touch()

    def brief(self) -> dict[str, Any]:
        """What a list of jobs says of it."""
        return {
            "id": self.id,
            "job": self.job,
            "status": self.status,
            "created": self.created,
            "started": self.started,
            "finished": self.finished,
            "progress": [{"stage": name, "done": done, "total": total} for name, (done, total) in self.stages.items()],
            "summary": self.answer.get("summary"),
            "error": self.answer.get("error"),
            "remedy": self.answer.get("remedy"),
            "out": self.out,
        }

    def full(self) -> dict[str, Any]:
        """Everything a client may know."""
        answer = {key: self.answer.get(key) for key in ("kind", "exit_code", "result")}
        return {**self.brief(), "request": self.request, "text": self.text, **answer}

    def save(self) -> None:
        """Write the record; the result has a file of its own."""
        error = {key: self.answer[key] for key in ("error", "remedy", "kind") if key in self.answer}
        names = ("id", "job", "request", "created", "started", "finished", "status", "out", "stages")
        write_json(self.folder / RECORD, {**{name: getattr(self, name) for name in names}, "answer": error})

    def read_result(self) -> bool:
        """Take in what the process left; false if it left nothing."""
        try:
            self.answer = json.loads((self.folder / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return True

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Read a record that an earlier server left.

        Raises:
            OSError: if there is none.
            ValueError, KeyError, TypeError: if it is damaged.
        """
        known = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        stages = {str(name): (int(done), int(total)) for name, (done, total) in known.pop("stages").items()}
        return cls(folder=folder, stages=stages, **known)
