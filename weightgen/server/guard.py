"""Who may speak to the server: checked for every request before anything else sees it."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from weightgen.server.answers import Refused, error_json
from weightgen.server.config import MEBIBYTE, ServerConfig

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PUBLIC = ("/", "/health")
"""Answered without a token: the page, which holds no data, and whether the server is up."""
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
UPLOAD = "/v1/files/"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Guard:
    """Middleware that lets a request through, or answers why not.

    A name that somebody else controls can be pointed at this machine (DNS rebinding), so that only known names are
    answered to; a number cannot. What a page of another site sends has that site as its origin, and is refused.

    Args:
        app: what is behind it.
        config: of the server.
    """

    def __init__(self, app: App, config: ServerConfig) -> None:
        self._app = app
        self._config = config
        self._names = {"localhost", socket.gethostname().lower(), config.host.lower(), *map(str.lower, config.hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one ASGI connection."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        try:
            limit = self._check(scope)
        except Refused as error:
            await _answer(send, error)
            return
        heard, started = 0, False

        async def measured() -> MutableMapping[str, Any]:
            nonlocal heard
            message = await receive()
            heard += len(message.get("body", b""))
            if heard > limit:
                raise _TooLarge
            return message

        async def marked(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if heard > limit and not started:
                return  # the framework takes it for a damaged request
            if message["type"] == "http.response.start":
                started = True
                present = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(pair for pair in HEADERS if pair[0] not in present)]
            await send(message)

        with contextlib.suppress(_TooLarge):
            await self._app(scope, measured, marked)
        if heard > limit and not started:
            await _answer(send, _too_large(limit))

    def _check(self, scope: Scope) -> int:
        """The bytes that the request may have.

        Raises:
            Refused: if it may not come in.
        """
        headers: dict[bytes, bytes] = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            name = ""
        if not (_is_address(name) or name in self._names):
            remedy = "use its address, or start it with --allow-host NAME"
            raise Refused(421, "this server is not known by that name", remedy, host[:200])
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin.decode("latin-1")).netloc.lower() != host.lower():
            raise Refused(403, "requests of other sites are not answered", "open the page of this server")
        if scope["path"] not in PUBLIC:
            self._check_token(headers.get(b"authorization", b""))
        limit = self._config.most_upload if scope["path"].startswith(UPLOAD) else self._config.most_json
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        return limit

    def _check_token(self, given: bytes) -> None:
        if self._config.token is None:
            return
        kind, _, token = given.partition(b" ")
        same = hmac.compare_digest(token.strip(), self._config.token.encode())
        if kind.lower() != b"bearer" or not same:
            raise Refused(401, "the token is missing or wrong", "send the header Authorization: Bearer TOKEN")


class _TooLarge(Exception):
    """More came than was announced or allowed."""


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the request has more than {limit / MEBIBYTE:g} MiB", "send less, or upload files one by one")


async def _answer(send: Send, error: Refused) -> None:
    body = json.dumps(error_json(error)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *HEADERS]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
