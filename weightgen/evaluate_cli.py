"""The command ``evaluate``: weights on labelled examples, language models on benchmarks, generators on a zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightgen.console import run_job
from weightgen.options import Json
from weightgen.progress import Progress
from weightgen.results import JobResult
from zoo.errors import UsageError

HOW = "give PATH with --data FILE or --lm-eval TASKS; or --generator DIR, --zoo DIR and --out DIR"


def evaluate(
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="Adapter folder, network file, or causal model.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "--task", metavar="FILE", help="Text task, or .npz with x and y.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="ID|PATH", help="Base model; by default what the adapter names.")
    ] = None,
    part: Annotated[
        str | None, typer.Option("--part", help="train, validation, test or all; test if there is one.")
    ] = None,
    lm_eval: Annotated[
        str | None, typer.Option("--lm-eval", metavar="TASKS", help="Benchmarks of lm-eval, for causal models.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Examples a benchmark at most.")] = None,
    generator: Annotated[
        Path | None, typer.Option("--generator", metavar="DIR", help="A generator, on held-out tasks of --zoo.")
    ] = None,
    zoo: Annotated[Path | None, typer.Option("--zoo", metavar="DIR", help="Folder of the zoo.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for the generator's card.")] = None,
    seeds: Annotated[str, typer.Option("--seeds", metavar="0,1,2", help="Seeds of a generator's runs.")] = "0,1,2",
    candidates: Annotated[int, typer.Option("--candidates", min=1, help="Networks a task for best-of rows.")] = 8,
    as_json: Json = False,
) -> int:
    """Measure weights on labelled examples, or a generator on tasks nobody trained on, beside everything simpler."""
    from weightgen import jobs

    def job(progress: Progress) -> JobResult:
        if (path is None) == (generator is None):
            raise UsageError(f"{'nothing' if path is None else 'too much'} is given to evaluate", HOW)
        if path is None:
            if zoo is None or out is None or generator is None:
                raise UsageError("a generator is evaluated on a zoo", "add --zoo DIR and --out DIR")
            return jobs.evaluate(
                generator=generator,
                zoo=zoo,
                out=out,
                seeds=_parse_seeds(seeds),
                candidates=candidates,
                progress=progress,
            )
        if (data is None) == (lm_eval is None):
            raise UsageError(f"{path} is evaluated on examples, or on benchmarks", HOW)
        if lm_eval is not None:
            return jobs.evaluate_language_model(path, lm_eval.split(","), base=base, limit=limit)
        assert data is not None
        return jobs.evaluate_weights(path, data, base=base, part=part)

    return run_job(job, as_json)


def _parse_seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds {text!r} is no list of different numbers", "write for example --seeds 0,1,2")
    return seeds
