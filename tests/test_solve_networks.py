"""The portfolio for networks: labelled examples in, the best network out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weightgen import jobs
from weightgen.solve import networks
from zoo.errors import NetworkError, UsageError
from zoo.tasks import VAL, TaskData
from zoo.zoo import Zoo


@pytest.fixture(scope="module")
def examples(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of each of two digits that a task of the zoo tells apart."""
    with Zoo.open(tiny_zoo) as zoo:
        task = next(task for task in zoo.tasks() if task.split == "val")
        x, y = TaskData.select(zoo.dataset(task.dataset), task.classes).part(VAL)
    rows = np.concatenate([np.flatnonzero(y.numpy() == label)[:12] for label in (0, 1)])
    path = tmp_path_factory.mktemp("examples") / "two.npz"
    np.savez(path, x=x.numpy()[rows], y=y.numpy()[rows])
    return path


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "STEPS", 20)


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "solve.json").read_text())


def test_a_network_is_found_among_retrieved_mean_generated_and_trained_ones(
    examples: Path, tiny_zoo: Path, tiny_generator: Path, text_encoder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given: dict[str, Any] = {"zoo": tiny_zoo, "generators": [tiny_generator], "encoder": str(text_encoder)}
    result = jobs.solve("Which digit?", examples, out=out, budget="500steps", **given)
    report = report_of(out)
    assert report == result.report
    rows = {row["name"]: row for row in report["candidates"]}
    wanted = {"base", "retrieved-1", "mean-near", "mean-all", "generated-d2nwg-0", "generated-d2nwg-1", "trained"}
    assert wanted | {"finetuned-generated-d2nwg-0"} <= rows.keys()
    assert rows["base"]["about"] == networks.COMMONEST
    assert all(rows[name]["learns_from_labels"] for name in ("generated-d2nwg-0", "trained"))
    assert not report["verdict"]["use_base"]
    assert rows[report["verdict"]["choice"]]["macro_f1"] > 0.8
    assert "weightgen evaluate network.safetensors" in (out / "README.md").read_text()
    measured = jobs.evaluate_weights(out / "network.safetensors", examples)
    assert measured.rows["weights"]["accuracy"] > 0.8
    before = (out / "network.safetensors").read_bytes()
    jobs.solve("Which digit?", examples, out=out, budget="500steps", **given)
    assert (out / "network.safetensors").read_bytes() == before


def test_without_a_text_encoder_the_examples_say_what_is_similar(
    examples: Path, tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_reach(*_: object) -> None:
        raise NetworkError("the encoder 'nobody/none' cannot be loaded", "check the connection")

    monkeypatch.setattr("weightgen.retrieve.views.TextEncoder", out_of_reach)
    result = jobs.solve("Which digit?", examples, out=tmp_path / "out", budget="60steps", zoo=tiny_zoo)
    assert any("by the examples alone: the encoder 'nobody/none'" in note for note in result.report["notes"])
    assert "retrieved-1" in {row["name"] for row in result.report["candidates"]}


def test_where_nothing_can_be_learned_no_network_is_written(examples: Path, tiny_zoo: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 64)).astype(np.float32)
    np.savez(tmp_path / "noise.npz", x=x, y=np.arange(24) % 2)
    result = jobs.solve(data=tmp_path / "noise.npz", out=tmp_path / "out", budget="9steps", zoo=tiny_zoo)
    assert {row["fate"] for row in result.report["candidates"] if row["name"] == "trained"} == {
        "the budget did not allow it"
    }
    assert result.report["verdict"]["use_base"] == (not (tmp_path / "out" / "network.safetensors").exists())


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({}, "no zoo was given"),
        ({"base": "some"}, "base is for adapters"),
        ({"labels": ("a", "b")}, "labels is for adapters"),
    ],
)
def test_what_does_not_fit_is_said(arguments: dict[str, Any], cause: str, examples: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=cause):
        jobs.solve(data=examples, out=tmp_path / "out", **arguments)


def test_every_class_needs_a_few_examples_and_networks_that_fit(examples: Path, tiny_zoo: Path, tmp_path: Path) -> None:
    with np.load(examples) as found:
        x, y = found["x"], found["y"]
    np.savez(tmp_path / "few.npz", x=x[9:], y=y[9:])
    with pytest.raises(UsageError, match="a class has 3 examples"):
        jobs.solve(data=tmp_path / "few.npz", out=tmp_path / "out", zoo=tiny_zoo)
    np.savez(tmp_path / "wide.npz", x=np.concatenate([x, x], 1), y=y)
    with pytest.raises(UsageError, match="nothing is known to begin with"):
        jobs.solve(data=tmp_path / "wide.npz", out=tmp_path / "out", zoo=tiny_zoo)
