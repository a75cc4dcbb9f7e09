"""The command ``serve``: a thin typer shell over ``weightgen.server``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightgen.console import print_error
from zoo.errors import WeightgenError


def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on; others than loopback need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 takes a free one.")] = 8421,
    root: Annotated[
        Path, typer.Option("--root", metavar="DIR", help="Folder that all paths of requests are confined to.")
    ] = Path(),
    workers: Annotated[int, typer.Option("--workers", min=1, help="Jobs that run at the same time.")] = 1,
    token: Annotated[
        str | None,
        typer.Option("--token", envvar="WEIGHTGEN_TOKEN", show_envvar=True, help="What clients have to present."),
    ] = None,
    allow_hub: Annotated[
        bool, typer.Option("--allow-hub", help="Let requests name models of the Hugging Face Hub.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="Another name the server is called by; repeatable."),
    ] = None,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Jobs that wait at most.")] = 32,
    max_upload: Annotated[int, typer.Option("--max-upload", metavar="MIB", min=1, help="Largest upload.")] = 1024,
    cold: Annotated[
        bool, typer.Option("--cold", help="Keep no process with loaded libraries ready for the next job.")
    ] = False,
) -> int:
    """Offer every command over HTTP, with a page to look at; stop it with Ctrl-C."""
    from weightgen.server import ServerConfig
    from weightgen.server import serve as run
    from weightgen.server.config import MEBIBYTE

    try:
        run(
            ServerConfig(
                root=root,
                host=host,
                port=port,
                workers=workers,
                token=token or None,
                allow_hub=allow_hub,
                hosts=tuple(allow_host or ()),
                queue=queue,
                most_upload=max_upload * MEBIBYTE,
                warm=not cold,
            )
        )
    except WeightgenError as error:
        return print_error(error.cause, error.remedy, error.exit_code, as_json=False)
    return 0
