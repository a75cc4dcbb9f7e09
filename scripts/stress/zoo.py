#!/usr/bin/env python
"""Try to break the zoo: damaged and hostile files, killed writers, two writers at once, a full disk.

    python scripts/stress/zoo.py --mutations 20000 --kills 200 --seed 0 > summary.json

Every mutant has to give an error or an exact read. Nothing may be written outside the zoo, run, or take more than the
limits; after a kill the zoo has to open, verify, hold what was acknowledged, and go on. Progress goes to stderr, one
JSON document to stdout; the exit code is 1 if anything went wrong. Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

# This file is called zoo.py too: look for modules in the repository, not beside it.
sys.path[0] = str(Path(__file__).resolve().parents[2])


def main() -> int:
    """Run what the arguments ask for; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=20_000, help="mutated files to collect")
    parser.add_argument("--kills", type=int, default=200, help="kills of a collection, and as many of a build")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of two collectors at once")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    import torch

    from scripts.stress import disk, feed, kills

    torch.set_num_threads(1)
    started = time.monotonic()
    summary: dict = {"seed": arguments.seed, "torch": torch.__version__}
    with tempfile.TemporaryDirectory(prefix="weightgen-stress-") as name:
        folder = Path(name)
        summary["mutations"] = feed.run(folder / "mutations", arguments.mutations, arguments.seed)
        summary["kills_collect"] = kills.collecting(folder / "collect", arguments.kills, arguments.seed)
        summary["kills_build"] = kills.building(folder / "build", arguments.kills, arguments.seed)
        summary["two_collectors"] = kills.two_collectors(folder / "two", arguments.rounds, arguments.seed)
        summary["full_disk"] = disk.run(folder / "disk")
    problems = [problem for part in summary.values() if isinstance(part, dict) for problem in part["problems"]]
    summary |= {"seconds": round(time.monotonic() - started, 1), "ok": not problems}
    print(json.dumps(summary, indent=2))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
