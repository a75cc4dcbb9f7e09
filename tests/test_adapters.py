"""Adapters from a sentence: learned from a zoo, written for PEFT, checked, described."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from tests.fixtures import LATENT
from tests.text_world import make_encoder, with_peft
from weightgen import jobs
from weightgen.generate.task import given_task
from weightgen.generators import GeneratorConfig
from weightgen.results import AdapterResult
from weightgen.subjects.texts import AdaptedEncoder
from weightgen.train import load_train_config, train_generator
from weightgen.training_data import TrainingData
from zoo import kinds
from zoo.build.encoder import EncoderConfig, TextEncoder
from zoo.errors import BadArtefact, UsageError
from zoo.zoo import Zoo

CONFIGS = Path(__file__).parent.parent / "configs"


def lora_config(name: str, encoder: Path, *overrides: str) -> GeneratorConfig:
    stages = ("codec", "alignment", "diffusion" if name == "d2nwg" else "regression", "behaviour")
    short = [f"stages.{stage}={{steps: 3, batch_size: 4}}" for stage in stages]
    latent = [part for part in LATENT if not part.startswith("conditioner")]
    parts = "conditioner={parts: [description, labels, texts], heads: 2, intra_depth: 1, inter_depth: 1}"
    small = ["token_width=16", "shots=3", f"text_encoder={encoder}", *latent, parts]
    return load_train_config(CONFIGS / f"{name}-lora.yaml", [*short, *small, *overrides])


@pytest.fixture(scope="module")
def generator(adapter_zoo: Path, text_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A D2NWG of adapters, hardly trained."""
    path = tmp_path_factory.mktemp("generator") / "lora"
    with Zoo.open(adapter_zoo) as zoo:
        train_generator(lora_config("d2nwg", text_encoder), zoo, path)
    return path


@pytest.mark.parametrize("name", ["d2nwg", "mapper"])
def test_every_stage_learns_from_adapters(name: str, adapter_zoo: Path, text_encoder: Path) -> None:
    from weightgen.generators import generator_class

    with Zoo.open(adapter_zoo) as zoo:
        data = TrainingData(zoo, lora_config(name, text_encoder))
    torch.manual_seed(0)
    model = generator_class(name)(data.config, data.problem)
    for stage in model.stages():
        model.prepare(stage.name, data.token_sets())
        batch = data.batch(stage, 0)
        assert stage.loss(batch).total.equal(stage.loss(batch).total)
        optimizer = torch.optim.Adam([p for part in stage.trains for p in part.parameters()], lr=3e-3)
        losses = []
        for _ in range(12):
            loss = stage.loss(batch).total
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert losses[-1] < losses[0], stage.name


def test_updates_from_outside_are_those_of_peft(adapter_zoo: Path, text_encoder: Path, tmp_path: Path) -> None:
    encoder = TextEncoder(EncoderConfig(name=str(text_encoder)))
    with Zoo.open(adapter_zoo) as zoo:
        weights = zoo.weights(zoo.records()[0])
    big = type(weights)(weights.layout, {k: v + 0.3 for k, v in weights.tensors.items()})
    kinds.get("lora").write(big, tmp_path)
    texts = ["the cat runs", "a red fish is not blue"]
    plain = encoder.encode(texts)
    with AdaptedEncoder(encoder, big.layout).applied(big.tensors):
        found = encoder.encode(texts)
    assert encoder.encode(texts).equal(plain), "nothing may stay behind"
    encoder.model = with_peft(encoder.model, tmp_path)
    torch.testing.assert_close(found, encoder.encode(texts), rtol=1e-5, atol=1e-6)
    assert (found - plain).abs().max() > 1e-3


def test_an_adapter_from_a_sentence(generator: Path, text_encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    result = jobs.generate(generator, out=out, description="Which animal is it?", labels=["the cat", "the dog"], seed=3)
    assert isinstance(result, AdapterResult)
    assert result.folders == (out,)
    assert result.given == (None,)
    loaded = with_peft(AutoModel.from_pretrained(text_encoder), out)
    assert loaded.peft_config["default"].base_model_name_or_path == str(text_encoder)
    receipt = json.loads((out / "weightgen.json").read_text())["generated"]
    assert receipt["seed"] == 3
    assert receipt["parents"] == ["animals", "colours"]
    card = (out / "README.md").read_text()
    for part in (str(text_encoder), "Which animal is it?", "- the cat", "Not measured", "animals, colours"):
        assert part in card
    before = (out / "adapter_model.safetensors").read_bytes()
    jobs.generate(generator, out=out, description="Which animal is it?", labels=["the cat", "the dog"], seed=3)
    assert (out / "adapter_model.safetensors").read_bytes() == before
    jobs.generate(generator, out=out, description="Which colour?", labels=["the cat", "the dog"], seed=3)
    assert (out / "adapter_model.safetensors").read_bytes() != before, "the sentence must have an influence"


def test_a_task_file_several_adapters_and_finetuning(
    generator: Path, text_tasks: dict[str, Path], tmp_path: Path
) -> None:
    task = tmp_path / "animals.json.gz"
    task.write_bytes(gzip.compress(text_tasks["animals"].read_bytes()))
    out = tmp_path / "out"
    result = jobs.generate(generator, task=task, out=out, n=2, use_labels=4, use_examples=5, finetune=20)
    assert isinstance(result, AdapterResult)
    assert result.folders == (out / "adapter-000", out / "adapter-001")
    for folder, given, curve in zip(result.folders, result.given, result.curves, strict=True):
        assert given is not None
        assert curve[-1]["loss"] < curve[0]["loss"]
        assert [point["step"] for point in curve][-1] == 20
        assert given["accuracy"] == curve[-1]["accuracy"]
        assert "fine-tuned on these very texts" in (folder / "README.md").read_text()
    receipt = json.loads((out / "weightgen.json").read_text())["generated"]["task"]
    assert (receipt["unlabelled_texts"], receipt["labelled_texts"]) == (5, 16)
    jobs.generate(generator, task=task, out=out)
    assert not (out / "adapter-000").exists(), "an earlier generation is replaced as a whole"


def test_only_words_are_used_unless_asked(text_tasks: dict[str, Path], tmp_path: Path) -> None:
    given = given_task(None, (), text_tasks["colours"], None, 0, 0, 0)
    assert given.text.texts == given.texts == ()
    assert given.text.labels == ("the red", "the blue", "the green", "the grey")
    some = given_task("Other words", (), text_tasks["colours"], None, 6, 2, 0)
    assert some.text.description == "Other words"
    assert len(some.text.texts) == 6
    assert some.y.bincount().tolist() == [2, 2, 2, 2]
    assert not set(some.texts) & set(some.text.texts)
    (tmp_path / "texts.txt").write_text("one text\n\nanother\n")
    assert given_task("x", (), None, tmp_path / "texts.txt", 0, 0, 0).text.texts == ("one text", "another")


def test_what_makes_no_sense_is_refused(generator: Path, text_tasks: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refuse(message: str, error: type[Exception] = UsageError, **arguments: object) -> None:
        with pytest.raises(error, match=message):
            jobs.generate(generator, out=out, **arguments)  # pyright: ignore[reportArgumentType]
        assert not out.exists()

    refuse("nothing is known")
    refuse("one label only", description="x", labels=["a"])
    refuse("not all different", description="x", labels=["a", "a"])
    refuse("no task file", description="x", use_labels=3)
    refuse("no labelled examples", description="x", labels=["a", "b"], finetune=3)
    refuse("does not exist", BadArtefact, data=tmp_path / "missing.txt", description="x")
    refuse("no text task", BadArtefact, task=generator / "config.json")
    other = make_encoder(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    AutoModel.from_config(
        type(AutoModel.from_pretrained(other).config)(**{**config, "hidden_size": 32})
    ).save_pretrained(other)
    refuse("32", task=text_tasks["animals"], base=str(other))


def test_the_wrong_kind_of_generator(tiny_generator: Path, generator: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="writes networks from labelled examples"):
        jobs.generate(tiny_generator, out=tmp_path / "out", description="digits")
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 8, 8), np.float32), y=np.arange(2))
    with pytest.raises(UsageError):
        jobs.generate(generator, tmp_path / "x.npz", tmp_path / "out")


def test_networks_can_be_finetuned(tiny_generator: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.random((16, 8, 8), dtype=np.float32), y=np.arange(16) % 2)
    result = jobs.generate(tiny_generator, tmp_path / "x.npz", tmp_path / "out", n=2, finetune=30)
    for curve in result.curves:
        assert curve[-1]["loss"] < curve[0]["loss"]
    plain = jobs.generate(tiny_generator, tmp_path / "x.npz", tmp_path / "plain", n=2)
    assert plain.curves == ()
