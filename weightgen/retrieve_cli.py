"""The command ``retrieve``: a thin typer shell over ``weightgen.jobs.retrieve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightgen.console import run_job
from weightgen.options import Json, ZooDir


def retrieve(
    zoo: ZooDir,
    description: Annotated[
        str | None, typer.Option("--description", metavar="TEXT", help="The task in a sentence.")
    ] = None,
    labels: Annotated[str | None, typer.Option("--labels", metavar="A,B,C", help="Labels in words.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="Texts, one a line, or an .npz of labelled examples.")
    ] = None,
    task: Annotated[
        Path | None, typer.Option("--task", metavar="FILE", help="Text task: description, labels and 64 texts.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="PATH", help="Adapter, network file or id: find similar ones.")
    ] = None,
    architecture: Annotated[
        str | None, typer.Option("--architecture", metavar="TEXT", help="The wanted network in words.")
    ] = None,
    base: Annotated[str | None, typer.Option("--base", metavar="ID", help="Only adapters of this base model.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only this kind: lora, dense, ...")] = None,
    license: Annotated[str | None, typer.Option("--license", help="Only records under this licence.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Only train, val or test.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Hits at most.")] = 5,
    min_score: Annotated[
        float | None, typer.Option("--min-score", help="Drop hits below; 0.5 if left out and calibrated.")
    ] = None,
    encoder: Annotated[str | None, typer.Option("--encoder", metavar="ID", help="Text encoder; MiniLM.")] = None,
    generator: Annotated[
        Path | None, typer.Option("--generator", metavar="DIR", help="Use the shared space of a generator too.")
    ] = None,
    index: Annotated[Path | None, typer.Option("--index", metavar="DIR", help="Where vectors are kept.")] = None,
    calibrate: Annotated[
        int, typer.Option("--calibrate", metavar="N", min=0, help="Measure N records of other tasks a task first.")
    ] = 0,
    calibrate_on: Annotated[
        list[Path] | None,
        typer.Option("--calibrate-on", metavar="PATH", help="Text tasks to measure on; repeatable. Stored ones."),
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make all vectors again.")] = False,
    as_json: Json = False,
) -> int:
    """Find the weights most likely to help with a task, or say that the base is better."""
    from weightgen import jobs

    return run_job(
        lambda progress: jobs.retrieve(
            zoo,
            description=description,
            labels=[label.strip() for label in (labels or "").split(",") if label.strip()],
            data=data,
            task=task,
            weights=weights,
            architecture=architecture,
            base=base,
            kind=kind,
            license=license,
            split=split,
            k=k,
            min_score=min_score,
            encoder=encoder,
            generator=generator,
            index=index,
            calibrate=calibrate,
            calibrate_on=calibrate_on or (),
            rebuild=rebuild,
            progress=progress,
        ),
        as_json,
    )
