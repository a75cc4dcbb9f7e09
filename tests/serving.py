"""A server for tests, on a root of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from weightgen.server import ServerConfig, create_app

Connect = Callable[..., TestClient]
HOST = "http://127.0.0.1:8421"


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Connect]:
    """Starts a server on a root of its own, as often as it is called."""
    open_clients: list[TestClient] = []

    def start(**settings: Any) -> TestClient:
        while open_clients:
            open_clients.pop().__exit__(None, None, None)
        (tmp_path / "root").mkdir(exist_ok=True)
        config = ServerConfig(**{"root": tmp_path / "root", "warm": False, **settings})
        client = TestClient(create_app(config), base_url=HOST)
        open_clients.append(client.__enter__())
        return client

    yield start
    for client in open_clients:
        client.__exit__(None, None, None)
