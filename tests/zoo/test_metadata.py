"""What is known about weights: side-cars, adapter configurations, model cards and tables."""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.zoo.samples import factors, write_adapter
from zoo.collect import collect
from zoo.errors import UsageError
from zoo.metadata_table import MetadataTable
from zoo.sidecar import read_about
from zoo.types import Record
from zoo.zoo import Zoo

CARD = """---
license: mit
base_model: [org/base]
datasets: [imdb, sst2]
pipeline_tag: text-classification
metrics: [accuracy]
model-index:
- name: x
  results:
  - task: {type: sentiment, name: Sentiment}
    metrics:
    - {type: accuracy, value: 0.91}
    - {type: f1, value: none}
---
# Model Card for Model ID

<!-- Provide a quick summary of what the model is. -->

## Model Details

[More Information Needed]

- a list that is long enough to be a paragraph

Says whether a film review
is friendly.

Second paragraph, which is not the description.
"""


def collect_one(path: Path, zoo: Path, **options: object) -> Record:
    (found,) = collect([path], zoo, **options)  # pyright: ignore[reportArgumentType]
    assert found.status == "added", found
    with Zoo.open(zoo) as opened:
        assert opened.verify() == []
        return opened.get(str(found.id))


def test_model_cards_and_configurations(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", revision="v2")
    (folder / "README.md").write_text(CARD)
    record = collect_one(folder, tmp_path / "zoo")
    assert record.license == "mit"
    assert record.dataset == "imdb, sst2"
    assert record.task == "sentiment"
    assert record.metrics == {"accuracy": 0.91}
    assert record.revision == "v2"
    assert record.description == "Says whether a film review is friendly."
    (folder / "weightgen.json").write_text('{"dataset": "own", "revision": "v3", "source": "https://example.org/a"}')
    about = read_about(folder)
    assert (about.dataset, about.revision, about.source, about.task) == (
        "own",
        "v3",
        "https://example.org/a",
        "sentiment",
    )


def test_the_empty_card_of_peft_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD.partition("Says")[0].partition("---\n")[2].partition("---\n")[2])
    about = read_about(tmp_path)
    assert about == type(about)()


@pytest.mark.parametrize(
    "text", ["model-index: 7", "model-index: [1, {results: 3}, {results: [4, {metrics: [5]}]}]", "[]"]
)
def test_strange_cards_say_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{text}\n---\n")
    about = read_about(tmp_path)
    assert about == type(about)()


@pytest.mark.parametrize(
    "text",
    [
        "---\n" + "\n" * 900_000,
        "---\na: [" + "[" * 40_000 + "\n---\n",
        "---\na: &a [x]\nb: &b {<<: [*a, *a]}\nlicense: [*b, *b]\n---\n",
        "---\nlicense: !!python/object/apply:os.system ['true']\n---\n",
        "<!--" * 200_000,
    ],
    ids=["newlines", "nested", "aliases", "objects", "comments"],
)
def test_hostile_cards_say_nothing_at_once(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    started = time.monotonic()
    about = read_about(tmp_path)
    assert about == type(about)()
    assert time.monotonic() - started < 5


def test_hostile_side_cars_do_no_harm(tmp_path: Path) -> None:
    deep = "[" * 500 + "]" * 500
    (tmp_path / "weightgen.json").write_text(
        '{"task": "\\ud800", "f1": 1' + "0" * 400 + ', "accuracy": 0.5, "\\udfffacc": 1, "license": [{}, "MIT"]}'
    )
    (tmp_path / "metadata.json").write_text('{"description": "x", "architecture": {"a": ' + deep + "}}")
    about = read_about(tmp_path)
    assert (about.task, about.metrics, about.license) == (None, {"accuracy": 0.5}, None)
    assert (about.description, about.architecture) == (None, None)


def test_hostile_names_and_configurations_are_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path / "in/base", base_model_name_or_path="a\ud800")
    deep = json.loads("[" * 500 + "]" * 500)
    write_adapter(tmp_path / "in/deep", loftq_config=deep)
    state = {f"layer.{'9' * n}.w": torch.ones(1) for n in (5000, 1)}
    save_file(dict(sorted(state.items())), tmp_path / "in/digits.safetensors")
    info = {"a\ud800": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    text = json.dumps(info).encode()
    (tmp_path / "in/name.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"x")
    (tmp_path / "in" / os.fsdecode(b"\xff.safetensors")).write_bytes(b"x")
    save_file({"w": torch.ones(1)}, tmp_path / "in/z.safetensors")
    (tmp_path / "in/z.safetensors").rename(tmp_path / "in" / os.fsdecode(b"z\xff.safetensors"))
    found = collect([tmp_path / "in"], tmp_path / "zoo")
    assert [(Path(c.path).name, c.status) for c in found] == [
        ("digits.safetensors", "added"),
        ("name.safetensors", "refused"),
        ("z\ufffd.safetensors", "added"),
        ("\ufffd.safetensors", "refused"),
        ("base", "refused"),
        ("deep", "refused"),
    ]
    with Zoo.open(tmp_path / "zoo") as zoo:
        (path,) = zoo.export(str(found[2].id), tmp_path / "out")
        assert os.fsencode(path.name) == b"z\xff.safetensors"


def test_tables_say_most(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_adapter(tmp_path / "in" / name, factors(ord(name)))
    (tmp_path / "in/a/weightgen.json").write_text('{"task": "old", "license": "MIT", "metrics": {"f1": 0.5}}')
    table = tmp_path / "table.csv"
    table.write_text(
        "path,task,metrics.score,val_accuracy,base_model,split,revision\n"
        'in/a,"new, better",3,,org/other,val,r1\n'
        f"{tmp_path}/in/b/,,,0.25,,,\n"
    )
    found = collect([tmp_path / "in"], tmp_path / "zoo", metadata=MetadataTable(table))
    with Zoo.open(tmp_path / "zoo") as zoo:
        a, b, c = (zoo.get(str(f.id)) for f in found)
        assert zoo.records(base_model="org/other") == [a]
    assert (a.task, a.license, a.split, a.revision) == ("new, better", "MIT", "val", "r1")
    assert a.metrics == {"f1": 0.5, "score": 3.0}
    assert a.layout.config["peft"]["base_model_name_or_path"] == "org/base"
    assert (b.task, b.metrics, b.layout.base_model) == (None, {"val_accuracy": 0.25}, "org/base")
    assert (c.task, c.metrics) == (None, {})


def test_tables_by_name(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i, name in enumerate(("x.safetensors", "y.v2.safetensors")):
        save_file({"w": torch.full((2,), float(i))}, tmp_path / "in" / name)
    write_adapter(tmp_path / "in/folder")
    table = tmp_path / "t.csv"
    table.write_text("\ufeffname,description\r\nx,first\r\ny.v2,second\r\nfolder,third\r\n", encoding="utf-8")
    found = collect([tmp_path / "in"], tmp_path / "zoo", metadata=MetadataTable(table))
    with Zoo.open(tmp_path / "zoo") as zoo:
        assert [zoo.get(str(f.id)).description for f in found] == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,tsak,colour\n", r"unknown columns: 'tsak', 'colour'. known are path, name, task"),
        ("task\n", "has 0 of the columns path and name"),
        ("path,name\n", "has 2 of the columns path and name"),
        ("", "has 0 of the columns"),
        ("path,task,task\n", "column 'task' twice"),
        ("path,task\na,b,c\n", "line 2 has 3 cells, the heading 2"),
        ("path,split\na,dev\n", "line 2 has the split 'dev'"),
        ("path,f1\na,high\n", "line 2: f1 is 'high', not a number"),
        ("path,f1\na,nan\n", "not a number"),
        ("path\na\n./a/\n", "line 3 is about 'a', as an earlier row is"),
        ("path,task\n,x\n", "line 2 has no path"),
        ('path\n"a', "not a CSV file"),
        ("path\nb\n", "no row of .* is about any of the 1 items"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    folder = write_adapter(tmp_path / "a")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        collect([folder], tmp_path / "zoo", metadata=MetadataTable(tmp_path / "t.csv"))
    assert not (tmp_path / "zoo").exists()


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        MetadataTable(tmp_path / "none.csv")
    (tmp_path / "t.csv").write_bytes(b"path\n\xff\xfe\n")
    with pytest.raises(UsageError, match="not a CSV file in UTF-8"):
        MetadataTable(tmp_path / "t.csv")


def test_tables_speak_of_members_of_archives(tmp_path: Path) -> None:
    import shutil

    write_adapter(tmp_path / "in/a")
    shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path / "in")
    (tmp_path / "t.csv").write_text("path,task\nall.zip/a,inside\n")
    record = collect_one(tmp_path / "all.zip", tmp_path / "zoo", metadata=MetadataTable(tmp_path / "t.csv"))
    assert record.task == "inside"
    assert record.source == str(tmp_path / "all.zip/a")


def test_nothing_is_invented(tmp_path: Path) -> None:
    record = collect_one(write_adapter(tmp_path / "a"), tmp_path / "zoo")
    known = (
        record.task,
        record.description,
        record.lineage,
        record.split,
        record.license,
        record.dataset,
        record.revision,
    )
    assert known == (None,) * 7
    assert record.metrics == {}
    assert json.loads(json.dumps(dict(record.layout.config)))["peft"]["r"] == 2
