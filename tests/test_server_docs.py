"""Commands and Python of docs/server.md, against a server that was started as a user starts it."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures import tiny_config
from weightgen.train import train_generator
from zoo.zoo import Zoo

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
TASK = '{"description": '


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)
    return found


@pytest.fixture
def port(tmp_path: Path, adapter_zoo: Path, text_encoder: Path) -> Iterator[str]:
    """A running server whose root holds a small generator and its base; it ends well when it is interrupted."""
    root = tmp_path / "root"
    with Zoo.open(adapter_zoo) as zoo:
        train_generator(tiny_config("prototype", f"text_encoder={text_encoder}"), zoo, root / "generator")
    shutil.copytree(text_encoder, root / "encoder")
    command = [sys.executable, "-m", "weightgen.cli", "serve", "--port", "0", "--root", str(root)]
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    with server:
        yield server.stderr.readline().rsplit(":", 1)[1].strip()
        server.send_signal(signal.SIGINT)
        log = server.stderr.read()
    assert server.returncode == 0, log
    assert "Traceback" not in log


def adapted(text: str, port: str) -> str:
    """The same for the server and the generator of the test."""
    assert TASK in text
    own = '{"generator": "generator", "base": "encoder", "description": '
    return text.replace("localhost:8421", f"localhost:{port}").replace(TASK, own)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_commands_and_the_python(
    port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    answers = []
    for line in adapted(block("sh"), port).strip().splitlines():
        answers.append(subprocess.run([*shlex.split(line), "-sS", "--fail-with-body"], capture_output=True, text=True))
        assert answers[-1].returncode == 0, answers[-1]
    archive = zipfile.ZipFile("adapter.zip")
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(archive.namelist())
    assert answers[2].stdout.count('"kind":"lora"') == 32
    archive.close()
    Path("adapter.zip").unlink()
    exec(adapted(block("python"), port), {})
    assert "event: done" in capsys.readouterr().out
    assert zipfile.ZipFile("adapter.zip").testzip() is None


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", DOCS):
        assert (ROOT / "docs" / target).exists(), target
