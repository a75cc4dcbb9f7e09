"""Data that clients bring, and what lies below the root for them to choose from."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from weightgen.server.answers import Refused
from weightgen.server.paths import UPLOADS
from weightgen.server.runner import Runner
from weightgen.server.views import PROBLEM
from zoo.catalog import FILE
from zoo.store import disk_errors

DEEPEST = 4
"""Folders below the root in which zoos are looked for."""


def add_file_routes(app: FastAPI, runner: Runner) -> None:
    """Add uploads and the list of zoos."""
    places = runner.places

    @app.put(
        "/v1/files/{name:path}",
        status_code=201,
        tags=["files"],
        responses=PROBLEM,
        summary="Upload a file; the answer is the path that other requests name it by.",
    )
    async def upload(name: str, request: Request, force: bool = False) -> Response:
        path = places.inside(f"{UPLOADS}/{name}")
        if not path.is_relative_to(places.root / UPLOADS) or path == places.root / UPLOADS:
            raise Refused(403, f"{name!r} is not below {UPLOADS}", "give a plain name")
        if path.is_dir() or (path.exists() and not force):
            raise Refused(409, f"{places.relative(path)} exists already", "choose another name, or add ?force=true")
        side = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.partial")
        with disk_errors(places.relative(path)), contextlib.ExitStack() as stack:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.callback(side.unlink, missing_ok=True)
            with side.open("wb") as file:
                async for piece in request.stream():
                    await asyncio.to_thread(file.write, piece)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            side.replace(path)
        return JSONResponse({"path": places.relative(path), "bytes": path.stat().st_size}, 201)

    @app.get("/v1/zoos", tags=["zoo"], summary="Folders below the root that hold a zoo.")
    def list_zoos() -> list[str]:
        return sorted(places.relative(path) for path in _zoos(places.root, DEEPEST))


def _zoos(folder: Path, depth: int) -> list[Path]:
    if (folder / FILE).is_file():
        return [folder]
    if depth == 0:
        return []
    with contextlib.suppress(OSError):
        below = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink() and path.name[0] != "."]
        return [zoo for path in below for zoo in _zoos(path, depth - 1)]
    return []
