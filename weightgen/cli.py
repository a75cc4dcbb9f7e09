"""The command line: a thin typer shell over ``weightgen.jobs``.

Commands parse arguments and hand them on; ``weightgen.console`` prints results and errors. Jobs are imported inside
the commands, so that help answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from weightgen import __version__
from weightgen.compose_cli import compose
from weightgen.console import print_error, run_job
from weightgen.decode_cli import add_decode_commands
from weightgen.evaluate_cli import evaluate
from weightgen.generate_cli import generate
from weightgen.kit_cli import kit
from weightgen.large_cli import explore
from weightgen.leaderboard_cli import leaderboard
from weightgen.options import Json, OutDir, Sets, ZooDir
from weightgen.retrieve_cli import retrieve
from weightgen.serve_cli import serve
from weightgen.solve_cli import solve
from weightgen.zoo_cli import zoo_app
from zoo.errors import UsageError

app = typer.Typer(
    help="Learn from collections of trained weights and generate new ones.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(zoo_app, name="zoo")
add_decode_commands(app)
app.command()(compose)
app.command()(evaluate)
app.command()(explore)
app.command()(generate)
app.command()(kit)
app.command()(leaderboard)
app.command()(retrieve)
app.command()(serve)
app.command()(solve)


@app.command()
def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML config, or the name of a shipped one: d2nwg-digits.")
    ],
    zoo: ZooDir,
    out: OutDir,
    sets: Sets = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of resuming.")] = False,
    devices: Annotated[int, typer.Option("--devices", min=1, help="Processes or devices that train together.")] = 1,
    strategy: Annotated[str, typer.Option("--strategy", help="auto, ddp, or fsdp on accelerators.")] = "auto",
    accelerator: Annotated[str, typer.Option("--accelerator", help="cpu, gpu or auto.")] = "cpu",
    as_json: Json = False,
) -> int:
    """Train a generator on a zoo; a rerun resumes."""
    from weightgen import jobs

    return run_job(
        lambda progress: jobs.train(
            config=config,
            zoo=zoo,
            out=out,
            overrides=sets or (),
            fresh=fresh,
            progress=progress,
            devices=devices,
            strategy=strategy,
            accelerator=accelerator,
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


if __name__ == "__main__":
    main()
