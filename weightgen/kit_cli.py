"""The command ``weightgen kit``."""

from __future__ import annotations

from weightgen.console import run_job
from weightgen.options import Json, OutDir


def kit(out: OutDir, as_json: Json = False) -> int:
    """Unpack the adapters that come with weightgen into a zoo."""
    from weightgen import jobs

    return run_job(lambda progress: jobs.kit(out, progress), as_json)
