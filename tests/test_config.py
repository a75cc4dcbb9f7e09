"""Strict configs: what they accept, and what the error says about everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from zoo.config import StrictConfig, dump_config, load_config, parse_config, read_yaml
from zoo.errors import UsageError


class Adam(StrictConfig):
    name: Literal["adam"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)


class Sgd(StrictConfig):
    name: Literal["sgd"] = "sgd"
    momentum: float = Field(default=0.0, ge=0, lt=1)


class Train(StrictConfig):
    steps: int = Field(default=100, gt=0)
    learning_rate: float = 1e-3
    optimiser: Annotated[Adam | Sgd, Field(discriminator="name")] = Adam()


class Config(StrictConfig):
    name: str
    hidden: tuple[int, ...] = (16,)
    out: Path | None = None
    align: bool = True
    train: Train = Train()


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_values_defaults_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\nhidden: [8, 4]\nout: runs\ntrain: {steps: 5, optimiser: {name: sgd}}\n")
    overrides = ["train.steps=7", "train.learning_rate=1e-4", "train.optimiser.momentum=0.5", "out=null", "name='8'"]
    config = load_config(path, Config, overrides)
    assert (config.name, config.hidden, config.out, config.align) == ("8", (8, 4), None, True)
    assert (config.train.steps, config.train.learning_rate) == (7, 1e-4)
    assert config.train.optimiser == Sgd(momentum=0.5)


def test_overrides_make_missing_sections(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "name: a\ntrain:\n"), Config, ["train.steps=3"]).train.steps == 3


def test_dump_is_the_inverse_of_parse() -> None:
    config = Config(name="a", hidden=(3, 2), out=Path("runs"), train=Train(optimiser=Sgd(momentum=0.1)))
    assert parse_config(dump_config(config), Config, source="saved config") == config


def test_configs_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Config(name="a").name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        ("nam: a", [], ["config.yaml", "'nam'", "did you mean 'name'"]),
        ("name: a\ntrain: {step: 1}", [], ["config.yaml", "'train.step'", "did you mean 'train.steps'"]),
        ("name: a\ntrain: {optimiser: {name: sgd, beta: 1}}", [], ["'train.optimiser.beta'", "momentum, name"]),
        ("name: a\nsteps: 3", [], ["'steps'", "did you mean 'train.steps'"]),
        ("name: a\nzzz: 3", [], ["'zzz'", "known keys here: align, hidden, name, out, train"]),
        ("name: a", ["train.stepz=3"], ["--set train.stepz=3", "'train.stepz'", "did you mean 'train.steps'"]),
        ("hidden: [1]", [], ["config.yaml", "'name' is missing"]),
        ("name: a\ntrain: {steps: many}", [], ["config.yaml", 'train.steps = "many"', "valid integer"]),
        ("name: a\ntrain: {steps: '3'}", [], ['train.steps = "3"', "valid integer"]),
        ("name: a\ntrain: {steps: true}", [], ["train.steps = true", "valid integer"]),
        ("name: a\ntrain: {steps: 0}", [], ["train.steps = 0", "greater than 0"]),
        ("name: a\nhidden: [1, x]", [], ["hidden.1", '"x"', "valid integer"]),
        ("name: a\ntrain: {optimiser: {name: lion}}", [], ["train.optimiser", "'adam', 'sgd'"]),
        ("name: a\ntrain: {optimiser: {name: sgd, momentum: x}}", [], ["train.optimiser.momentum", '"x"']),
        ("name: a", ["train.steps=many"], ["--set train.steps=many", "valid integer"]),
        ("name: a", ["name.first=b"], ["name.first=b", "'a'", "no keys"]),
        ("name: a", ["train.steps"], ["'train.steps'", "key=value"]),
        ("name: a", [".steps=1"], ["'.steps=1'", "key=value"]),
        ("name: a", ["hidden=[1"], ["--set hidden=[1"]),
        ("name: a\ntrain:\n  steps: 1\n  steps: 2", [], ["config.yaml, line 4", "'steps' is given twice"]),
        ("name: a\nhidden: [1\n", [], ["config.yaml, line 3"]),
        ("name: !!python/object/apply:os.getcwd []", [], ["config.yaml, line 1"]),
        ("- name\n", [], ["config.yaml", "list"]),
        ("", [], ["config.yaml", "is empty"]),
    ],
)
def test_errors_name_file_key_value_and_remedy(
    tmp_path: Path, text: str, overrides: list[str], parts: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(write(tmp_path, text), Config, overrides)
    for part in parts:
        assert part in str(caught.value)


def test_merge_keys_and_words_that_yaml_takes_for_truth(tmp_path: Path) -> None:
    class Loose(StrictConfig):
        base: dict[str, int]
        more: dict[str, int]

    config = load_config(write(tmp_path, "base: &b {on: 1, 2: 2}\nmore: {<<: *b, no: 3}\n"), Loose)
    assert config.more == {"on": 1, "2": 2, "no": 3}


def test_missing_file_folder_and_binary_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.yaml"):
        load_config(tmp_path / "absent.yaml", Config)
    with pytest.raises(UsageError, match="directory"):
        load_config(tmp_path, Config)
    binary = tmp_path / "weights.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        load_config(binary, Config)


def test_shipped_configs_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_yaml("digits")["recipe"] == "class_subsets"
    assert read_yaml("d2nwg-digits")["generator"] == "d2nwg"
    (tmp_path / "digits").write_text("recipe: mine\n")
    assert read_yaml("digits") == {"recipe": "mine"}
    with pytest.raises(UsageError, match=r"name a shipped config: .*digits"):
        read_yaml("digit")
