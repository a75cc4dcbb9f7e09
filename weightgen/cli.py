"""The command line: a thin typer shell over ``weightgen.jobs``.

Commands parse arguments and hand them on; ``weightgen.console`` prints results and errors. Jobs are imported inside
the commands, so that help answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightgen import __version__
from weightgen.console import print_error, print_table, run_job
from zoo.errors import UsageError

if TYPE_CHECKING:
    from weightgen.results import CollectResult, ListResult, ShowResult

app = typer.Typer(
    help="Learn from collections of trained weights and generate new ones.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
zoo_app = typer.Typer(help="Build, fill, search and check zoos of trained weights.", no_args_is_help=True)
app.add_typer(zoo_app, name="zoo")

ZooDir = Annotated[Path, typer.Option("--zoo", metavar="DIR", help="Folder of the zoo.")]
OutDir = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results.")]
Generator = Annotated[Path, typer.Option("--generator", metavar="DIR", help="Folder of a trained generator.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value, e.g. train.steps=100; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
RecordId = Annotated[str, typer.Argument(metavar="ID", help="Identifier as shown by 'zoo ls', or its beginning.")]


@zoo_app.command("build")
def zoo_build(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML recipe, e.g. configs/digits.yaml.")],
    zoo: ZooDir,
    sets: Sets = None,
    as_json: Json = False,
) -> int:
    """Train the networks of a recipe; a rerun goes on where the last one stopped."""
    from weightgen import jobs

    return run_job(lambda progress: jobs.build_zoo(recipe, zoo, sets or (), progress), as_json)


@zoo_app.command("collect")
def zoo_collect(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="File, adapter, folder of them, or Hub id.")],
    zoo: ZooDir,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")] = False,
    as_json: Json = False,
) -> int:
    """Read, check and store weights that exist; exit code 3 if any source is refused."""
    from weightgen import jobs

    return run_job(lambda progress: jobs.collect_weights(sources, zoo, dry_run, progress), as_json, _show_collected)


@zoo_app.command("ls")
def zoo_ls(
    zoo: ZooDir,
    kind: Annotated[str | None, typer.Option(help="Kind of weights.")] = None,
    base: Annotated[str | None, typer.Option(help="Base model of adapters.")] = None,
    task: Annotated[str | None, typer.Option(help="Name of the task.")] = None,
    split: Annotated[str | None, typer.Option(help="train, val or test.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence as stated by the source.")] = None,
    as_json: Json = False,
) -> int:
    """List the records of a zoo."""
    from weightgen import jobs

    return run_job(
        lambda _: jobs.list_records(zoo, kind=kind, base_model=base, task=task, split=split, license=license),
        as_json,
        _show_records,
    )


@zoo_app.command("show")
def zoo_show(id: RecordId, zoo: ZooDir, as_json: Json = False) -> int:
    """Show one record with its tensors."""
    from weightgen import jobs

    return run_job(lambda _: jobs.show_record(zoo, id), as_json, _show_record)


@zoo_app.command("verify")
def zoo_verify(zoo: ZooDir, as_json: Json = False) -> int:
    """Compare everything in a zoo with its checksums; exit code 3 if anything is damaged."""
    from weightgen import jobs

    return run_job(lambda _: jobs.verify_zoo(zoo), as_json)


@zoo_app.command("export")
def zoo_export(
    id: RecordId,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder, or a .safetensors file.")],
    zoo: ZooDir,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: Json = False,
) -> int:
    """Write a record back as the files it came from, bit for bit."""
    from weightgen import jobs

    return run_job(lambda _: jobs.export_record(zoo, id, out, force), as_json)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML config, e.g. configs/d2nwg-digits.yaml.")],
    zoo: ZooDir,
    out: OutDir,
    sets: Sets = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of resuming.")] = False,
    as_json: Json = False,
) -> int:
    """Train a generator on a zoo; a rerun resumes."""
    from weightgen import jobs

    return run_job(
        lambda progress: jobs.train(
            config=config, zoo=zoo, out=out, overrides=sets or (), fresh=fresh, progress=progress
        ),
        as_json,
    )


@app.command()
def generate(
    generator: Generator,
    data: Annotated[Path, typer.Option("--data", metavar="NPZ", help="Labelled examples of the task.")],
    out: OutDir,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="How many networks.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same networks.")] = 0,
    as_json: Json = False,
) -> int:
    """Generate networks for a task from a few labelled examples."""
    from weightgen import jobs

    return run_job(lambda _: jobs.generate(generator=generator, data=data, out=out, n=n, seed=seed), as_json)


@app.command()
def evaluate(
    generator: Generator,
    zoo: ZooDir,
    out: OutDir,
    seeds: Annotated[str, typer.Option("--seeds", metavar="0,1,2", help="Seeds of the runs to average.")] = "0,1,2",
    candidates: Annotated[int, typer.Option("--candidates", min=1, help="Networks a task for the best-of rows.")] = 8,
    as_json: Json = False,
) -> int:
    """Compare generated networks with everything simpler, on tasks nobody trained on."""
    from weightgen import jobs

    return run_job(
        lambda progress: jobs.evaluate(
            generator=generator,
            zoo=zoo,
            out=out,
            seeds=_parse_seeds(seeds),
            candidates=candidates,
            progress=progress,
        ),
        as_json,
    )


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(f"weightgen {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Learn from collections of trained weights and generate new ones."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        args: arguments without the program name; those of the process if ``None``.

    Raises:
        SystemExit: always; 0 if all went well, 2 usage, 3 bad artefact, 4 missing extra, 5 network, 130 Ctrl-C.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        code = app(arguments, prog_name="weightgen", standalone_mode=False)
    except Exception as error:
        # typer keeps the parse errors of its parser private; they are known by their form.
        if not hasattr(error, "format_message"):
            raise
        code = _print_parse_error(error, "--json" in arguments)
    raise SystemExit(code)


def _print_parse_error(error: Exception, as_json: bool) -> int:
    message: str = error.format_message()  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "weightgen"
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message, file=sys.stderr)  # with rich the help is on the screen already and this is empty
        return UsageError.exit_code
    return print_error(message, f"see '{path} --help'", UsageError.exit_code, as_json)


def _parse_seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds {text!r} is no list of different numbers", "write for example --seeds 0,1,2")
    return seeds


def _show_collected(result: CollectResult) -> None:
    rows = [(s.status, s.id, s.kind, s.path, s.reason) for s in result.sources]
    print_table(["status", "id", "kind", "path", "reason"], rows)
    print(result.summary())


def _show_records(result: ListResult) -> None:
    rows = [
        (r.id, r.layout.kind, r.layout.base_model, f"{r.layout.numel:,}", r.task, r.split, r.license)
        for r in result.records
    ]
    print_table(["id", "kind", "base", "weights", "task", "split", "license"], rows)
    print(result.summary())


def _show_record(result: ShowResult) -> None:
    data = result.to_json()
    tensors = data.pop("tensors")
    print_table(["field", "value"], [(key, value) for key, value in data.items() if value not in (None, {})])
    print_table(["tensor", "shape", "dtype", "role"], [(t["name"], t["shape"], t["dtype"], t["role"]) for t in tensors])


if __name__ == "__main__":
    main()
