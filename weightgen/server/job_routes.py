"""What there is to know of jobs, what they wrote, and the forms in which a job is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from weightgen.server.answers import KINDS, Refused
from weightgen.server.record import DONE, Job
from weightgen.server.runner import Runner
from weightgen.server.stream import EVENTS, ZIP, events, files_below, zipped
from weightgen.server.views import PROBLEM, BriefView, JobView

LONGEST_WAIT = 3600.0
Wait = Annotated[
    float, Query(ge=0, le=LONGEST_WAIT, description="Seconds to wait for the end of the job before answering.")
]
SAFE = {"Content-Security-Policy": "sandbox; default-src 'none'"}
"""Files are data: a browser shall not run what is in them."""


async def answer(job: Job, accept: str, wait: float, runner: Runner) -> Response:
    """Answer the request that made a job, in the form that the client accepts.

    Args:
        job: just made.
        accept: the header.
        wait: seconds to wait for its end.
        runner: runs it.
    """
    place = {"Location": f"/v1/jobs/{job.id}"}
    if EVENTS in accept:
        return StreamingResponse(_followed(job, runner), media_type=EVENTS, headers=place)
    if ZIP in accept:
        wait = wait or LONGEST_WAIT
    if not await job.ended(wait):
        return JSONResponse(job.full(), 202, headers=place)
    if "error" in job.answer:
        kind = job.answer.get("kind", "")
        body = {"error": job.answer["error"], "remedy": job.answer.get("remedy", ""), "kind": kind, "job": job.id}
        return JSONResponse(body, KINDS.get(kind, 500), headers=place)
    if ZIP in accept and job.status == DONE:
        return _archive(job, runner)
    return JSONResponse(job.full(), 200, headers=place)


async def _followed(job: Job, runner: Runner) -> AsyncIterator[str]:
    """Events of a job that was made for this client: an answer that nobody reads any more is not decoded further."""
    try:
        async for event in events(job):
            yield event
    finally:
        if job.is_open and job.job == "decode":
            runner.cancel_soon(job)


def _archive(job: Job, runner: Runner) -> StreamingResponse:
    if job.out is None or not (path := runner.places.inside(job.out)).exists():
        raise Refused(404, f"the job {job.id} has written no files", "see its result")
    name = f"{job.job}-{job.id}.zip"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', **SAFE}
    return StreamingResponse(zipped(path), media_type=ZIP, headers=headers)


def add_job_routes(app: FastAPI, runner: Runner) -> None:
    """Add what there is below ``/v1/jobs``."""

    def find(id: str) -> Job:
        if id not in runner.jobs:
            raise Refused(404, f"there is no job {id!r}", "see GET /v1/jobs")
        return runner.jobs[id]

    options: dict[str, Any] = {"tags": ["progress"], "responses": PROBLEM}

    @app.get("/v1/jobs", response_model=list[BriefView], summary="All jobs, the newest first.", **options)
    async def list_jobs(limit: Annotated[int, Query(ge=1)] = 100) -> Response:
        return JSONResponse([job.brief() for job in [*runner.jobs.values()][: -limit - 1 : -1]])

    @app.get("/v1/jobs/{id}", response_model=JobView, summary="Status, progress and result of a job.", **options)
    async def show_job(id: str, wait: Wait = 0.0) -> Response:
        job = find(id)
        await job.ended(wait)
        return JSONResponse(job.full())

    @app.get("/v1/jobs/{id}/events", summary="What happens in a job, as server-sent events.", **options)
    async def job_events(id: str) -> Response:
        return StreamingResponse(events(find(id)), media_type=EVENTS)

    @app.delete("/v1/jobs/{id}", response_model=JobView, summary="Cancel a job, or delete it and its files.", **options)
    async def cancel_job(id: str, remove: bool = False) -> Response:
        job = find(id)
        await (runner.remove(job) if remove else runner.cancel(job))
        return JSONResponse(job.full())

    @app.post(
        "/v1/jobs/{id}/resume",
        response_model=JobView,
        status_code=202,
        summary="Go on with a job that was stopped or has failed.",
        **options,
    )
    async def resume_job(id: str) -> Response:
        job = find(id)
        await runner.resume(job)
        return JSONResponse(job.full(), 202)

    @app.get("/v1/jobs/{id}/files", response_model=list[dict[str, Any]], summary="Files a job has written.", **options)
    def list_files(id: str) -> Response:
        job = find(id)
        if job.out is None:
            return JSONResponse([])
        out = runner.places.inside(job.out)
        names = {path: path.name if path == out else path.relative_to(out).as_posix() for path in files_below(out)}
        return JSONResponse([{"name": name, "bytes": path.stat().st_size} for path, name in names.items()])

    @app.get("/v1/jobs/{id}/files.zip", summary="All files a job has written, as one archive.", **options)
    def download_files(id: str) -> Response:
        return _archive(find(id), runner)

    @app.get("/v1/jobs/{id}/files/{name:path}", summary="One file a job has written.", **options)
    def download_file(id: str, name: str) -> Response:
        job = find(id)
        out = runner.places.inside(job.out or job.folder.name)
        path = out if out.is_file() and out.name == name else runner.places.inside(f"{job.out}/{name}")
        if job.out is None or not path.is_relative_to(out) or not path.is_file():
            raise Refused(404, f"the job {id} has written no file {name!r}", f"see GET /v1/jobs/{id}/files")
        return FileResponse(path, filename=path.name, headers=SAFE)
