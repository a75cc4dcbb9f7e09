"""Progress of a job on stderr: a bar on a terminal, a few plain lines in a log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called by a job with the stage it is in, the steps done and the steps in all (0 if unknown)."""

LINES_PER_STAGE = 4


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Show the progress of one job on stderr for the time of the ``with`` block.

    Yields:
        The callback to hand to the job.
    """
    if sys.stderr.isatty():
        with _bars() as progress:
            yield progress
    else:
        yield _lines()


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as display:
        tasks: dict[str, bars.TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(stage)
            display.update(tasks[stage], completed=done, total=total or None)

        yield update


def _lines() -> Progress:
    """Callback that prints a line whenever another quarter of a stage is done."""
    printed: dict[str, int] = {}

    def update(stage: str, done: int, total: int) -> None:
        quarter = LINES_PER_STAGE * done // total if total else 0
        if printed.get(stage, -1) < quarter:
            printed[stage] = quarter
            print(f"{stage}: {done}/{total}" if total else stage, file=sys.stderr, flush=True)

    return update
