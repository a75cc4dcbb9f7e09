"""The command ``solve``: a thin typer shell over ``weightgen.jobs.solve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightgen.console import run_job
from weightgen.options import Json, OutDir


def solve(
    out: OutDir,
    description: Annotated[
        str | None, typer.Option("--description", metavar="TEXT", help="The task in a sentence.")
    ] = None,
    labels: Annotated[str | None, typer.Option("--labels", metavar="A,B,C", help="Labels in words.")] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="Labelled examples (csv, json; npz), or texts, one a line."),
    ] = None,
    task: Annotated[
        Path | None, typer.Option("--task", metavar="FILE", help="Task file; only its words are used by default.")
    ] = None,
    use_examples: Annotated[
        int | None, typer.Option("--use-examples", min=0, metavar="N", help="Texts of the file to use, unlabelled.")
    ] = None,
    use_labels: Annotated[
        int | None, typer.Option("--use-labels", min=0, metavar="N", help="Labelled texts to use, per label.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="ID|DIR", help="Text encoder; by default all-MiniLM-L6-v2.")
    ] = None,
    zoo: Annotated[
        Path | None, typer.Option("--zoo", metavar="DIR", help="Zoo of adapters; by default the shipped ones.")
    ] = None,
    generators: Annotated[
        list[Path] | None,
        typer.Option("--generator", metavar="DIR", help="A trained generator beside the shipped one; repeatable."),
    ] = None,
    budget: Annotated[str, typer.Option("--budget", metavar="60s|500steps", help="What may be spent.")] = "60s",
    encoder: Annotated[
        str | None, typer.Option("--encoder", metavar="ID", help="Text encoder of retrieval; MiniLM.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="What the ways gained on other tasks; the shipped.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed and steps, same result.")] = 0,
    as_json: Json = False,
) -> int:
    """Find the best adapter for a task, whichever way it comes, or say that the base is better."""
    from weightgen import jobs

    return run_job(
        lambda progress: jobs.solve(
            description,
            data,
            base,
            out,
            budget,
            labels=tuple(part.strip() for part in (labels or "").split(",") if part.strip()),
            task=task,
            use_examples=use_examples,
            use_labels=use_labels,
            zoo=zoo,
            generators=generators or (),
            encoder=encoder,
            record=record,
            seed=seed,
            progress=progress,
        ),
        as_json,
    )
