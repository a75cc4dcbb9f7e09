"""Collecting: every item gets an answer, and what was answered is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.zoo.samples import CONFIG, factors, mlp, write_adapter
from zoo import collect as module
from zoo import sources
from zoo.collect import collect
from zoo.errors import BadArtefact, NetworkError, UsageError
from zoo.sidecar import read_about
from zoo.zoo import Zoo


@pytest.fixture
def zoo(tmp_path: Path):
    with Zoo.open(tmp_path / "zoo", create=True) as opened:
        yield opened


def test_a_folder_of_everything(zoo: Zoo, tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_adapter(source / "adapter")
    write_adapter(source / "wrong", r=3)
    (source / "wrong/checkpoint-1").mkdir()
    save_file({"a": torch.ones(1)}, source / "wrong/checkpoint-1/model.safetensors")
    (source / "wrong/optimizer.pt").write_bytes(b"x")
    save_file(dict(mlp().tensors), source / "net.safetensors", {"format": "pt"})
    save_file({"a": torch.tensor([float("nan")])}, source / "bad.safetensors")
    (source / "notes.txt").write_text("nothing")
    (source / "copy.safetensors").write_bytes((source / "net.safetensors").read_bytes())
    progress: list[tuple[int, int]] = []
    found = collect([source], zoo, on_progress=lambda done, total: progress.append((done, total)))
    assert [(Path(c.path).name, c.status, c.kind) for c in found] == [
        ("bad.safetensors", "refused", "dense"),
        ("copy.safetensors", "added", "dense"),
        ("net.safetensors", "duplicate", "dense"),
        ("adapter", "added", "lora"),
        ("wrong", "refused", "lora"),
        ("model.safetensors", "added", "dense"),
    ]
    assert "tensor 'a'" in str(found[0].reason)
    assert "has rank 2, its configuration says {3}" in str(found[4].reason)
    assert found[1].id == found[2].id
    assert progress[-1] == (6, 6)
    assert len(zoo) == 3
    assert zoo.verify() == []
    zoo.export(str(found[1].id), tmp_path / "out")
    assert (tmp_path / "out/copy.safetensors").read_bytes() == (source / "net.safetensors").read_bytes()
    again = collect([source], zoo)
    assert [c.status for c in again if c.status != "refused"] == ["duplicate"] * 4


def test_dry_runs_write_nothing(zoo: Zoo, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    assert [c.status for c in collect([folder], zoo, dry_run=True)] == ["added"]
    assert [c.status for c in collect([folder], None, dry_run=True)] == ["added"]
    assert len(zoo) == 0
    collect([folder], zoo)
    assert [c.status for c in collect([folder], zoo, dry_run=True)] == ["duplicate"]
    with pytest.raises(UsageError, match="there is no zoo to collect into"):
        collect([folder], None)


def test_sharded_checkpoints_are_one_item(zoo: Zoo, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    save_file({"a": torch.ones(1)}, source / "m-1.safetensors")
    save_file({"b": torch.ones(2)}, source / "m-2.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}
    (source / "m.safetensors.index.json").write_text(json.dumps(index))
    (found,) = collect([source], zoo)
    written = zoo.export(str(found.id), tmp_path / "out")
    assert [path.name for path in written] == ["m-1.safetensors", "m-2.safetensors", "m.safetensors.index.json"]
    for name in ("m-1.safetensors", "m-2.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_links_that_lead_outside_are_refused(zoo: Zoo, tmp_path: Path) -> None:
    outside = write_adapter(tmp_path / "outside")
    source = tmp_path / "in"
    write_adapter(source / "a")
    (source / "folder").symlink_to(outside, target_is_directory=True)
    (source / "file.safetensors").symlink_to(outside / "adapter_model.safetensors")
    (source / "a/adapter_config.json").unlink()
    (source / "a/adapter_config.json").symlink_to(outside / "adapter_config.json")
    (source / "loop").symlink_to(source, target_is_directory=True)
    found = collect([source], zoo)
    assert sorted((Path(c.path).name, c.status) for c in found) == [
        ("a", "refused"),
        ("file.safetensors", "refused"),
        ("folder", "refused"),
    ]
    assert all("outside" in str(c.reason) or "out of" in str(c.reason) for c in found)


def test_missing_and_empty_sources(zoo: Zoo, tmp_path: Path) -> None:
    for name in ("none.safetensors", str(tmp_path / "none"), "a/b/c"):
        with pytest.raises(UsageError, match="does not exist"):
            collect([name], zoo)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadArtefact, match="holds no weights"):
        collect([tmp_path / "empty"], zoo)
    (tmp_path / "text.txt").write_text("x")
    (found,) = collect([tmp_path / "text.txt"], zoo)
    assert found.status == "refused"


def test_hub_ids(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple] = []
    cached = tmp_path / "hub/models--org--name"
    snapshot = cached / "snapshots/abc"
    write_adapter(snapshot)
    (cached / "blobs").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (snapshot / name).rename(cached / "blobs" / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)

    def download(
        repository: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        asked.append((repository, revision, "*.safetensors" in allow_patterns, "*.py" in allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (found,) = collect(["org/name@v1"], zoo)
    assert (found.path, found.status, found.kind) == ("org/name@v1", "added", "lora")
    assert asked == [("org/name", "v1", True, False)]
    assert zoo.get(str(found.id)).source == "org/name@v1"


def test_the_hub_cannot_be_reached(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (found,) = collect(["org/name"], zoo)
    assert found.status == "refused"
    assert "cannot be fetched from the Hugging Face Hub (ConnectionError: no route to host)" in str(found.reason)
    with pytest.raises(NetworkError):
        sources.download("org/name")


def test_metadata_beside_adapters(zoo: Zoo, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", base_model_name_or_path=None)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nbase_model:\n- org/card\n---\n# Card\n")
    metadata = {"task": "cola", "description": "old", "val_accuracy": 0.5, "seed": 0, "bad_loss": float("nan")}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    (folder / "weightgen.json").write_text(json.dumps({"description": "new", "split": "val", "metrics": {"f1": 1}}))
    (found,) = collect([folder], zoo)
    record = zoo.get(str(found.id))
    assert (record.task, record.description, record.split, record.license) == ("cola", "new", "val", "apache-2.0")
    assert record.metrics == {"val_accuracy": 0.5, "f1": 1.0}
    assert record.layout.base_model == "org/card"
    assert record.layout.config["peft"] == {**CONFIG, "base_model_name_or_path": None}
    assert record.lineage is None


def test_metadata_beside_files(zoo: Zoo, tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(1)}, tmp_path / "net.safetensors")
    about = {"architecture": {"family": "mlp"}, "base_model": "org/base", "license": ["MIT"]}
    (tmp_path / "net.weightgen.json").write_text(json.dumps(about))
    (found,) = collect([tmp_path / "net.safetensors"], zoo)
    record = zoo.get(str(found.id))
    assert record.layout.config == {"architecture": {"family": "mlp"}}
    assert (record.layout.base_model, record.license) == ("org/base", "MIT")


def test_broken_metadata_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\n: [\n---\n")
    (tmp_path / "metadata.json").write_text("[1]")
    (tmp_path / "weightgen.json").write_bytes(b"\xff\xfe{")
    about = read_about(tmp_path)
    assert (about.task, about.license, about.metrics) == (None, None, {})


COLLECTOR = """
import sys
from zoo.collect import collect
from zoo.zoo import Zoo
with Zoo.open(sys.argv[2], create=True) as zoo:
    print(sum(c.status == "added" for c in collect([sys.argv[1]], zoo)))
"""


def test_two_collectors_at_once(tmp_path: Path) -> None:
    for seed in range(30):
        write_adapter(tmp_path / f"in/{seed}", factors(seed))
    command = [sys.executable, "-c", COLLECTOR, str(tmp_path / "in"), str(tmp_path / "zoo")]
    root = Path(__file__).parents[2]
    both = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    added = [int(process.communicate(timeout=60)[0]) for process in both]
    assert sum(added) == 30
    with Zoo.open(tmp_path / "zoo") as zoo:
        assert len(zoo) == 30
        assert zoo.verify() == []


def test_an_interrupted_collection_keeps_what_it_acknowledged(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_ENTRIES", 2)
    for seed in range(5):
        write_adapter(tmp_path / f"in/{seed}", factors(seed))

    def interrupt(done: int, _: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect([tmp_path / "in"], zoo, on_progress=interrupt)
    assert len(zoo) == 4
    assert [c.status for c in collect([tmp_path / "in"], zoo)] == ["duplicate"] * 4 + ["added"]


def test_links_and_special_files_that_lead_nowhere_stop_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file({"w": torch.ones(2)}, folder / "good.safetensors")
    (folder / "itself.safetensors").symlink_to("itself.safetensors")
    (folder / "gone.safetensors").symlink_to("nowhere")
    (folder / "up").symlink_to("..")
    (folder / "round").symlink_to(".")
    os.mkfifo(folder / "pipe.safetensors")
    found = {Path(result.path).name: result for result in collect([folder], None, dry_run=True)}
    assert found.pop("good.safetensors").status == "added"
    assert found.keys() == {"itself.safetensors", "gone.safetensors", "pipe.safetensors", "up"}
    assert all(result.status == "refused" for result in found.values())
    assert "leads nowhere" in str(found["itself.safetensors"].reason)
    for source, message in (("", "is empty"), (" ", "is empty")):
        with pytest.raises(UsageError, match=message):
            collect([source], None, dry_run=True)
    for name in ("itself.safetensors", "gone.safetensors", "pipe.safetensors"):
        with pytest.raises(UsageError, match="neither a file nor a folder"):
            collect([folder / name], None, dry_run=True)
