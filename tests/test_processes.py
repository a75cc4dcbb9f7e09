"""Two processes train one generator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures import tiny_config
from weightgen.checkpoint import load_generator, read_history
from weightgen.processes import Processes
from zoo.config import dump_config
from zoo.errors import UsageError


def test_two_processes_train_one_generator(tiny_zoo: Path, tmp_path: Path) -> None:
    config = dump_config(tiny_config())
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    command = ["-m", "weightgen.cli", "train", str(path), "--zoo", str(tiny_zoo), "--out", str(tmp_path / "g")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, *command, "--devices", "2", "--strategy", "ddp", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parent.parent,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] > 0, "one process prints"
    load_generator(tmp_path / "g")
    stages = read_history(tmp_path / "g")["stages"]
    assert list(stages) == ["codec", "alignment", "diffusion", "behaviour"]
    assert not list(tmp_path.glob(".g.*")), "nothing is left behind"


def test_wrong_processes_are_refused() -> None:
    with pytest.raises(UsageError, match="0 devices"):
        Processes(devices=0)
    with pytest.raises(UsageError, match="'dp'"):
        Processes(strategy="dp")
    assert Processes(devices=2).trainer["strategy"] == "ddp_find_unused_parameters_true"
