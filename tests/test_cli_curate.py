"""Keeping a zoo in order from the command line: filters, numbers, twins, removal, dry runs, tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.test_cli_zoo import Capture, run
from tests.zoo.samples import factors, write_adapter
from weightgen import cli
from zoo.kinds import lora


@pytest.fixture
def zoo(tmp_path: Path, capsys: Capture) -> Path:
    """Three adapters, the last one a twin of the first."""
    for seed, name in enumerate(("a", "b")):
        folder = write_adapter(tmp_path / "in" / name, factors(seed))
        about = {"task": name, "license": "MIT", "metrics": {"val_accuracy": 0.8 + seed / 10}, "dataset": "d"}
        (folder / "weightgen.json").write_text(json.dumps(about))
    twin = factors(0)
    for a, b in lora.pairs(twin):
        twin[a], twin[b] = twin[a] * 2, twin[b] / 2
    write_adapter(tmp_path / "in/c", twin, base_model_name_or_path="org/base")
    code, entries, _ = run(capsys, "zoo", "collect", tmp_path / "in", "--zoo", tmp_path / "zoo")
    assert code == 0
    assert [entry["reason"] for entry in entries] == [None, None, f"twin of {entries[0]['id']}: same up to symmetry"]
    return tmp_path / "zoo"


def test_filters_and_numbers(zoo: Path, capsys: Capture) -> None:
    for options, expected in (
        (["--metric", "val_accuracy>=0.9"], ["b"]),
        (["--metric", "val_accuracy>0.5", "--metric", "val_accuracy<0.9"], ["a"]),
        (["--license", "MIT", "--dataset", "d"], ["a", "b"]),
        (["--base", "org/base", "--kind", "lora", "--task", "b"], ["b"]),
        (["--license", "none"], []),
    ):
        code, records, _ = run(capsys, "zoo", "ls", "--zoo", zoo, *options)
        assert (code, sorted(record["task"] for record in records)) == (0, expected)
        code, stats, _ = run(capsys, "zoo", "stats", "--zoo", zoo, *options)
        assert (code, stats["records"], stats["parameters"]) == (0, len(expected), 48 * len(expected))
    code, stats, _ = run(capsys, "zoo", "stats", "--zoo", zoo)
    assert (stats["kinds"], stats["tasks"]) == ({"lora": 3}, {"a": 1, "b": 1, "not stated": 1})
    assert (stats["licenses"], stats["base_models"]) == ({"MIT": 2, "not stated": 1}, {"org/base": 3})
    assert run(capsys, "zoo", "ls", "--zoo", zoo, "--metric", "good")[0] == 2


def test_twins_are_reported_then_removed(zoo: Path, capsys: Capture) -> None:
    code, found, _ = run(capsys, "zoo", "dedupe", "--zoo", zoo)
    assert (code, len(found["twins"]), found["applied"]) == (0, 1, False)
    (twin,) = found["twins"]
    assert twin["how"] == "same up to symmetry"
    assert len(run(capsys, "zoo", "ls", "--zoo", zoo)[1]) == 3
    code, again, _ = run(capsys, "zoo", "dedupe", "--zoo", zoo, "--apply")
    assert (code, again["twins"], again["applied"]) == (0, [twin], True)
    records = run(capsys, "zoo", "ls", "--zoo", zoo)[1]
    assert twin["of"] in [record["id"] for record in records]
    assert twin["id"] not in [record["id"] for record in records]
    assert run(capsys, "zoo", "dedupe", "--zoo", zoo)[1]["twins"] == []
    assert run(capsys, "zoo", "verify", "--zoo", zoo)[1]["ok"]


def test_removal(zoo: Path, capsys: Capture) -> None:
    key = run(capsys, "zoo", "ls", "--zoo", zoo, "--task", "a")[1][0]["id"]
    code, removed, _ = run(capsys, "zoo", "rm", key[:8], "--zoo", zoo)
    assert (code, removed["id"], removed["task"], removed["dataset"]) == (0, key, "a", "d")
    assert run(capsys, "zoo", "rm", key, "--zoo", zoo)[0] == 2
    assert len(run(capsys, "zoo", "ls", "--zoo", zoo)[1]) == 2
    assert run(capsys, "zoo", "verify", "--zoo", zoo)[1]["ok"]


def test_people_get_text(zoo: Path, tmp_path: Path, capsys: Capture) -> None:
    for command in (["stats"], ["dedupe"], ["ls"], ["collect", str(tmp_path / "in"), "--dry-run"]):
        with pytest.raises(SystemExit):
            cli.main(["zoo", *command, "--zoo", str(zoo)])
        assert capsys.readouterr().out.strip()


def test_dry_runs_list_files_bytes_and_parameters(tmp_path: Path, capsys: Capture) -> None:
    folder = write_adapter(tmp_path / "in/a")
    save_file({"w": torch.full((2,), float("nan"))}, tmp_path / "in/bad.safetensors")
    code, entries, _ = run(capsys, "zoo", "collect", tmp_path / "in", "--zoo", tmp_path / "zoo", "--dry-run")
    assert code == 3
    assert entries[0]["files"] == ["bad.safetensors"]
    assert (entries[0]["parameters"], entries[0]["status"]) == (0, "refused")
    files = ["adapter_config.json", "adapter_model.safetensors"]
    assert (entries[1]["files"], entries[1]["parameters"]) == (files, 48)
    assert entries[1]["bytes"] == sum((folder / name).stat().st_size for name in files)
    assert not (tmp_path / "zoo").exists()


def test_tables_of_metadata(tmp_path: Path, capsys: Capture) -> None:
    write_adapter(tmp_path / "in/a")
    (tmp_path / "t.csv").write_text("path,task\nin/a,mine\n")
    command = ["zoo", "collect", tmp_path / "in", "--zoo", tmp_path / "zoo", "--metadata", tmp_path / "t.csv"]
    assert run(capsys, *command)[0] == 0
    assert run(capsys, "zoo", "ls", "--zoo", tmp_path / "zoo", "--task", "mine")[1]
    (tmp_path / "t.csv").write_text("path,tusk\nin/a,mine\n")
    code, document, _ = run(capsys, *command)
    assert (code, "unknown columns: 'tusk'" in document["error"]["cause"]) == (2, True)


def test_a_hub_out_of_reach_is_a_network_error(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def download(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    zoo = tmp_path / "zoo"
    code, entries, _ = run(capsys, "zoo", "collect", "org/name", "--zoo", zoo)
    assert (code, entries[0]["status"], zoo.exists()) == (5, "refused", False)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"x")
    assert run(capsys, "zoo", "collect", bad, "org/name", "--zoo", zoo)[0] == 3
    assert not zoo.exists()
    good = tmp_path / "good.safetensors"
    save_file({"w": torch.ones(1)}, good)
    assert run(capsys, "zoo", "collect", good, "org/name", "--zoo", zoo)[0] == 5


def test_sources_and_the_zoo_are_checked_before_anything_is_made(tmp_path: Path, capsys: Capture) -> None:
    good = tmp_path / "good.safetensors"
    save_file({"w": torch.ones(1)}, good)
    assert run(capsys, "zoo", "collect", good, tmp_path / "none.pt", "--zoo", tmp_path / "zoo")[0] == 2
    assert not (tmp_path / "zoo").exists()
    assert run(capsys, "zoo", "collect", good, "--zoo", good)[0] == 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine")
    assert run(capsys, "zoo", "collect", good, "--zoo", tmp_path / "other")[0] == 3


def test_checkpoints_of_pytorch_come_back_as_safetensors(tmp_path: Path, capsys: Capture) -> None:
    state = {
        "module.z": torch.ones(2).half(),
        "module.bn.num_batches_tracked": torch.tensor(1 << 40),
        "module.a": torch.randn(2, 3).T,
    }
    for i in range(30):
        extra = {"epoch": i, "optimizer": {"state": {}, "param_groups": []}}
        torch.save({"state_dict": {**state, "module.i": torch.tensor(i)}, **extra}, tmp_path / f"{i:02}.pt")
    code, entries, _ = run(capsys, "zoo", "collect", *sorted(tmp_path.glob("*.pt")), "--zoo", tmp_path / "zoo")
    assert (code, {entry["status"] for entry in entries}) == (0, {"added"})
    assert entries[7]["reason"] == "taken from state_dict; left aside: epoch, optimizer"
    code, written, _ = run(capsys, "zoo", "export", entries[7]["id"], tmp_path / "out", "--zoo", tmp_path / "zoo")
    assert [Path(file).name for file in written["files"]] == ["07.safetensors"]
    back = load_file(tmp_path / "out/07.safetensors")
    for name, tensor in {**state, "module.i": torch.tensor(7)}.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    header = (tmp_path / "out/07.safetensors").read_bytes()
    positions = [header.index(name.encode()) for name in (*state, "module.i")]
    assert positions == sorted(positions)
