"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ZooDir = Annotated[Path, typer.Option("--zoo", metavar="DIR", help="Folder of the zoo.")]
OutDir = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value, e.g. train.steps=100; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
