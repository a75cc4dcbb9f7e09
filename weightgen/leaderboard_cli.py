"""The command ``leaderboard``: a thin typer shell over ``weightgen.jobs.leaderboard``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightgen.console import run_job
from weightgen.options import Json, OutDir


def leaderboard(
    results: Annotated[Path, typer.Argument(metavar="RESULTS_DIR", help="Folder of saved result files.")],
    out: OutDir,
    title: Annotated[str, typer.Option("--title", help="Title of the pages.")] = "weightgen: what was measured",
    as_json: Json = False,
) -> int:
    """Render saved results as a Markdown page and one HTML page with plots; nothing is measured."""
    from weightgen import jobs

    return run_job(lambda progress: jobs.leaderboard(results, out, title), as_json)
