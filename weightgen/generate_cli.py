"""The command ``weightgen generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightgen.console import run_job
from weightgen.options import Json, OutDir
from weightgen.results import JobResult


def generate(
    out: OutDir,
    sentence: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Description of the task; the same as --description.")
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(
            "--generator", metavar="NAME|DIR", help="Trained generator; by default the shipped one for MiniLM."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="NPZ of labelled examples, or unlabelled texts, one a line."),
    ] = None,
    description: Annotated[str | None, typer.Option("--description", metavar="TEXT", help="The task in words.")] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", metavar="A,B,C", help="Labels in words, separated by commas.")
    ] = None,
    task: Annotated[
        Path | None, typer.Option("--task", metavar="FILE", help="Task file; only its words are used by default.")
    ] = None,
    base: Annotated[str | None, typer.Option("--base", metavar="ID|DIR", help="Base model of the adapter.")] = None,
    use_examples: Annotated[
        int, typer.Option("--use-examples", min=0, metavar="N", help="Texts of the task file to use, unlabelled.")
    ] = 0,
    use_labels: Annotated[
        int,
        typer.Option("--use-labels", min=0, metavar="N", help="Labelled texts of the task file to use, per label."),
    ] = 0,
    finetune: Annotated[
        int, typer.Option("--finetune", min=0, metavar="STEPS", help="Train on the labelled examples afterwards.")
    ] = 0,
    instruction: Annotated[
        str | None, typer.Option("--instruction", metavar="TEXT", help="Which network is wanted, in words.")
    ] = None,
    architecture: Annotated[
        str | None, typer.Option("--architecture", metavar="FILE|JSON", help="Which network is wanted, exactly.")
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="How many.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same weights.")] = 0,
    as_json: Json = False,
) -> int:
    """Generate an adapter from a sentence, or networks from a few labelled examples."""
    from weightgen import jobs
    from zoo.errors import UsageError

    def job(_: object) -> JobResult:
        if sentence is not None and description is not None:
            raise UsageError("the description is given twice", "give it once")
        return jobs.generate(
            generator,
            data,
            out,
            n,
            seed,
            description=sentence or description,
            labels=tuple(part.strip() for part in labels.split(",") if part.strip()) if labels else (),
            task=task,
            base=base,
            use_examples=use_examples,
            use_labels=use_labels,
            finetune=finetune,
            instruction=instruction,
            architecture=architecture,
        )

    return run_job(job, as_json)
