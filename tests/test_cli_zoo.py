"""The zoo commands end to end, on files as people have them: JSON contract, exit codes, nothing half written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from weightgen import cli

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *arguments: str | Path) -> tuple[int, Any, str]:
    """Run a command with ``--json``; returns exit code, the document on stdout, and stderr."""
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, arguments), "--json"])
    output = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, json.loads(output.out), output.err


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "source" / "net.safetensors"
    path.parent.mkdir()
    save_file({"b.weight": torch.randn(3, 4), "a.bias": torch.randn(3).half()}, path)
    return path


def test_collect_list_show_verify_export(tmp_path: Path, network: Path, capsys: Capture) -> None:
    zoo = tmp_path / "zoo"
    code, entries, _ = run(capsys, "zoo", "collect", network, "--zoo", zoo)
    assert code == 0
    assert [set(entry) for entry in entries] == [{"path", "status", "id", "kind", "reason"}]
    assert (entries[0]["status"], entries[0]["kind"]) == ("added", "dense")
    key = entries[0]["id"]

    code, entries, _ = run(capsys, "zoo", "collect", network.parent, "--zoo", zoo)
    assert (code, entries[0]["status"], entries[0]["id"]) == (0, "duplicate", key)

    code, records, _ = run(capsys, "zoo", "ls", "--zoo", zoo, "--kind", "dense")
    assert (code, [record["id"] for record in records], records[0]["weights"]) == (0, [key], 15)
    assert run(capsys, "zoo", "ls", "--zoo", zoo, "--kind", "lora")[:2] == (0, [])

    code, record, _ = run(capsys, "zoo", "show", key, "--zoo", zoo)
    assert code == 0
    assert {tensor["name"]: tensor["dtype"] for tensor in record["tensors"]} == {"b.weight": "F32", "a.bias": "F16"}

    code, verdict, _ = run(capsys, "zoo", "verify", "--zoo", zoo)
    assert (code, verdict["ok"], verdict["records"], verdict["problems"]) == (0, True, 1, [])

    out = tmp_path / "out" / "net.safetensors"
    out.parent.mkdir()
    code, written, _ = run(capsys, "zoo", "export", key, out, "--zoo", zoo)
    assert (code, written) == (0, {"id": key, "files": [str(out)]})
    source, exported = load_file(network), load_file(out)
    assert all(exported[name].equal(value) and exported[name].dtype == value.dtype for name, value in source.items())
    assert run(capsys, "zoo", "export", key, out, "--zoo", zoo)[0] == 2


def test_people_get_tables(tmp_path: Path, network: Path, capsys: Capture) -> None:
    run(capsys, "zoo", "collect", network, "--zoo", tmp_path / "zoo")
    for command in (["ls"], ["verify"], ["collect", str(network), "--dry-run"]):
        with pytest.raises(SystemExit):
            cli.main(["zoo", *command, "--zoo", str(tmp_path / "zoo")])
        assert capsys.readouterr().out.strip()


def test_dry_run_writes_nothing(tmp_path: Path, network: Path, capsys: Capture) -> None:
    zoo = tmp_path / "zoo"
    code, entries, _ = run(capsys, "zoo", "collect", network, "--zoo", zoo, "--dry-run")
    assert (code, entries[0]["status"]) == (0, "added")
    assert not zoo.exists()


def test_refused_sources_say_why_and_stop_nothing_else(tmp_path: Path, network: Path, capsys: Capture) -> None:
    save_file({"w": torch.full((2, 2), float("nan"))}, network.with_name("nan.safetensors"))
    network.with_name("text.safetensors").write_text("no weights", encoding="utf-8")
    code, entries, _ = run(capsys, "zoo", "collect", network.parent, "--zoo", tmp_path / "zoo")
    assert code == 3
    statuses = {Path(entry["path"]).name: entry["status"] for entry in entries}
    assert statuses == {"nan.safetensors": "refused", "net.safetensors": "added", "text.safetensors": "refused"}
    assert all(entry["reason"] for entry in entries if entry["status"] == "refused")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["ls"], 3),
        (["show", "abc"], 3),
        (["verify"], 3),
        (["export", "abc", "out"], 3),
        (["build", "absent.yaml"], 2),
        (["build", "absent.yaml", "--engine", "cloud"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, command: list[str], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    found, document, err = run(capsys, "zoo", *command, "--zoo", "nothing")
    assert (found, document["error"]["exit_code"]) == (code, code)
    assert document["error"]["remedy"]
    assert err.startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


@pytest.mark.parametrize(("source", "code"), [("absent.safetensors", 2), ("empty", 3)])
def test_sources_without_weights_are_errors(tmp_path: Path, capsys: Capture, source: str, code: int) -> None:
    (tmp_path / "empty").mkdir()
    found, document, _ = run(capsys, "zoo", "collect", tmp_path / source, "--zoo", tmp_path / "zoo")
    assert found == code
    assert source in document["error"]["cause"]


def test_damage_is_found(tmp_path: Path, network: Path, capsys: Capture) -> None:
    zoo = tmp_path / "zoo"
    run(capsys, "zoo", "collect", network, "--zoo", zoo)
    blob = next(path for path in zoo.rglob("*.safetensors") if path.is_file())
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    code, verdict, _ = run(capsys, "zoo", "verify", "--zoo", zoo)
    assert (code, verdict["ok"], len(verdict["problems"])) == (3, False, 1)
