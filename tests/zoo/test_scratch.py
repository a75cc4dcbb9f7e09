"""Temporary folders: what a killed collector leaves is removed by the next one, and nothing else is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch

from zoo import safefile, scratch
from zoo.collect import collect
from zoo.zoo import Zoo

KILLED = """
import os, signal, sys
from pathlib import Path
from zoo import sources
from zoo.collect import collect
unpacked = sources.archives.extract
def extract(path, folder):
    unpacked(path, folder)
    os.kill(os.getpid(), signal.SIGKILL)
sources.archives.extract = extract
collect([sys.argv[1]], Path(sys.argv[2]))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the system for this test alone."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_the_next_collector_cleans_up_after_one_that_was_killed(place: Path, tmp_path: Path) -> None:
    safefile.save(tmp_path / "a.safetensors", {"w": torch.ones(3)}, {})
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.safetensors", "a.safetensors")
    run = [sys.executable, "-c", KILLED, str(tmp_path / "a.zip"), str(tmp_path / "zoo")]
    assert subprocess.run(run, check=False).returncode == -9
    (left,) = place.iterdir()
    assert (left / "a.safetensors").exists()
    (result,) = collect([tmp_path / "a.zip"], tmp_path / "zoo")
    assert result.status == "added"
    assert list(place.iterdir()) == []


def test_verifying_cleans_up_too(place: Path, tmp_path: Path) -> None:
    (place / f"weightgen-{socket.gethostname()}-{dead_process()}@abc").mkdir()
    with Zoo.open(tmp_path / "zoo", create=True) as zoo:
        assert zoo.verify() == []
    assert list(place.iterdir()) == []


def test_nothing_else_is_touched(place: Path, tmp_path: Path) -> None:
    dead, host = dead_process(), socket.gethostname()
    precious = tmp_path / "precious"
    precious.mkdir()
    (place / f"weightgen-{host}-{dead}@link").symlink_to(precious)
    (place / f"weightgen-{host}-{dead}@file").write_text("x")
    for name in (f"{host}-{os.getpid()}@a", f"other-host-{dead}@a", f"{host}-{dead}", f"{host}-x@a", "notes@home"):
        (place / f"weightgen-{name}").mkdir()
    before = sorted(place.iterdir())
    assert scratch.sweep() == 0
    with scratch.folder() as mine:
        assert scratch.sweep() == 0
        assert Path(mine).is_dir()
    assert sorted(place.iterdir()) == before
    assert precious.is_dir()
