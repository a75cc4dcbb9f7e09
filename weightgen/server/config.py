"""Settings of the server, checked before anything is started."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from zoo.errors import UsageError

MEBIBYTE = 1 << 20
SHORTEST_TOKEN = 16


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; names other than ``localhost`` are not trusted to be so."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class ServerConfig:
    """What the server may do, and for whom.

    Attributes:
        root: folder that every path of a request is confined to; made if its parent is there.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        workers: jobs that run at the same time.
        token: what clients have to present; ``None`` lets everyone in who reaches the address.
        allow_hub: let requests name models of the Hugging Face Hub, and jobs fetch them.
        hosts: further names that the server is called by, such as that of a reverse proxy.
        queue: jobs that wait at most.
        most_json: bytes of a JSON request at most.
        most_upload: bytes of an uploaded file at most.
        warm: keep one process with the libraries loaded, so that the next job starts at once.
    """

    root: Path
    host: str = "127.0.0.1"
    port: int = 8421
    workers: int = 1
    token: str | None = field(default=None, repr=False)
    allow_hub: bool = False
    hosts: tuple[str, ...] = ()
    queue: int = 32
    most_json: int = 8 * MEBIBYTE
    most_upload: int = 1024 * MEBIBYTE
    warm: bool = True

    def __post_init__(self) -> None:
        if not self.root.is_dir() and (self.root.exists() or not self.root.absolute().parent.is_dir()):
            raise UsageError(f"the root {self.root} is no folder", "make it, or give --root another one")
        if not 0 <= self.port < 1 << 16:
            raise UsageError(f"there is no port {self.port}", "give --port a number from 0 to 65535")
        if self.workers < 1 or self.queue < 1:
            raise UsageError(f"{self.workers} workers and a queue of {self.queue} run nothing", "give 1 or more")
        if self.token is None and not is_loopback(self.host):
            raise UsageError(
                f"{self.host} can be reached by others, and without a token they could run jobs and read the root",
                "set WEIGHTGEN_TOKEN or give --token, or listen on 127.0.0.1",
            )
        if self.token is not None and len(self.token) < SHORTEST_TOKEN:
            raise UsageError(
                f"a token of {len(self.token)} characters can be guessed",
                f"give {SHORTEST_TOKEN} or more, for example that of: openssl rand -hex 16",
            )
