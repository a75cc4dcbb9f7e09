"""What answers look like, for the documentation."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class ErrorView(BaseModel):
    """Why something was not done."""

    error: str = Field(description="the cause")
    remedy: str = Field(description="what can be done about it")
    kind: str = Field(description="UsageError, BadArtefact, MissingExtra, NetworkError, Refused, or Unexpected")
    value: Any = Field(None, description="the offending value, where it is not in the cause")
    job: str | None = Field(None, description="id of the job that failed")


class StageView(BaseModel):
    """How far one stage of a job is."""

    stage: str
    done: int
    total: int = Field(description="0 if it is not known")


class BriefView(BaseModel):
    """A job in a list."""

    id: str
    job: str = Field(description="function of weightgen.jobs")
    status: str = Field(description="queued, running, done, failed, cancelled or interrupted")
    created: float = Field(description="seconds since 1970")
    started: float | None
    finished: float | None
    progress: list[StageView]
    summary: str | None = Field(description="the result for people")
    error: str | None
    remedy: str | None
    out: str | None = Field(description="what it writes, as a path below the root; usable in other requests")


class JobView(BriefView):
    """Everything about a job."""

    request: dict[str, Any]
    text: str = Field(description="what was decoded so far")
    kind: str | None = Field(description="class of the error")
    exit_code: int | None = Field(description="what the command would have returned")
    result: Any = Field(description="what the command prints with --json")


PROBLEM: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorView, "description": "not done, and why"}}
