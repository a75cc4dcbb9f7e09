"""Data that people bring: images and texts in every documented format, split once, refused with the reason."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoo.build.images import load_all, resized
from zoo.build.sources import load_source
from zoo.build.text_tasks import load_text_tasks
from zoo.errors import BadArtefact, UsageError
from zoo.tasks import TEST, TRAIN, VAL
from zoo.texts import pack, unpack

RNG = np.random.default_rng(0)
Y = np.arange(60) % 3


def save_npz(path: Path, shape: tuple[int, ...] = (8, 8), **change: Any) -> Path:
    x = RNG.integers(0, 256, (90, *shape), dtype=np.uint8)
    arrays = {"train_x": x[:60], "train_y": Y, "test_x": x[60:], "test_y": Y[:30], "classes": np.array(["a", "b", "c"])}
    np.savez(path, **{k: v for k, v in {**arrays, **change}.items() if v is not None})
    return path


# images


def test_npz_keeps_bytes_names_and_the_test_part(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "mine.npz")
    (tmp_path / "index.json").write_text(json.dumps({"mine": {"description": "three things", "license": "CC0-1.0"}}))
    data = load_source(str(path), 0.2, 0.5, 1)
    assert (data.name, data.description, data.license) == ("mine", "three things", "CC0-1.0")
    assert (data.class_names, data.x.dtype, tuple(data.x.shape)) == (("a", "b", "c"), torch.uint8, (90, 8, 8))
    assert [int((data.part == part).sum()) for part in (TRAIN, VAL, TEST)] == [48, 12, 30]
    assert (data.part[60:] == TEST).all()
    assert data.y[data.part == VAL].bincount().tolist() == [4, 4, 4]
    assert data.part.equal(load_source(str(path), 0.2, 0.5, 1).part)
    assert not data.part.equal(load_source(str(path), 0.2, 0.5, 2).part)


def test_without_a_test_part_one_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "plain.npz"
    np.savez(path, x=RNG.random((60, 5)), y=Y)
    data = load_source(str(path), 0.2, 0.3, 0)
    assert [int((data.part == part).sum()) for part in (TRAIN, VAL, TEST)] == [30, 12, 18]
    assert data.x.dtype == torch.float32
    assert data.class_names == ("0", "1", "2")


def test_colours_come_first_and_single_channels_go(tmp_path: Path) -> None:
    shapes = {"last": (8, 6, 3), "first": (3, 8, 6), "one": (8, 6, 1)}
    folder = {name: save_npz(tmp_path / f"{name}.npz", shape) for name, shape in shapes.items()}
    found = {data.name: data.x for data in load_all([str(tmp_path)], 0.1, 0.1, 0, None)}
    assert {name: tuple(x.shape[1:]) for name, x in found.items()} == {
        "last": (3, 8, 6),
        "first": (3, 8, 6),
        "one": (8, 6),
    }
    with np.load(folder["last"]) as file:
        assert found["last"][5, 1].numpy().tolist() == file["train_x"][5, :, :, 1].tolist()


def test_images_can_be_resized(tmp_path: Path) -> None:
    data = load_source(str(save_npz(tmp_path / "a.npz", (8, 8, 3))), 0.2, 0.2, 0)
    half = resized(data, 4)
    assert (half.x.dtype, tuple(half.x.shape)) == (torch.uint8, (90, 3, 4, 4))
    mean = data.x[:, :, :2, :2].float().mean((2, 3))
    assert (half.x[:, :, 0, 0].float() - mean).abs().max() <= 0.5
    assert tuple(resized(load_source("sklearn-digits", 0.2, 0.2, 0), 28).x.shape) == (1797, 28, 28)
    assert resized(data, 8) is data


def test_csv_of_image_files(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    x = RNG.integers(0, 256, (12, 5, 5, 3), dtype=np.uint8)
    for i, pixels in enumerate(x):
        image.fromarray(pixels).save(tmp_path / f"{i}.png")
    rows = [[f"{i}.png", ("cat", "dog")[i % 2], "test" if i >= 8 else "train"] for i in range(12)]
    with (tmp_path / "pets.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "label", "split"], *rows])
    data = load_source(str(tmp_path / "pets.csv"), 0.25, 0.2, 0)
    assert data.class_names == ("cat", "dog")
    assert data.x.equal(torch.from_numpy(x).movedim(-1, 1))
    assert data.part.bincount().tolist() == [6, 2, 4]


@pytest.mark.parametrize(
    "change",
    [{"train_y": None}, {"train_y": Y[:50]}, {"train_y": Y - 1}, {"test_y": Y[:30] + 1}, {"train_x": None}],
)
def test_wrong_images_are_refused_with_the_file(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(BadArtefact, match=r"bad\.npz holds no labelled images"):
        load_source(str(save_npz(tmp_path / "bad.npz", **change)), 0.2, 0.2, 0)


def test_files_that_are_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK not a zip")
    with pytest.raises(BadArtefact, match="labelled images"):
        load_source(str(tmp_path / "bad.npz"), 0.2, 0.2, 0)
    np.savez(tmp_path / "code.npz", train_x=np.array([{}], dtype=object), train_y=np.zeros(1))
    with pytest.raises(BadArtefact, match="labelled images"):
        load_source(str(tmp_path / "code.npz"), 0.2, 0.2, 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no images"):
        load_all([str(tmp_path / "empty")], 0.1, 0.1, 0, None)
    save_npz(tmp_path / "empty" / "a.npz")
    with pytest.raises(UsageError, match="two data sets are named 'a'"):
        load_all([str(tmp_path / "empty"), str(tmp_path / "empty")], 0.1, 0.1, 0, None)


def test_images_without_a_label_are_refused_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "pets.csv").write_text("file,label\na.png,cat\nb.png,\n")
    with pytest.raises(BadArtefact, match="1 rows have no label, the first of them in line 3"):
        load_source(str(tmp_path / "pets.csv"), 0.2, 0.2, 0)


# texts

TASK = {
    "name": "weather",
    "description": "Is it raining?",
    "labels": [{"name": "no", "text": "dry weather"}, {"name": "yes", "text": "rain or snow"}],
    "train": [[f"text {i} ü", i % 2] for i in range(20)],
    "validation": [["sun", 0]],
    "test": [["hail", 1], ["", 0]],
    "source": {"licence": "CC BY 4.0"},
}


def save_task(path: Path, **change: Any) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump({**TASK, **change}, file)
    return path


def test_json_tasks_keep_everything(tmp_path: Path) -> None:
    save_task(tmp_path / "weather.json.gz")
    (tmp_path / "index.json").write_text("[]")
    (task,) = load_text_tasks([str(tmp_path)], 0.2, 0)
    assert (task.name, task.description, task.license) == ("weather", "Is it raining?", "CC BY 4.0")
    assert (task.label_names, task.label_texts) == (("no", "yes"), ("dry weather", "rain or snow"))
    assert task.part.bincount().tolist() == [20, 1, 2]
    assert task.select(TEST)[0] == ["hail", ""]
    stored = task.tensors()
    assert unpack(stored) == list(task.texts)
    assert unpack(stored, "label") == list(task.label_texts)


def test_validation_is_taken_where_there_is_none(tmp_path: Path) -> None:
    (task,) = load_text_tasks([str(save_task(tmp_path / "a.json.gz", validation=[]))], 0.2, 0)
    assert task.part.bincount().tolist() == [16, 4, 2]


def test_csv_tasks(tmp_path: Path) -> None:
    (tmp_path / "mood.csv").write_text('text,label,split\n"good, very",happy,train\nbad,sad,train\nmeh,sad,test\n')
    (task,) = load_text_tasks([str(tmp_path / "mood.csv")], 0.1, 0)
    assert (task.name, task.label_texts, task.license) == ("mood", ("happy", "sad"), None)
    assert task.texts == ("good, very", "bad", "meh")
    assert (task.y.tolist(), task.part.tolist()) == ([0, 1, 1], [TRAIN, TRAIN, TEST])


@pytest.mark.parametrize(
    "change", [{"labels": None}, {"train": []}, {"train": [["a", 2]]}, {"labels": [{"name": "x"}]}]
)
def test_wrong_tasks_are_refused_with_the_file(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(BadArtefact, match=r"bad\.json\.gz is no text task"):
        load_text_tasks([str(save_task(tmp_path / "bad.json.gz", **change))], 0.2, 0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has nothing and 0 rows"),
        ("text,label\n", "has the columns 'text', 'label' and 0 rows"),
        ("text;label\na;x\nb;y\n", "has the columns 'text;label' and 2 rows"),
        ('text,label\n"a\nb",x\nc,\nd\n', "2 rows have no label, the first of them in line 4"),
        ("text,label\na,x\nb,x\n", "two labels or more and has 1"),
        ("text,label,split\na,x,test\nb,y,test\n", "no examples for training"),
        ("text,label,split\na,x,dev2\nb,y,test\n", "unknown split 'dev2'"),
    ],
)
def test_wrong_csv_tasks_are_refused_with_what_is_wrong(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(BadArtefact, match=words):
        load_text_tasks([str(tmp_path / "bad.csv")], 0.2, 0)


def test_labels_of_csv_tasks_are_read_as_words(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na, lost_card\nb,lost_card\nc,new card\n")
    (task,) = load_text_tasks([str(tmp_path / "a.csv")], 0.2, 0)
    assert (task.label_names, task.label_texts) == (("lost_card", "new card"), ("lost card", "new card"))


def test_missing_and_doubled_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="do not exist"):
        load_text_tasks([str(tmp_path / "none.csv")], 0.2, 0)
    with pytest.raises(UsageError, match="holds no text tasks"):
        load_text_tasks([str(tmp_path)], 0.2, 0)
    path = str(save_task(tmp_path / "a.json.gz"))
    with pytest.raises(UsageError, match="two tasks are named 'weather'"):
        load_text_tasks([path, path], 0.2, 0)


def test_packed_texts_survive_whatever_they_are() -> None:
    for texts in ([], [""], ["", "ä\0\n", "🌧", ""]):
        assert unpack(pack(texts)) == texts
    with pytest.raises(BadArtefact, match="no texts named 'other'"):
        unpack(pack(["a"]), "other")


# folders of Hugging Face datasets


def save_arrow(folder: Path, columns: dict[str, Any], features: dict[str, Any]) -> None:
    """What ``Dataset.save_to_disk`` writes."""
    arrow = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True)
    table = arrow.table(columns)
    with arrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features, "license": "MIT"}))


LABEL = {"label": {"names": ["neg_ative", "pos"], "_type": "ClassLabel"}}


def test_arrow_folders_of_texts(tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    for split, n in (("train", 10), ("test", 4)):
        save_arrow(
            folder / split, {"text": [f"{split} {i}" for i in range(n)], "label": [i % 2 for i in range(n)]}, LABEL
        )
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    (task,) = load_text_tasks([str(tmp_path)], 0.2, 0)
    assert (task.name, task.license, task.label_texts) == ("reviews", "MIT", ("neg ative", "pos"))
    assert task.part.bincount().tolist() == [8, 2, 4]
    assert task.select(TEST)[0] == [f"test {i}" for i in range(4)]
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["../train"]}))
    with pytest.raises(BadArtefact, match="damaged"):
        load_text_tasks([str(folder)], 0.2, 0)


def test_arrow_rows_without_a_label_are_refused(tmp_path: Path) -> None:
    save_arrow(tmp_path / "mood", {"text": ["a", "b", "c"], "label": ["x", None, "y"]}, {})
    with pytest.raises(BadArtefact, match="1 rows of train have no text or no label"):
        load_text_tasks([str(tmp_path / "mood")], 0.2, 0)


def test_arrow_folders_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    x = RNG.integers(0, 256, (12, 4, 4), dtype=np.uint8)
    encoded = []
    for pixels in x:
        file = io.BytesIO()
        image.fromarray(pixels).save(file, "png")
        encoded.append({"bytes": file.getvalue(), "path": None})
    save_arrow(tmp_path / "pictures", {"image": encoded, "label": [i % 2 for i in range(12)]}, LABEL)
    data = load_source(str(tmp_path / "pictures"), 0.25, 0.25, 0)
    assert data.class_names == ("neg_ative", "pos")
    assert data.x.equal(torch.from_numpy(x))
    assert set(data.part.tolist()) == {TRAIN, VAL, TEST}
