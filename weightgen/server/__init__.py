"""The server: every job of ``weightgen.jobs`` over HTTP, a queue with processes of its own, and one page to look at."""

from __future__ import annotations

import contextlib
import importlib
import socket
import sys
from typing import Any

from weightgen.server.config import ServerConfig as ServerConfig
from zoo.errors import MissingExtra, UsageError

INSTALL = "pip install 'weightgen[serve]'"
LAST_SECONDS = 3
"""For open connections when the server stops."""


def create_app(config: ServerConfig) -> Any:
    """The server as an ASGI application.

    Args:
        config: its settings.

    Raises:
        MissingExtra: if FastAPI is not installed.
    """
    _library("fastapi")
    return importlib.import_module("weightgen.server.app").create_app(config)


def serve(config: ServerConfig) -> None:
    """Serve until the process is told to stop.

    Args:
        config: settings of the server.

    Raises:
        MissingExtra: if FastAPI or uvicorn are not installed.
        UsageError: if the address cannot be listened on, or another server works on the same root.
    """
    uvicorn = _library("uvicorn")
    app = create_app(config)
    host = config.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, config.port), family=family)
    except OSError as error:
        cause = f"cannot listen on {config.host} port {config.port} ({error.strerror or error})"
        raise UsageError(cause, "give another --port or --host") from None
    with listening:
        app.state.runner.lock()
        shown = f"[{host}]" if family == socket.AF_INET6 else host
        print(f"weightgen serves {config.root} on http://{shown}:{listening.getsockname()[1]}", file=sys.stderr)
        settings = uvicorn.Config(app, timeout_graceful_shutdown=LAST_SECONDS, server_header=False, log_level="info")
        with contextlib.suppress(KeyboardInterrupt):  # raised again when all is done
            uvicorn.Server(settings).run(sockets=[listening])


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtra(f"the server needs {name}", INSTALL) from None
