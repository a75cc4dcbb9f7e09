"""Generators on disk: they come back the same, and nothing damaged is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from weightgen.checkpoint import check_target, load_generator, read_config, read_history, save_generator
from weightgen.types import Condition
from zoo.datasets import Examples
from zoo.errors import BadArtefact, UsageError


def condition() -> Condition:
    x = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))
    return Condition(Examples.group(x, torch.tensor([0, 1, 1, 0])))


@pytest.fixture
def folder(tiny_generator: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(tiny_generator, tmp_path / "generator"))


def rewrite(path: Path, **values: Any) -> None:
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_saved_generator_is_the_same_after_loading(tiny_generator: Path, tmp_path: Path) -> None:
    first = load_generator(tiny_generator)
    assert not first.training
    save_generator(tmp_path / "again", first, read_history(tiny_generator))
    second = load_generator(str(tmp_path / "again"))
    assert second.config == first.config
    assert second.problem.forms[0].layout == first.problem.forms[0].layout
    assert second.problem.tokenizer == first.problem.tokenizer
    assert second.problem.forms[0].input_shape == first.problem.forms[0].input_shape
    assert first.problem.forms[0].reference is not None
    assert second.problem.forms[0].reference is not None
    assert all(
        second.problem.forms[0].reference[n].equal(value) for n, value in first.problem.forms[0].reference.items()
    )
    for a, b in zip(
        first.sample(condition(), first.problem.forms[0].layout, 2, 7),
        second.sample(condition(), first.problem.forms[0].layout, 2, 7),
        strict=True,
    ):
        assert all(a.tensors[name].equal(b.tensors[name]) for name in a.tensors)
    names = sorted(path.name for path in tiny_generator.iterdir())
    assert names == ["config.json", "history.json", "model.safetensors", "problem.json", "reference.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["again"], "nothing is left beside it"
    assert all((tiny_generator / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names), (
        "the same generator makes the same bytes"
    )


def test_saving_replaces_an_older_generator_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    generator = load_generator(folder)
    save_generator(folder, generator, {"note": "second"})
    assert read_history(folder) == {"note": "second"}
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"other files \(thesis.txt\)"):
        save_generator(folder, generator, {})
    assert (folder / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("files", [{"model.safetensors": "x"}, {"config.json": '{"model_type": "bert"}'}, {"a": ""}])
def test_other_folders_are_no_target(tmp_path: Path, files: dict[str, str]) -> None:
    target = tmp_path / "target"
    check_target(target)
    target.mkdir()
    check_target(target)
    for name, text in files.items():
        (target / name).write_text(text)
    with pytest.raises(UsageError, match="choose another folder"):
        check_target(target)
    with pytest.raises(UsageError, match="is a file"):
        check_target(next(target.iterdir()))


def test_a_failed_save_leaves_the_older_generator(folder: Path) -> None:
    generator = load_generator(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(TypeError):
        save_generator(folder, generator, {"log": object()})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", ["history.json", "model.safetensors", "problem.json", "reference.safetensors"])
def test_missing_and_changed_files_are_found(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for position in (0, len(whole) // 2, len(whole) - 1):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        (folder / name).write_bytes(flipped)
        with pytest.raises(BadArtefact, match=rf"{name} is damaged"):
            load_generator(folder)
    (folder / name).write_bytes(whole[:-1])
    with pytest.raises(BadArtefact, match=rf"{name} is damaged"):
        load_generator(folder)
    (folder / name).unlink()
    with pytest.raises(BadArtefact, match=rf"lacks the file {name}"):
        load_generator(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 1}, "generator format 1, this version reads 2"),
        ({"format": None}, "generator format None"),
        ({"files": None}, "does not list the files"),
        ({"files": {}}, "does not list the files"),
        ({"files": [1]}, "does not list the files"),
        ({"generator": None}, "do not fit each other"),
        ({"generator": "vae-gan"}, r"do not fit each other.*vae-gan"),
        ({"config": None}, "do not fit each other"),
        ({"config": "all"}, "do not fit each other"),
        ({"config": {"generator": "d2nwg", "tokenwidth": 3}}, r"do not fit each other.*tokenwidth"),
        ({"config": {"generator": "d2nwg"}}, "do not fit each other"),
    ],
    ids=str,
)
def test_configs_that_make_no_sense_are_refused(folder: Path, values: dict[str, Any], message: str) -> None:
    rewrite(folder / "config.json", **values)
    with pytest.raises(BadArtefact, match=message):
        load_generator(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\x00", "[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(BadArtefact, match=r"config\.json"):
        read_config(folder)


def test_folders_without_a_generator_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArtefact, match=r"does not exist.*weightgen train"):
        load_generator(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(BadArtefact, match="holds no generator"):
            load_generator(path)
