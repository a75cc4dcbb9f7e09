"""The zoo on disk: what goes in comes out, whole or not at all, and damage is seen."""

from __future__ import annotations

import errno
import os
import pickle
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.zoo.samples import adapter, mlp, same
from zoo import store
from zoo.errors import BadArtefact, UsageError, WeightgenError
from zoo.kinds import ORIGIN, dense
from zoo.types import Task, Weights
from zoo.zoo import Entry, Zoo


@pytest.fixture
def zoo(tmp_path: Path):
    with Zoo.open(tmp_path / "zoo", create=True) as opened:
        yield opened


def test_add_and_read_back(zoo: Zoo) -> None:
    weights = mlp()
    about = {"task": "t", "description": "d", "lineage": "l/0", "split": "train", "license": "MIT", "source": "s"}
    record, new = zoo.add(weights, **about, metrics={"val_accuracy": 0.5})
    assert new
    assert len(record.id) == 16
    assert {key: getattr(record, key) for key in about} == about
    assert (len(zoo), list(zoo), zoo.get(record.id[:4])) == (1, [record], record)
    assert zoo.get(record.id).metrics == {"val_accuracy": 0.5}
    back = zoo.weights(record, verify=True)
    assert back.layout == weights.layout
    assert same(dict(back.tensors), dict(weights.tensors))
    assert zoo.verify() == []


def test_the_same_weights_are_a_duplicate(zoo: Zoo) -> None:
    first, _ = zoo.add(mlp(), task="first")
    second, new = zoo.add(mlp(), task="second")
    assert not new
    assert second == first
    assert zoo.contains(mlp()) == first.id
    assert zoo.contains(mlp(1)) is None
    other, new = zoo.add(dense.from_state_dict(dict(mlp().tensors), architecture={"family": "mlp"}))
    assert new
    assert other.blob == first.blob
    assert other.layout.config == {"architecture": {"family": "mlp"}}


def test_roles_of_norm_layers() -> None:
    roles = {spec.name: (spec.layer, spec.role) for spec in mlp().layout.tensors}
    assert roles["fc1.weight"] == (0, "weight")
    assert roles["bn.weight"] == (1, "norm_weight")
    assert roles["bn.running_mean"] == (1, "running_mean")
    assert roles["fc2.weight"] == (2, "weight")


def test_filters_and_order(zoo: Zoo) -> None:
    zoo.add(mlp(0), lineage="b", split="val", task="x")
    zoo.add(mlp(1), lineage="a", split="train", task="x", license="MIT")
    zoo.add(adapter(), lineage="c", task="y")
    assert [record.lineage for record in zoo] == ["a", "b", "c"]
    assert [record.lineage for record in zoo.records(task="x", split="val")] == ["b"]
    assert [record.lineage for record in zoo.records(kind="lora")] == ["c"]
    assert [record.lineage for record in zoo.records(base_model="org/base")] == ["c"]
    assert [record.lineage for record in zoo.records(license="MIT")] == ["a"]
    assert zoo.records(lineage="none") == []
    zoo.set_splits({record.id: "test" for record in zoo})
    assert [record.lineage for record in zoo.records(split="test")] == ["a", "b", "c"]
    assert zoo.verify() == []


def test_ids_must_be_unique(zoo: Zoo) -> None:
    records = [zoo.add(mlp(seed))[0] for seed in range(40)]
    starts = [record.id[0] for record in records]
    twice = next(start for start in starts if starts.count(start) > 1)
    with pytest.raises(UsageError, match="is ambiguous"):
        zoo.get(twice)
    for wrong in ("", "zz"):
        with pytest.raises(UsageError, match=f"no record has the id '{wrong}'"):
            zoo.get(wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "dev"}, "unknown split 'dev'"),
        ({"extra_files": {"../x": b""}}, "not a plain file name"),
        (
            {"weights": dense.from_state_dict({"a": torch.tensor([float("nan")])})},
            "'a' of the new entry holds 1 values",
        ),
        ({"weights": Weights(mlp().layout, {n: t.double() for n, t in mlp().tensors.items()})}, "its layout says F32"),
        ({"weights": Weights(mlp().layout, dict(reversed(mlp().tensors.items())))}, "not in the order of their layout"),
    ],
)
def test_entries_that_cannot_be_kept_are_refused(zoo: Zoo, change: dict, message: str) -> None:
    with pytest.raises(WeightgenError, match=message):
        zoo.add_many([Entry(mlp(1)), Entry(**{"weights": mlp(), **change})])
    assert len(zoo) == 0


def test_open_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(BadArtefact, match=r"does not exist\. make one with: weightgen zoo build"):
        Zoo.open(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadArtefact, match="is empty"):
        Zoo.open(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadArtefact, match="is a file, not a folder"):
        Zoo.open(tmp_path / "file", create=True)
    with pytest.raises(BadArtefact, match="holds other files and no zoo"):
        Zoo.open(tmp_path, create=True)
    Zoo.open(tmp_path / "empty", create=True).close()
    Zoo.open(tmp_path / "empty").close()


def test_newer_and_damaged_catalogues_are_refused(tmp_path: Path) -> None:
    Zoo.open(tmp_path / "zoo", create=True).close()
    file = tmp_path / "zoo/catalog.sqlite"
    database = sqlite3.connect(file)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(BadArtefact, match=r"has version 99, this program knows versions up to 2\. install a newer"):
        Zoo.open(tmp_path / "zoo")
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(BadArtefact, match="is damaged"):
        Zoo.open(tmp_path / "zoo")


def test_tasks_data_sets_failures_and_notes(zoo: Zoo) -> None:
    tasks = [
        Task("b", "d", "digits", (0, 1), ("zero", "one"), "train"),
        Task("a", "d", "digits", (2,), ("two",), "test"),
    ]
    zoo.put_tasks(tasks)
    assert zoo.tasks() == tasks
    assert zoo.tasks("test") == [tasks[1]]
    assert zoo.task("b") == tasks[0]
    with pytest.raises(UsageError, match="no task is named 'c'"):
        zoo.task("c")
    data = {"images": torch.arange(6, dtype=torch.uint8), "labels": torch.tensor([1, 2])}
    zoo.put_dataset("digits", data, description="d", license="MIT")
    zoo.put_dataset("digits", data, description="better words", license="MIT")
    assert same(zoo.dataset("digits"), data)
    assert zoo.dataset_names() == ["digits"]
    with pytest.raises(UsageError, match="stored already with other content"):
        zoo.put_dataset("digits", {"images": torch.ones(1)}, description="d")
    with pytest.raises(UsageError, match="known are digits"):
        zoo.dataset("none")
    zoo.record_failure("l/1", "diverged")
    assert zoo.failures() == {"l/1": "diverged"}
    zoo.put_meta("recipe", {"seed": 1})
    assert zoo.meta("recipe") == {"seed": 1}
    assert zoo.meta("none") is None
    assert zoo.stats()["datasets"] == 1
    assert zoo.verify() == []


def test_verify_finds_every_flipped_byte(zoo: Zoo) -> None:
    zoo.add(mlp(), extra_files={"README.md": b"# Text\n"})
    zoo.put_dataset("d", {"x": torch.ones(2)}, description="d")
    for file in sorted(f for f in zoo.store.blobs.rglob("*") if f.is_file()):
        sound = file.read_bytes()
        for position in range(0, len(sound), max(1, len(sound) // 40)):
            file.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
            assert any("damaged" in problem for problem in zoo.verify()), (file, position)
        file.write_bytes(sound)
    assert zoo.verify() == []


def test_verify_finds_changed_rows_missing_blobs_and_temporary_files(zoo: Zoo) -> None:
    record, _ = zoo.add(mlp(), task="cats")
    database = sqlite3.connect(zoo.path / "catalog.sqlite")
    database.execute("UPDATE records SET task = 'dogs'")
    database.commit()
    database.close()
    assert zoo.verify() == [f"catalogue: row {record.id!r} of records is damaged"]
    zoo.store.path(record.blob).unlink()
    (zoo.store.temporary / "left").write_text("x")
    text = "\n".join(zoo.verify())
    assert "temporary file" in text
    assert f"blob {record.blob[:16]} is missing" in text
    with pytest.raises(BadArtefact, match="is missing"):
        zoo.weights(record)


def test_remove_keeps_what_others_use(zoo: Zoo) -> None:
    extra = {"README.md": b"text"}
    first, _ = zoo.add(mlp(), extra_files=extra)
    second, _ = zoo.add(dense.from_state_dict(dict(mlp().tensors), architecture={"a": 1}), extra_files=extra)
    zoo.remove(first.id)
    assert zoo.verify() == []
    assert zoo.extra_files(second) == extra
    zoo.remove(second.id)
    assert len(zoo) == 0
    assert not [file for file in zoo.store.blobs.rglob("*") if file.is_file()]


def test_export_never_overwrites(zoo: Zoo, tmp_path: Path) -> None:
    record, _ = zoo.add(mlp(), extra_files={"README.md": b"text"})
    assert zoo.export(record.id, tmp_path / "a/b") == [tmp_path / "a/b/README.md", tmp_path / "a/b/model.safetensors"]
    (tmp_path / "a/b/other").write_text("mine")
    (tmp_path / "a/b/README.md").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        zoo.export(record.id, tmp_path / "a/b")
    zoo.export(record.id, tmp_path / "a/b", force=True)
    assert (tmp_path / "a/b/README.md").read_text() == "text"
    assert (tmp_path / "a/b/other").read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b"]
    with pytest.raises(UsageError, match="has 2 files"):
        zoo.export(record.id, tmp_path / "one.safetensors")
    origin = b'{"files": [{"name": "net.safetensors", "metadata": {}}], "index": null}'
    single, _ = zoo.add(mlp(1), extra_files={ORIGIN: origin})
    assert zoo.export(single.id, tmp_path / "one.safetensors") == [tmp_path / "one.safetensors"]
    assert [path.name for path in zoo.export(single.id, tmp_path / "folder")] == ["net.safetensors"]


def test_a_full_disk_leaves_nothing_half_written(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, _ = zoo.add(mlp())

    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(store.safefile, "write", full)
        with pytest.raises(WeightgenError, match=r"No space left on device\. free some space"):
            zoo.add_many([Entry(mlp(1))])
        with pytest.raises(WeightgenError, match="No space left on device"):
            zoo.export(record.id, tmp_path / "out")
    assert not list(zoo.store.temporary.iterdir())
    assert not (tmp_path / "out").exists()
    assert len(zoo) == 1
    assert zoo.verify() == []


KILLED = """
import os, sys
from tests.zoo.samples import mlp
from zoo import store, zoo as module
point, path = sys.argv[1:]
def die(*a, **k): os._exit(9)
with module.Zoo.open(path) as opened:
    if point == "write": store.safefile.write = die
    if point == "rename": store.Batch.commit = die
    if point == "insert": opened._catalog.put_record = die
    if point == "folder": store.flush_all = lambda paths: die() if any(p.is_dir() for p in paths) else None
    opened.add_many([module.Entry(mlp(seed)) for seed in range(1, 4)])
"""


@pytest.mark.parametrize("point", ["write", "rename", "folder", "insert"])
def test_a_killed_writer_loses_nothing_that_was_there(zoo: Zoo, point: str) -> None:
    zoo.add(mlp())
    done = subprocess.run(
        [sys.executable, "-c", KILLED, point, str(zoo.path)], cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 9
    assert len(zoo) == 1
    assert all("temporary file" in problem for problem in zoo.verify())
    assert all(new for _, new in zoo.add_many([Entry(mlp(seed)) for seed in range(1, 4)]))
    assert zoo.sweep() == {"write": 1, "rename": 3}.get(point, 0)
    assert zoo.verify() == []


def test_threads_and_pickles(zoo: Zoo) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: zoo.add(mlp(seed % 6))[1], range(24)))
    assert sum(found) == len(zoo) == 6
    with pickle.loads(pickle.dumps(zoo)) as again:
        assert len(again) == 6
