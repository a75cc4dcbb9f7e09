"""A small slice of the stress test: the script itself, and that nothing it tries does harm."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="it forks and limits memory")
def test_a_slice_of_the_stress_test() -> None:
    command = [sys.executable, "scripts/stress/zoo.py", "--mutations", "150", "--kills", "3", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    summary = json.loads(done.stdout)
    assert summary["ok"]
    assert sum(summary["mutations"]["kinds"].values()) == 150
    assert summary["mutations"]["outcome"]["refused"] > 75
    assert (summary["kills_collect"]["kills"], summary["kills_build"]["kills"]) == (3, 3)
    assert len(summary["full_disk"]["errors"]) == 5


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_every_kind_of_mutant_is_made(tmp_path: Path) -> None:
    from scripts.stress.mutants import Mutants

    mutants, draw = Mutants(tmp_path / "outside"), random.Random(0)
    made = {mutants.make(draw, tmp_path / "in" / str(number)) for number in range(150)}
    assert made == {name for name, _, _ in mutants.makers}
