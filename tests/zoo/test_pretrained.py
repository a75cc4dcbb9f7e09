"""Checkpoints of transformers with their ``config.json``: understood, kept, and loaded again by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.zoo.networks import ARCHITECTURES, difference, inputs, make
from zoo import kinds
from zoo.architectures import family
from zoo.collect import collect
from zoo.export import export_files
from zoo.kinds import dense
from zoo.kinds.dense import groups_of
from zoo.sources import files_of
from zoo.symmetry import scramble
from zoo.types import Layout, Weights
from zoo.zoo import Zoo

NAMES = (
    "bert-classes",
    "bert-words",
    "gpt2",
    "gpt2-classes",
    "llama",
    "llama-tied",
    "vit-transformers",
    "vit-headless",
)


def save(folder: Path, name: str, **how: Any) -> torch.nn.Module:
    network = make(ARCHITECTURES[name])
    network.save_pretrained(folder, **how)  # pyright: ignore[reportCallIssue]
    return network


@torch.no_grad()
def outputs(network: torch.nn.Module, name: str) -> torch.Tensor:
    return network(inputs(ARCHITECTURES[name]))[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_understood_and_loads_in_any_gauge(name: str, tmp_path: Path) -> None:
    network = save(tmp_path / "source", name)
    found = kinds.read(tmp_path / "source/model.safetensors")
    architecture = found.weights.layout.config["architecture"]
    assert family(architecture).describe(architecture)
    groups = groups_of(found.weights.layout)
    assert groups, "names and shapes of the file are those of the model"
    canonical = kinds.canonical(found.weights)
    twin = scramble(found.weights.tensors, groups, torch.Generator().manual_seed(1), scale=True)
    assert kinds.get("dense").same_function(found.weights, Weights(found.weights.layout, twin))
    for i, weights in enumerate((found.weights, canonical, Weights(found.weights.layout, twin))):
        out = tmp_path / f"out{i}"
        export_files(weights, found.extra_files, out)
        assert (out / "config.json").read_bytes() == (tmp_path / "source/config.json").read_bytes()
        again = type(network).from_pretrained(out).eval()  # pyright: ignore[reportAttributeAccessIssue]
        assert difference(outputs(again, name), outputs(network, name)) <= 1e-5
    assert (tmp_path / "out0/model.safetensors").read_bytes() == (tmp_path / "source/model.safetensors").read_bytes()


def test_shards_and_pickles_have_configurations_too(tmp_path: Path) -> None:
    network = save(tmp_path / "shards", "bert-classes", max_shard_size="10KB")
    torch.save(network.state_dict(), tmp_path / "shards/pytorch_model.bin")
    index = tmp_path / "shards/model.safetensors.index.json"
    assert files_of(index)[-1].name == "config.json"
    for path in (index, tmp_path / "shards/pytorch_model.bin"):
        found = kinds.read(path)
        assert found.weights.layout.config["architecture"]["model"] == "BertForSequenceClassification"
        assert "config.json" in found.extra_files


def test_collecting_and_exporting(tmp_path: Path) -> None:
    save(tmp_path / "source", "bert")
    with Zoo.open(tmp_path / "zoo", create=True) as zoo:
        (added,) = collect([tmp_path / "source"], zoo)
        assert added.reason is None
        assert added.id is not None
        names = {file.name for file in zoo.export(added.id, tmp_path / "out")}
        assert names == {"config.json", "model.safetensors"}
        assert zoo.export(added.id, tmp_path / "alone.safetensors") == [tmp_path / "alone.safetensors"]
        content = json.loads((tmp_path / "source/config.json").read_text())
        (tmp_path / "source/config.json").write_text(json.dumps({**content, "_name_or_path": "elsewhere"}))
        (again,) = collect([tmp_path / "source"], zoo)
        assert again.status == "added", "another file is not thrown away"
        assert "twin" in (again.reason or "")
        assert len(zoo.twins()) == 1


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (b'{"model_type": "other", "architectures": ["X"]}', None),
        (b'{"model_type": ["bert"], "architectures": ["BertModel"]}', None),
        (b'{"model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": -1}', None),
        (b'{"model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": 1000}', None),
        (b'{"model_type": "vit", "architectures": [null], "hidden_size": "8"}', None),
        (b"[]", "kept but not understood"),
        (b"\xff{", "kept but not understood"),
        (b" " * (1 << 20) + b" {}", "left aside"),
    ],
    ids=range(8),
)
def test_unknown_models_come_in_as_named_tensors(content: bytes, note: str | None, tmp_path: Path) -> None:
    save(tmp_path, "bert")
    (tmp_path / "config.json").write_bytes(content)
    found = kinds.read(tmp_path / "model.safetensors")
    assert "architecture" not in found.weights.layout.config
    assert kinds.canonical(found.weights) is found.weights
    assert ("pretrained" in found.weights.layout.config) == (note is None)
    assert (note or "") in "".join(found.notes)
    assert found.extra_files.get("config.json") == (None if note == "left aside" else content)


def test_a_configuration_elsewhere_is_not_read(tmp_path: Path) -> None:
    save(tmp_path / "source", "bert")
    (tmp_path / "source/config.json").rename(tmp_path / "config.json")
    (tmp_path / "source/config.json").symlink_to(tmp_path / "config.json")
    found = kinds.read(tmp_path / "source/model.safetensors")
    assert "config.json" not in found.extra_files
    assert "left aside" in found.notes[0]
    (tmp_path / "source/model.safetensors").rename(tmp_path / "source/other.safetensors")
    assert kinds.read(tmp_path / "source/other.safetensors").notes == ()


def test_what_changes_the_function_is_no_provenance() -> None:
    state = {"a.weight": torch.ones(2, 2)}
    layouts = [
        Layout("dense", None, dense.layout(state).tensors, config)
        for config in (
            {"pretrained": {"model_type": "x", "eps": 1}},
            {"pretrained": {"model_type": "x", "eps": 1, "dtype": "float32"}},
            {"pretrained": {"model_type": "x", "eps": 2}},
        )
    ]
    one, same, other = (kinds.get("dense").function_config(layout) for layout in layouts)
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("name", "lie"),
    [
        ("bert", {"hidden_size": 10**6}),
        ("bert", {"hidden_size": 8}),
        ("bert", {"hidden_size": 20}),
        ("gpt2", {"n_embd": 8}),
        ("llama", {"head_dim": 2}),
        ("llama", {"head_dim": 8, "num_key_value_heads": 1}),
        ("vit-transformers", {"hidden_size": 24}),
    ],
)
def test_configurations_that_lie_about_sizes_are_not_believed(name: str, lie: dict[str, int], tmp_path: Path) -> None:
    save(tmp_path, name)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, **lie}))
    found = kinds.read(tmp_path / "model.safetensors")
    assert "architecture" not in found.weights.layout.config
    claimed = {"family": found.weights.layout.config["pretrained"]["model_type"], "model": content["architectures"][0]}
    claimed = {**claimed, "config": {**content, **lie}}
    weights = dense.from_state_dict(found.weights.tensors, architecture=claimed)
    assert kinds.canonical(weights) is weights
