"""The command ``compose``: a thin typer shell over ``weightgen.jobs.compose``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightgen.console import run_job
from weightgen.options import Json, OutDir, Sets
from zoo.errors import UsageError


def compose(
    parents: Annotated[
        list[str], typer.Argument(metavar="ADAPTER", help="Adapter folder, network file, or id with --zoo.")
    ],
    out: OutDir,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="linear, aligned_mean, task_arithmetic, ties, dare_linear, dare_ties, atlas, scalearn, "
            "scalearn_uniform or lorahub.",
        ),
    ] = "linear",
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="0.5,0.5", help="One number a parent; equal if left out.")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Rank of the result; exact if left out.")] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="ID", help="Base model; for networks the file they started from.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="Examples for atlas, scalearn and lorahub.")
    ] = None,
    unlabelled: Annotated[bool, typer.Option("--unlabelled", help="Do not use the labels of the examples.")] = False,
    zoo: Annotated[Path | None, typer.Option("--zoo", metavar="DIR", help="Zoo that ids belong to.")] = None,
    sets: Sets = None,
    examples: Annotated[int, typer.Option("--examples", min=1, help="Examples that are used at most.")] = 256,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Examples of a gradient step.")] = 16,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same mixture.")] = 0,
    as_json: Json = False,
) -> int:
    """Mix adapters of one base model, or networks of one architecture; says what was lost."""
    from weightgen import jobs

    return run_job(
        lambda progress: jobs.compose(
            parents=parents,
            out=out,
            method=method,
            weights=_numbers(weights),
            rank=rank,
            base=base,
            data=data,
            unlabelled=unlabelled,
            zoo=zoo,
            overrides=sets or (),
            examples=examples,
            batch=batch,
            seed=seed,
            progress=progress,
        ),
        as_json,
    )


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--weights {text!r} is no list of numbers", "write for example --weights 0.5,0.5") from None
