"""Objectives on real small models, and the job and command around compositions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast, GPT2Config, GPT2LMHeadModel

from tests.compose_parents import adapter, changes, error, network
from weightgen import cli, jobs
from weightgen.compose import compose, load
from weightgen.compose.objectives import causal_lm, text_classification, text_unlabelled, with_deltas
from zoo import kinds
from zoo.build.encoder import EncoderConfig, TextEncoder
from zoo.errors import UsageError
from zoo.kinds import lora
from zoo.types import Weights
from zoo.zoo import Zoo

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "fine", "poor", "film", "food", "very"]
TEXTS = ["good film", "fine food", "very good food", "bad film", "poor food", "very bad film"]
Y = torch.tensor([0, 0, 0, 1, 1, 1])
LABELS = ["good", "bad"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an encoder of two layers with random weights."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.4,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


def text_adapter(base: Path, seed: int) -> Weights:
    """A random LoRA of that encoder."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(2):
        name = f"base_model.model.encoder.layer.{layer}.attention.self.value"
        tensors[f"{name}.lora_A.weight"] = torch.randn(2, 16, generator=generator)
        tensors[f"{name}.lora_B.weight"] = torch.randn(16, 2, generator=generator)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": str(base)}
    return lora.from_state_dict(tensors, {**config, "target_modules": ["value"], "task_type": "FEATURE_EXTRACTION"})


def write(weights: Weights, folder: Path) -> Path:
    folder.mkdir()
    kinds.get(weights.layout.kind).write(weights, folder)
    return folder


def test_the_text_objective_is_the_loss_of_the_merged_encoder(base: Path) -> None:
    encoder = TextEncoder(EncoderConfig(name=str(base)))
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    deltas = {name: value.float() for name, value in changes(text_adapter(base, 0)).items()}
    objective = text_classification(encoder, TEXTS, Y, LABELS, batch=2)
    found = objective(deltas)
    merged = TextEncoder(EncoderConfig(name=str(base)))
    for name, delta in deltas.items():
        dict(merged.model.named_parameters())[name].data += delta
    logits = 20 * merged.encode(TEXTS) @ merged.encode(LABELS).T
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, Y), atol=1e-4, rtol=1e-4)
    assert abs(float(found) - float(objective({}))) > 1e-3
    assert all(torch.equal(before[name], value) for name, value in encoder.model.state_dict().items())
    parts = [float(objective.at(step)(deltas)) for step in range(3)]
    assert sum(parts) / 3 == pytest.approx(float(found), abs=1e-4)
    assert float(objective.at(1)(deltas)) == parts[1]


def test_deltas_of_another_base_are_refused(base: Path) -> None:
    encoder = TextEncoder(EncoderConfig(name=str(base)))
    with pytest.raises(UsageError, match=r"'layer\.0\.q\.weight' \(6, 5\), the base has nothing of that name"):
        with_deltas(encoder.model, changes(adapter(0)))


@pytest.mark.parametrize("kind", ["trusted", "entropy"])
def test_unlabelled_objectives_can_be_lowered(base: Path, kind: Any) -> None:
    encoder = TextEncoder(EncoderConfig(name=str(base)))
    objective = text_unlabelled(encoder, TEXTS, LABELS, kind=kind, trusted=2)
    parents = [text_adapter(base, seed) for seed in range(3)]
    far = [1.5, -1.0, 1.0]
    mixed = compose(parents, "atlas", weights=far, objective=objective, settings={"steps": 40, "lr": 0.05})
    after = {name: value.float() for name, value in changes(mixed.weights).items()}
    start = {name: value.float() for name, value in changes(compose(parents, weights=far).weights).items()}
    assert float(objective(after)) < float(objective(start)) - 0.01


def test_a_causal_model_is_searched_and_learned() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=13, n_embd=8, n_layer=1, n_head=2, n_positions=16)).eval()
    ids = torch.randint(0, 13, (4, 9))
    name = "base_model.model.transformer.h.0.mlp.c_fc"
    parents = []
    for seed in range(2):
        torch.manual_seed(seed)
        factors = {f"{name}.lora_A.weight": torch.randn(2, 8), f"{name}.lora_B.weight": torch.randn(32, 2)}
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "gpt2"}
        parents.append(lora.from_state_dict(factors, {**config, "fan_in_fan_out": True}))
    objective = causal_lm(model, ids)
    torch.testing.assert_close(objective({}), model(input_ids=ids, labels=ids).loss.detach())
    for method in ("lorahub", "atlas"):
        mixed = compose(parents, method, objective=objective, weights=[0.0, 0.0])
        found = {n: v.float() for n, v in changes(mixed.weights).items()}
        assert float(objective(found)) < float(objective({})) - 0.01


def test_the_job_learns_from_a_text_task(base: Path, tmp_path: Path) -> None:
    parents = [write(text_adapter(base, seed), tmp_path / f"a{seed}") for seed in range(2)]
    data = tmp_path / "task.csv"
    rows = [f"{text},{LABELS[y]},train" for text, y in zip(TEXTS * 2, Y.tolist() * 2, strict=True)]
    data.write_text("text,label,split\n" + "\n".join([*rows, "fine film,good,validation"]) + "\n")
    result = jobs.compose(
        parents, tmp_path / "out", "atlas", data=data, base=str(base), overrides=["steps=4"], rank=1, examples=8
    )
    losses = result.receipt["composed"]["report"]["losses"]
    assert len(losses) == 4
    assert load(tmp_path / "out").layout.config["peft"]["r"] == 1
    assert json.loads((tmp_path / "out" / "weightgen.json").read_text()) == result.receipt
    assert str(parents[1]) in result.summary()
    hidden = jobs.compose(
        parents, tmp_path / "hidden", "lorahub", data=data, unlabelled=True, overrides=["evaluations=6"]
    )
    assert hidden.receipt["composed"]["report"]["evaluations"] <= 6


def test_the_job_mixes_networks_and_records_of_a_zoo(tmp_path: Path) -> None:
    one, two = network(0), network(1)
    with Zoo.open(tmp_path / "zoo", create=True) as zoo:
        ids = [zoo.add(weights)[0].id for weights in (one, two)]
    jobs.compose(ids, tmp_path / "mean", zoo=tmp_path / "zoo")
    found = load(tmp_path / "mean" / "model.safetensors")
    assert found.layout.config["architecture"] == one.layout.config["architecture"]
    assert error(found.tensors, {n: (one.tensors[n] + two.tensors[n]) / 2 for n in one.tensors}) < 1e-6
    data = tmp_path / "data.npz"
    np.savez(data, x=np.ones((6, 5), np.float32), y=np.array([0, 1, 2, 2, 2, 2]))
    jobs.compose(
        ids, tmp_path / "learned", "atlas", zoo=tmp_path / "zoo", base=ids[0], data=data, overrides=["steps=2"]
    )
    assert (tmp_path / "learned" / "weightgen.json").is_file()


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["compose", *map(str, arguments)])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parents = [write(adapter(seed), tmp_path / f"a{seed}") for seed in range(2)]
    options = ("--method", "ties", "--weights", "0.5,0.5", "--rank", "2", "--set", "density=0.5", "--json")
    assert run(*parents, *options, "--out", tmp_path / "out") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["receipt"]["composed"]["settings"]["density"] == 0.5
    assert document["receipt"]["composed"]["rank"] == 2
    assert run(*parents, "--out", tmp_path / "out") == 2
    assert "exists already" in capsys.readouterr().err
    assert run(*parents, "--out", tmp_path / "other", "--weights", "a,b") == 2
    assert run(*parents, "--out", tmp_path / "other", "--method", "atlas") == 2
    assert "learns and has no data" in capsys.readouterr().err
    assert run(*parents, "--out", tmp_path / "other", "--data", parents[0]) == 2
    assert run(parents[0], "nothing", "--out", tmp_path / "other") == 2
    assert "'nothing' does not exist" in capsys.readouterr().err.replace("nothing does", "'nothing' does")
    assert not (tmp_path / "other").exists()
