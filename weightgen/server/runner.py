"""The queue: so many jobs at a time, each in a process of its own, all of it in one event loop."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import secrets
import shutil
import signal
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TextIO

from weightgen.server.answers import UNEXPECTED, Refused
from weightgen.server.child import CALL, RESULT, write_json
from weightgen.server.config import ServerConfig
from weightgen.server.paths import STATE, Places, confine
from weightgen.server.process import GRACE, Child
from weightgen.server.record import CANCELLED, DONE, FAILED, INTERRUPTED, QUEUED, RUNNING, Job
from weightgen.server.registry import BY_JOB, Endpoint
from weightgen.server.requests import callbacks_of, is_required
from zoo.errors import UsageError
from zoo.store import disk_errors

_log = logging.getLogger("uvicorn.error")


class Runner:
    """Runs jobs in the order they came.

    Args:
        config: of the server.

    Attributes:
        config: of the server.
        places: what requests may name.
        jobs: all that are known, by id, the oldest first.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.places = Places(config.root, config.allow_hub)
        self.jobs: dict[str, Job] = {}
        self._state = self.places.root / STATE
        self._waiting: asyncio.Queue[Job] = asyncio.Queue()
        self._children: dict[str, Child] = {}
        self._spare: Child | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._lock: TextIO | None = None

    async def start(self) -> None:
        """Read what an earlier server left, and start to work.

        Raises:
            UsageError: if another server works on the same root.
            WeightgenError: if the root cannot be written.
        """
        self.lock()
        self._recover()
        await self._keep_spare()
        self._workers = [asyncio.create_task(self._work()) for _ in range(self.config.workers)]

    def lock(self) -> None:
        """Claim the root; errors as in ``start``, which does it if it has not been done."""
        if self._lock is not None:
            return
        with disk_errors(str(self._state)):
            self.config.root.mkdir(exist_ok=True)
            self._state.mkdir(mode=0o700, exist_ok=True)
            lock = (self._state / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise UsageError(f"another server works on {self.places.root}", "stop it, or give another --root") from None
        self._lock = lock

    async def stop(self) -> None:
        """Stop all jobs as Ctrl-C does; they can be resumed by the next server."""
        self._closing = True
        for name in self._children:
            self.jobs[name].stop_as = INTERRUPTED
        await asyncio.gather(*(child.end() for child in self._children.values()))
        while self._children:  # the workers take note
            await asyncio.sleep(0.01)
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._spare is not None:
            await self._spare.end(0)
        if self._lock is not None:
            self._lock.close()

    def _recover(self) -> None:
        found = []
        for path in self._state.glob("*/job.json"):
            try:
                found.append(Job.load(path.parent))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                _log.warning("the record of the job %s is damaged (%s)", path.parent.name, error)
        for job in sorted(found, key=lambda job: job.created):
            self.jobs[job.id] = job
            answered = job.read_result()
            if job.status == RUNNING:
                job.become(INTERRUPTED if not answered else FAILED if "error" in job.answer else DONE)
            elif job.status == QUEUED:
                self._waiting.put_nowait(job)

    async def submit(self, endpoint: Endpoint, request: Mapping[str, Any]) -> Job:
        """Put a job into the queue.

        Args:
            endpoint: which.
            request: the fields that were given.

        Raises:
            Refused: if the queue is full, or the request names what it must not.
        """
        inline = {name: request[name] for name in endpoint.inline if request.get(name) is not None}
        if len(inline) + (request.get("data") is not None) > 1:
            raise Refused(422, f"{' and '.join([*inline, 'data'][:2])} are given", "give the data once")
        if endpoint.inline and not inline and is_required(endpoint.job, "data") and request.get("data") is None:
            raise Refused(422, "the field 'data' is missing", f"add it, or {' or '.join(endpoint.inline)}")
        folder = self._state / secrets.token_hex(6)
        try:
            job = await self._prepared(endpoint, request, inline, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.jobs[job.id] = job
        self._waiting.put_nowait(job)
        return job

    async def _prepared(
        self, endpoint: Endpoint, request: Mapping[str, Any], inline: Mapping[str, Any], folder: Path
    ) -> Job:
        """A job with its files."""
        arguments = await asyncio.to_thread(confine, endpoint, request, self.places, folder)
        self._check_queue()
        call = {"job": endpoint.job, "arguments": arguments, "inline": inline, "callbacks": callbacks_of(endpoint.job)}
        told = {key: f"({len(value)} sent)" if key in inline else value for key, value in request.items()}
        out = arguments.get(endpoint.out) if endpoint.out else None
        job = Job(folder.name, endpoint.job, folder, told, out=out)
        with disk_errors(str(folder)):
            folder.mkdir(mode=0o700, exist_ok=True)
            try:
                write_json(folder / CALL, call)
            except (ValueError, RecursionError):
                raise Refused(422, "a number of the request is not finite", "send numbers that JSON knows") from None
            job.save()
        return job

    def _check_queue(self) -> None:
        if self._closing:
            raise Refused(503, "the server is about to stop", "try again soon")
        if sum(job.status == QUEUED for job in self.jobs.values()) >= self.config.queue:
            raise Refused(429, f"{self.config.queue} jobs wait already", "try again later, or cancel one")

    async def resume(self, job: Job) -> None:
        """Run a job once more; what it had finished is not done again where the job keeps it.

        Raises:
            Refused: if it has not ended, or ended well, or its files are not what they were.
        """
        if job.job not in BY_JOB:
            raise Refused(409, f"this version knows no job {job.job!r}", "ask for something else")
        if job.is_open or job.status == DONE:
            raise Refused(409, f"the job {job.id} is {job.status}", "only what was stopped or failed can be resumed")
        self._check_queue()
        try:
            call = json.loads((job.folder / CALL).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise Refused(409, f"the files of the job {job.id} are damaged", "ask for it anew") from None
        call["arguments"] = await asyncio.to_thread(confine, BY_JOB[job.job], job.request, self.places, job.folder)
        if job.is_open:  # resumed by somebody else meanwhile
            return
        with disk_errors(str(job.folder)):
            write_json(job.folder / CALL, call)
            (job.folder / RESULT).unlink(missing_ok=True)
            job.answer, job.text = {}, ""
            job.become(QUEUED)
        self._waiting.put_nowait(job)

    async def cancel(self, job: Job) -> None:
        """Stop a job, and return when it has stopped.

        Raises:
            Refused: if it has ended already.
        """
        if not job.is_open:
            raise Refused(409, f"the job {job.id} is {job.status} already", "add ?remove=true to delete it")
        if job.status == QUEUED:
            job.become(CANCELLED)
            return
        job.stop_as = CANCELLED
        await self._children[job.id].end()
        await job.ended(GRACE)

    def cancel_soon(self, job: Job) -> None:
        """Stop a job without waiting for it."""
        self._soon(self.cancel(job))

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def remove(self, job: Job) -> None:
        """Forget a job, and delete what it wrote beside its record."""
        if job.is_open:
            await self.cancel(job)
        if self.jobs.pop(job.id, None) is None:
            return
        with disk_errors(str(job.folder)):
            await asyncio.to_thread(shutil.rmtree, job.folder)

    async def _keep_spare(self) -> None:
        if self.config.warm and self._spare is None and self._waiting.empty() and not self._closing:
            child = await self._child(warm=True)
            if self._spare is None and not self._closing:
                self._spare = child
            else:  # another worker was quicker
                await child.end(0)

    async def _child(self, warm: bool = False) -> Child:
        return await Child.start(self.places.root, warm=warm, offline=not self.config.allow_hub)

    async def _work(self) -> None:
        while True:
            job = await self._waiting.get()
            if self._closing:
                return
            if job.status != QUEUED:
                continue
            try:
                await self._run(job)
            except Exception as error:
                _log.exception("the job %s could not be run", job.id)
                job.answer = {"error": f"the job could not be run ({type(error).__name__})", "kind": UNEXPECTED}
                job.become(FAILED)
            await self._keep_spare()

    async def _run(self, job: Job) -> None:
        spare, self._spare = self._spare, None
        child = spare if spare is not None and spare.alive else await self._child()
        if job.status != QUEUED:  # cancelled meanwhile
            await child.end(0)
            return
        job.stop_as = None
        self._children[job.id] = child
        job.become(RUNNING)
        code = 0
        try:
            code = await child.run(job.folder, job.hear)
        finally:
            del self._children[job.id]
            keep = code is None and child.light and not BY_JOB[job.job].alone and self.config.warm
            unneeded: Child | None = child
            if keep and not self._closing:  # rather than a new one, which another worker may have started meanwhile
                unneeded, self._spare = self._spare, child
            if unneeded is not None:
                self._soon(unneeded.end(0))
        if job.read_result():
            job.become(FAILED if "error" in job.answer else DONE)
        elif job.stop_as is not None:
            job.become(job.stop_as)
        else:
            killed = code == -signal.SIGKILL
            how = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with the exit code {code or 0}"
            remedy = "memory may have run out" if killed else "the log beside the job may say why"
            job.answer = {"error": f"the process of the job was ended {how}", "remedy": remedy, "kind": UNEXPECTED}
            job.become(FAILED)
