"""The command on one large model: a thin typer shell over ``weightgen.jobs``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from weightgen.console import run_job
from weightgen.options import Json, OutDir, Sets


def explore(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a transformers checkpoint, or a Hub id.")],
    data: Annotated[
        str, typer.Option("--data", metavar="TASK", help="Task to choose on: .jsonl, or a text task FILE[#PART].")
    ],
    out: OutDir,
    layers: Annotated[
        str | None, typer.Option("--layers", metavar="auto|REGEX", help="auto: by Marchenko-Pastur spectrum.")
    ] = None,
    top: Annotated[int | None, typer.Option("--top", min=1, help="Weight matrices that auto takes.")] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", min=1, help="Candidates.")] = None,
    strength: Annotated[
        float | None, typer.Option("--strength", help="0 to 1: how far from the given model; 1 is free sampling.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Training steps of codec and denoiser.")] = None,
    test_data: Annotated[
        str | None, typer.Option("--test-data", metavar="TASK", help="Held-out task that has the last word.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Same seed, same candidates.")] = None,
    config: Annotated[
        str, typer.Option("--config", metavar="YAML", help="Config, or the name of a shipped one: explore-small.")
    ] = "explore-small",
    sets: Sets = None,
    as_json: Json = False,
) -> int:
    """Sample new weights for layers of one model, keep the best on a task; a rerun resumes."""
    from weightgen import jobs

    given = {
        "layers.select": layers,
        "layers.top": top,
        "sample.n": n,
        "sample.strength": strength,
        "codec.steps": steps,
        "diffusion.steps": steps,
        "seed": seed,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    return run_job(
        lambda progress: jobs.explore(
            model,
            data,
            out,
            config=config,
            test_data=test_data,
            overrides=[*overrides, *(sets or ())],
            progress=progress,
        ),
        as_json,
    )
