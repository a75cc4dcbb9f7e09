"""The FastAPI application: one POST for each job, and what there is to know and fetch about jobs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from weightgen import __version__, jobs
from weightgen.console import finite
from weightgen.server.answers import UNEXPECTED, Refused, error_json, invalid, status_of
from weightgen.server.config import ServerConfig
from weightgen.server.files import add_file_routes
from weightgen.server.guard import Guard
from weightgen.server.job_routes import Wait, add_job_routes, answer
from weightgen.server.page import add_page
from weightgen.server.paths import confine
from weightgen.server.registry import ENDPOINTS, Endpoint
from weightgen.server.requests import first_sentence, request_model
from weightgen.server.runner import Runner
from weightgen.server.views import PROBLEM, JobView
from zoo.errors import WeightgenError

ABOUT = """Every job of `weightgen.jobs` is one POST; arguments are those of Python and of the command line.

A POST answers 202 with a job. `?wait=SECONDS` waits for its end and answers with the result, `Accept:
text/event-stream` streams what happens, `Accept: application/zip` waits and answers with the files that were written.
Paths are relative to the root of the server."""


def create_app(config: ServerConfig) -> FastAPI:
    """The server as an ASGI application.

    Args:
        config: its settings.

    Returns:
        The application; its runner is ``app.state.runner``.
    """
    runner = Runner(config)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await runner.start()
        yield
        await runner.stop()

    app = FastAPI(
        title="weightgen",
        version=__version__,
        description=ABOUT,
        docs_url=None,  # its page loads scripts from elsewhere; ours lists the same at /
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.runner = runner
    app.add_middleware(Guard, config=config)
    _add_errors(app)
    for endpoint in ENDPOINTS:
        _add_endpoint(app, endpoint, runner)
    add_job_routes(app, runner)
    add_file_routes(app, runner)
    add_page(app, config)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(WeightgenError)
    async def expected(_: Request, error: WeightgenError) -> JSONResponse:
        return JSONResponse(error_json(error), status_of(error))

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        endpoint = next((e for e in ENDPOINTS if f"/v1{e.route}" == request.url.path), None)
        refused = invalid(error.errors(), request_model(endpoint).model_fields if endpoint else ())
        return JSONResponse(error_json(refused), refused.status)

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> JSONResponse:
        cause = f"{request.method} {request.url.path}: {str(error.detail).lower()}"
        refused = Refused(error.status_code, cause, "see /openapi.json for what there is")
        return JSONResponse(error_json(refused), refused.status, headers=error.headers)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        cause = f"the server met an unexpected {type(error).__name__}"
        body = {"error": cause, "remedy": "this is a bug; its log has the details", "kind": UNEXPECTED}
        return JSONResponse(body, 500)


def _add_endpoint(app: FastAPI, endpoint: Endpoint, runner: Runner) -> None:
    """Offer one job; the model of the request is made from its signature."""
    model, function = request_model(endpoint), getattr(jobs, endpoint.job)

    async def run_quick(body: Any) -> Response:
        request = body.model_dump(exclude_unset=True)
        return JSONResponse(await asyncio.to_thread(_answer_quick, endpoint, request, runner))

    async def run_job(body: Any, request: Request, wait: Wait = 0.0) -> Response:
        job = await runner.submit(endpoint, body.model_dump(exclude_unset=True))
        return await answer(job, request.headers.get("accept", ""), wait, runner)

    handler = run_quick if endpoint.quick else run_job
    handler.__annotations__ = {**handler.__annotations__, "body": model}
    responses = PROBLEM if endpoint.quick else {200: {"model": JobView, "description": "the job has ended"}, **PROBLEM}
    app.add_api_route(
        f"/v1{endpoint.route}",
        handler,
        methods=["POST"],
        operation_id=endpoint.job,
        summary=first_sentence(function),
        description="Answered at once." if endpoint.quick else "Runs as a job.",
        tags=[endpoint.tag],
        status_code=200 if endpoint.quick else 202,
        response_model=None if endpoint.quick else JobView,
        responses=responses,
    )


def _answer_quick(endpoint: Endpoint, request: dict[str, Any], runner: Runner) -> Any:
    arguments = confine(endpoint, request, runner.places)
    root = runner.places.root
    try:
        result = getattr(jobs, endpoint.job)(**{**arguments, "zoo": root / arguments["zoo"]})
    except WeightgenError as error:
        raise type(error)(error.cause.replace(f"{root}/", ""), error.remedy) from None
    found = finite(result.to_json())
    return {**found, "zoo": arguments["zoo"]} if isinstance(found, dict) and "zoo" in found else found
