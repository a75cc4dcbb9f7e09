"""What every command shares: run a job, print its result or its error, return the exit code."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from weightgen.processes import is_first
from weightgen.progress import Progress, show_progress
from zoo.errors import WeightgenError

if TYPE_CHECKING:
    from weightgen.results import JobResult

INTERRUPTED = 130

R = TypeVar("R", bound="JobResult")


def run_job(job: Callable[[Progress], R], as_json: bool, show: Callable[[R], None] | None = None) -> int:
    """Run one job for the command line.

    Stdout carries the result alone: whatever a library prints meanwhile goes to stderr, as progress does.

    Args:
        job: does the work; it is given the progress callback.
        as_json: print the result as one JSON document.
        show: prints the result for people; without it the summary is printed.

    Returns:
        The exit code: that of the result, or of the error that was printed, or 130 after Ctrl-C.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr), show_progress() as progress:
            result = job(progress)
    except WeightgenError as error:
        return print_error(error.cause, error.remedy, error.exit_code, as_json)
    except KeyboardInterrupt:
        remedy = "run the same command again: it continues with what is done"
        return print_error("interrupted", remedy, INTERRUPTED, as_json)
    if not is_first():
        return result.exit_code  # another process prints
    if as_json:
        print(json.dumps(finite(result.to_json()), allow_nan=False))
    elif show is not None:
        show(result)
    else:
        print(result.summary())
    return result.exit_code


def print_error(cause: str, remedy: str, exit_code: int, as_json: bool) -> int:
    """Print an expected error on stderr, and as a JSON document on stdout if scripts are reading.

    Args:
        cause: what is wrong.
        remedy: what the reader can do; may be empty.
        exit_code: code of the class of errors it belongs to.
        as_json: whether stdout carries JSON.

    Returns:
        ``exit_code``.
    """
    if as_json:
        print(json.dumps({"error": {"cause": cause, "remedy": remedy, "exit_code": exit_code}}))
    print(f"error: {cause}", file=sys.stderr)
    if remedy:
        print(f"remedy: {remedy}", file=sys.stderr)
    return exit_code


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on stdout; cells that are ``None`` stay empty.

    Args:
        columns: headings.
        rows: cells, one sequence a row.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    # A pipe has no width; cut nothing there.
    Console(markup=False, width=None if sys.stdout.isatty() else 10_000).print(table)


def finite(value: Any) -> Any:
    """The same nested values for JSON, which knows no NaN and no infinity: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
