"""Adapters from label texts: static adapter, memory, edit of the last layer; and the kit that is shipped."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, BertTokenizerFast, DistilBertConfig, DistilBertModel

from tests.fixtures import tiny_config
from weightgen import jobs
from weightgen.adapted import AdaptedEncoder
from weightgen.checkpoint import load_generator, read_history
from weightgen.generators.prototype import Prototype, PrototypeConfig
from weightgen.kit import DEFAULT, FOLDER, adapters_archive
from weightgen.prototypes.edit import solve_keys
from weightgen.prototypes.labels import contexts, recalled, soft_means
from weightgen.prototypes.last_layer import Stack
from weightgen.results import AdapterResult
from weightgen.retrieve import Calibration
from weightgen.retrieve.calibration import calibrate, load_pairs
from weightgen.retrieve.index import pairs_file
from weightgen.train import train_generator
from weightgen.training_data import TrainingData
from weightgen.types import Condition, TaskText
from zoo.build.encoder import MINILM, EncoderConfig, TextEncoder
from zoo.errors import UsageError
from zoo.types import Weights
from zoo.zoo import Zoo

ANIMALS = TaskText("Which animal is it?", ("the cat", "the dog", "the fish"))
TEXTS = ("a red cat runs", "the dog sleeps", "a fish is not a bird", "the cat eats", "blue dog", "a green fish jumps")


@pytest.fixture(scope="module")
def folder(adapter_zoo: Path, text_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator trained for some steps on two text tasks."""
    path = tmp_path_factory.mktemp("generator") / "prototype"
    config = tiny_config(
        "prototype", f"text_encoder={text_encoder}", "stages.static={steps: 12, batch_size: 2, lr: 0.01}"
    )
    with Zoo.open(adapter_zoo) as zoo:
        train_generator(config, zoo, path)
    return path


@pytest.fixture(scope="module")
def generator(folder: Path) -> Prototype:
    loaded = load_generator(folder)
    assert isinstance(loaded, Prototype)
    return loaded


def adapter(generator: Prototype, task: TaskText) -> Weights:
    condition = Condition(words=(task,))
    return generator.sample(condition, generator.layout_for(condition), 1, 0)[0]


def vectors(generator: Prototype, weights: Weights, texts: Any) -> torch.Tensor:
    encoder = generator.encoder
    with torch.no_grad(), AdaptedEncoder(encoder, weights.layout).applied(weights.tensors):
        return encoder.encode(list(texts))


def test_training_remembers_the_tasks(folder: Path, generator: Prototype) -> None:
    memory = generator.memory
    assert memory.labels.shape == memory.centroids.shape == (8, 16)  # two training tasks of four labels
    assert memory.pool.shape == (2 * 8, 16)
    assert memory.keys.shape == (2 * 8, 32)
    assert memory.pool.dtype == torch.float16
    stage = read_history(folder)["stages"]["static"]
    assert stage["log"][0]["loss"] > 0
    assert 0 <= stage["val_accuracy"] <= 1
    assert "val_reconstruction_accuracy" not in stage
    assert read_history(folder)["train_tasks"] == ["animals", "colours"]


def test_it_lowers_the_loss_and_goes_on_after_a_stop(
    folder: Path, adapter_zoo: Path, text_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (f"text_encoder={text_encoder}", "stages.static={steps: 12, batch_size: 2, lr: 0.01}")
    monkeypatch.setattr("weightgen.train.SAVE_EVERY", 5)
    finish = Prototype.finish

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with Zoo.open(adapter_zoo) as zoo:
        monkeypatch.setattr(Prototype, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            train_generator(tiny_config("prototype", *overrides), zoo, tmp_path / "g")
        monkeypatch.setattr(Prototype, "finish", finish)
        train_generator(tiny_config("prototype", *overrides), zoo, tmp_path / "g")
    first, second = (load_generator(path).state_dict() for path in (folder, tmp_path / "g"))
    assert list(first) == list(second)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-3)


def test_the_layout_has_one_uniform_rank(generator: Prototype) -> None:
    weights = adapter(generator, ANIMALS)
    peft = weights.layout.config["peft"]
    assert peft["r"] == peft["lora_alpha"] == 2 + 3 + 1
    assert "rank_pattern" not in peft
    assert len(peft["target_modules"]) == 6  # all linear maps of the upper of two layers
    ranks = {v.shape[0] if "lora_A" in k else v.shape[1] for k, v in weights.tensors.items()}
    assert ranks == {6}
    query = next(v for k, v in weights.tensors.items() if "query.lora_A" in k)
    assert query[:2].abs().min() > 0
    assert (query[2:] == 0).all(), "only the last dense map has directions of its own"


def test_label_texts_go_where_they_should(generator: Prototype) -> None:
    reader = generator.reader()
    labels = reader.read(reader.tokens(ANIMALS.labels))
    target = generator.prototypes(ANIMALS, labels.vectors(), reader)
    found = vectors(generator, adapter(generator, ANIMALS), ANIMALS.labels)
    assert (found * target).sum(1).min() > 0.995
    assert (labels.vectors() * target).sum(1).max() < 0.995, "otherwise nothing was to be done"


def test_unlabelled_texts_centre_the_space(generator: Prototype) -> None:
    with_texts, without = adapter(generator, replace(ANIMALS, texts=TEXTS)), adapter(generator, ANIMALS)
    means = [vectors(generator, weights, TEXTS).mean(0).norm() for weights in (with_texts, without)]
    assert means[0] < 0.9 * means[1]
    labels = [vectors(generator, weights, ANIMALS.labels) for weights in (with_texts, without)]
    spread = [1 - (one @ one.T).mean() for one in labels]
    assert spread[0] > spread[1]


def test_without_labels_it_is_the_static_adapter(generator: Prototype) -> None:
    weights = adapter(generator, TaskText("A sentence.", ()))
    static = generator.static.factors(generator.config.static.strength)
    for module, (a, b) in static.items():
        name = f"base_model.model.{module}.lora_"
        update = weights.tensors[f"{name}B.weight"] @ weights.tensors[f"{name}A.weight"]
        torch.testing.assert_close(update, b @ a)


def test_more_labels_than_the_layout_has_room_for(generator: Prototype) -> None:
    small = generator.layout_for(Condition(words=(replace(ANIMALS, labels=("a", "b")),)))
    assert generator.writes(small)
    with pytest.raises(UsageError, match="3 labels, the layout has room for 2"):
        generator.sample(Condition(words=(ANIMALS,)), small, 1, 0)


def test_generate_writes_what_peft_loads(folder: Path, text_encoder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    out = tmp_path / "adapter"
    jobs.generate(folder, out=out, description=ANIMALS.description, labels=ANIMALS.labels, base=str(text_encoder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what the libraries plan among themselves
        PeftModel.from_pretrained(AutoModel.from_pretrained(text_encoder), str(out))
    receipt = json.loads((out / "weightgen.json").read_text())["generated"]
    assert receipt["generator"] == "prototype"
    again = jobs.generate(folder, out=tmp_path / "b", description=ANIMALS.description, labels=ANIMALS.labels, n=2)
    assert isinstance(again, AdapterResult)
    first, second = ((path / "adapter_model.safetensors").read_bytes() for path in again.folders)
    assert first == second == (out / "adapter_model.safetensors").read_bytes(), "nothing is random"


def test_encoders_of_another_form_are_refused(text_encoder: Path, generator: Prototype, tmp_path: Path) -> None:
    size: dict[str, Any] = {
        "vocab_size": 32,
        "dim": 16,
        "n_layers": 1,
        "n_heads": 2,
        "hidden_dim": 16,
        "max_position_embeddings": 64,
    }
    DistilBertModel(DistilBertConfig(**size)).save_pretrained(tmp_path)
    BertTokenizerFast.from_pretrained(text_encoder).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"no output\.dense followed by output\.LayerNorm"):
        Stack.of(TextEncoder(EncoderConfig(name=str(tmp_path))))
    shorter = TextEncoder(EncoderConfig(name=str(text_encoder)))
    shorter.model.encoder.layer = shorter.model.encoder.layer[:1]
    with pytest.raises(UsageError, match="not those that the generator was made for"):
        generator.attach(shorter)


def test_a_zoo_without_texts_is_refused(tiny_zoo: Path, text_encoder: Path, tmp_path: Path) -> None:
    with Zoo.open(tiny_zoo) as zoo, pytest.raises(UsageError, match="the zoo has none"):
        train_generator(tiny_config("prototype", f"text_encoder={text_encoder}"), zoo, tmp_path / "g")


def test_a_task_with_adapters_of_two_layouts_counts_once(adapter_zoo: Path, text_encoder: Path) -> None:
    with Zoo.open(adapter_zoo) as zoo:
        data = TrainingData(zoo, tiny_config("prototype", f"text_encoder={text_encoder}"))
    data.groups = [*data.groups, *data.groups]
    assert isinstance(data.config, PrototypeConfig)
    fresh = Prototype(data.config, data.problem)
    data.lend(fresh)
    assert len(fresh._tasks) == 2


def test_keys_answer_on_their_own_label_only() -> None:
    rng = torch.Generator().manual_seed(0)
    labels, others = torch.randn(3, 64, generator=rng), torch.randn(20, 64, generator=rng)
    keys = solve_keys(labels, others, torch.ones(20), 1e-6)
    torch.testing.assert_close(labels @ keys[1:].T, torch.eye(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(others @ keys[1:].T, torch.zeros(20, 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cat([labels, others]) @ keys[0], torch.ones(23), atol=1e-3, rtol=0)


def test_prototypes_follow_memory_and_texts() -> None:
    labels = torch.eye(4)[:2]
    values = torch.eye(4)[2:]
    assert recalled(labels, labels, values, 50.0).allclose(values, atol=1e-4)
    offset = torch.tensor([0.0, 0.0, 0.0, 1.0])
    texts = torch.nn.functional.normalize(labels.repeat(5, 1) + offset, dim=-1)
    found, middle = soft_means(labels, texts, 1.0, 0.7, 20.0)
    assert middle.allclose(texts.mean(0))
    assert found[0] @ labels[0] > 0.6
    assert found[0] @ labels[1] < -0.6
    assert contexts("", ["a", "b"])[0] == ["a", "b"]
    assert contexts("What?", ["a"]) == [["What? a"], ["this text is an example of: a"]]


def test_the_kit_is_complete_and_names_its_sources(tmp_path: Path) -> None:
    notes = (FOLDER / "README.md").read_text(encoding="utf-8")
    history = read_history(FOLDER / DEFAULT)
    assert history["license"]
    assert "description made no difference" in history["expected"]
    assert all(f"| {task} |" in notes for task in history["train_tasks"])
    shipped = load_generator(FOLDER / DEFAULT)
    assert isinstance(shipped, Prototype)
    assert len(shipped.memory.labels) > 100
    size = sum(path.stat().st_size for path in (FOLDER / DEFAULT).iterdir())
    assert size <= 8 << 20
    assert adapters_archive().stat().st_size <= 12 << 20
    result = jobs.kit(tmp_path / "zoo")
    assert {source.status for source in result.sources} == {"added"}
    with Zoo.open(tmp_path / "zoo") as zoo:
        records = zoo.records()
    assert len(records) >= 30
    for record in records:
        assert record.task
        assert record.license
        assert record.description
        assert 0 < record.metrics["val_macro_f1"] <= 1
        assert f"| {record.task} |" in notes
        assert {spec.dtype for spec in record.layout.tensors} == {"F16"}
    pairs = load_pairs(pairs_file(tmp_path / "zoo"), MINILM)
    assert {pair.task for pair in pairs} == {record.task for record in records}
    assert {pair.record for pair in pairs} <= {record.id for record in records}
    for view in ("description", "texts"):
        fitted = calibrate(pairs, [view])
        assert isinstance(fitted, Calibration)
        assert fitted.brier < fitted.brier_rate
    with Zoo.open(tmp_path / "mine", create=True) as mine, Zoo.open(tmp_path / "zoo") as zoo:
        weights = zoo.weights(records[0])
        mine.add(Weights(weights.layout, {name: 2 * value for name, value in weights.tensors.items()}))
    jobs.kit(tmp_path / "mine")
    assert not pairs_file(tmp_path / "mine").exists(), "nothing was measured on what is there besides"
