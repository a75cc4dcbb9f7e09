"""The page at ``/``: one file of the package, with a policy that lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, Response

from weightgen import __version__
from weightgen.server.config import ServerConfig

PAGE = Path(__file__).with_name("page.html")


def policy(page: str) -> str:
    """Content security policy under which only the scripts and styles of the page itself run."""

    def hashes(element: str) -> str:
        contents = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in contents)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def add_page(app: FastAPI, config: ServerConfig) -> None:
    """Add the page and the sign of life."""
    text = PAGE.read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": policy(text)}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(text, headers=headers)

    @app.get("/health", tags=["server"], summary="Whether the server is up, and whether it wants a token.")
    async def health() -> Response:
        return JSONResponse({"status": "ok", "version": __version__, "token": config.token is not None})
