"""Zoos over text tasks: LoRA adapters, full fine-tunes and heads of an encoder made here; nothing is downloaded."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from zoo.build import build, load_recipe
from zoo.build.encoder import INSTALL_OFFLINE, EncoderConfig, TextEncoder
from zoo.build.registry import make_recipe
from zoo.build.text_tasks import load_text_tasks
from zoo.build.text_training import TextTrainingConfig, _factor, _labels, finetune, text_scores
from zoo.config import dump_config
from zoo.errors import NetworkError, UsageError
from zoo.networks import logits
from zoo.tasks import VAL, TaskData
from zoo.texts import unpack
from zoo.zoo import Zoo

CONFIGS = Path(__file__).parent.parent.parent / "configs"
WORDS = ["red", "green", "blue", "dog", "cat", "fish", "the", "a", "is", "colour", "animal"]
COLOURS, ANIMALS = WORDS[:3], WORDS[3:6]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a very small BERT with a word-level tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder") / "tiny-bert"
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=16, **sizes))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of three tasks: which colour, which animal, colour or animal."""
    folder = tmp_path_factory.mktemp("tasks")
    generator = torch.Generator().manual_seed(0)
    groups = {"colours": [[w] for w in COLOURS], "animals": [[w] for w in ANIMALS], "kinds": [COLOURS, ANIMALS]}
    for name, labels in groups.items():
        rows = []
        for i in range(60):
            y = i % len(labels)
            word = labels[y][int(torch.randint(len(labels[y]), (), generator=generator))]
            rows.append([f"the {word} is a {WORDS[int(torch.randint(6, 9, (), generator=generator))]}", y])
        texts = ["the colour", "the animal"] if name == "kinds" else [f"is {w[0]}" for w in labels]
        task = {
            "name": name,
            "description": f"which of the {name}",
            "labels": [{"name": f"l{i}", "text": text} for i, text in enumerate(texts)],
            "train": rows[:42],
            "validation": rows[42:],
            "test": rows[42:],
            "source": {"licence": f"licence of {name}"},
        }
        (folder / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps(task).encode()))
    return folder


@pytest.fixture(scope="module")
def lora(encoder: Path, tasks: Path) -> tuple[str, ...]:
    return (
        f"data.sources=[{tasks}]",
        f"encoder.name={encoder}",
        "encoder.base_model=example/tiny-bert",
        "training.steps=30",
        "training.lr=0.03",
        "tasks.held_out=[kinds]",
    )


@pytest.fixture(scope="module")
def adapters(lora: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapters") / "zoo"
    report = build(CONFIGS / "lora-text.yaml", path, lora)
    assert (report.added, report.failed) == (6, 0)
    return path


def test_adapters_learn_and_keep_task_licence_and_base(adapters: Path, tasks: Path) -> None:
    with Zoo.open(adapters) as zoo:
        records = zoo.records()
        assert {record.layout.kind for record in records} == {"lora"}
        assert {record.layout.base_model for record in records} == {"example/tiny-bert"}
        assert {(r.task, r.license, r.split) for r in records} == {
            ("colours", "licence of colours", "train"),
            ("animals", "licence of animals", "train"),
            ("kinds", "licence of kinds", "test"),
        }
        assert all(r.metrics["val_accuracy"] > r.metrics["base_val_accuracy"] for r in records if r.task != "kinds")
        (task,) = load_text_tasks([str(tasks / "colours.json.gz")], 0.1, 0)
        assert unpack(zoo.dataset("colours")) == list(task.texts)
        assert zoo.task("colours").class_names == ("l0", "l1", "l2")
        assert zoo.verify() == []


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_loads_an_exported_adapter_and_scores_the_same(
    adapters: Path, tasks: Path, encoder: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    with Zoo.open(adapters) as zoo:
        record = zoo.records(task="animals")[1]
        zoo.export(record.id, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    loaded = TextEncoder(EncoderConfig(name=str(encoder)))
    loaded.model = PeftModel.from_pretrained(loaded.model, tmp_path / "out").eval()
    (task,) = load_text_tasks([str(tasks / "animals.json.gz")], 0.1, 0)
    assert text_scores(loaded, task)["accuracy"] == pytest.approx(record.metrics["val_accuracy"], abs=1e-6)


def test_members_do_not_depend_on_what_was_trained_before(adapters: Path, lora: tuple[str, ...]) -> None:
    plan = make_recipe(dump_config(load_recipe(CONFIGS / "lora-text.yaml", lora)))
    with Zoo.open(adapters) as zoo:
        for lineage in ("kinds/seed1", "animals/seed0"):
            (member,) = plan.train([(lineage, lineage.partition("/")[0])])
            assert member.weights is not None
            assert zoo.contains(member.weights) == zoo.records(lineage=lineage)[0].id
            assert member.metrics == zoo.records(lineage=lineage)[0].metrics


def test_members_of_one_number_share_their_start_if_asked_to(lora: tuple[str, ...]) -> None:
    for shared in (True, False):
        overrides = [*lora, f"lora.shared_start={str(shared).lower()}", "training.lr=1e-12", "training.steps=1"]
        plan = make_recipe(dump_config(load_recipe(CONFIGS / "lora-text.yaml", overrides)))
        names = [("colours/seed0", "colours"), ("animals/seed0", "animals"), ("animals/seed1", "animals")]
        starts = []
        for member in plan.train(names):
            assert member.weights is not None
            starts.append(next(value for name, value in member.weights.tensors.items() if "lora_A" in name))
        assert torch.allclose(starts[0], starts[1]) == shared
        assert not torch.allclose(starts[1], starts[2])


def test_full_fine_tunes_start_from_the_same_encoder(encoder: Path, tasks: Path, tmp_path: Path) -> None:
    overrides = (
        f"text.data.sources=[{tasks / 'colours.json.gz'}, {tasks / 'animals.json.gz'}]",
        f"text.encoder.name={encoder}",
        "text.training.steps=15",
        "text.training.lr=0.003",
    )
    report = build(CONFIGS / "finetune-text.yaml", tmp_path / "zoo", overrides)
    assert (report.added, report.failed) == (2, 0)
    start = TextEncoder(EncoderConfig(name=str(encoder))).model.state_dict()
    with Zoo.open(tmp_path / "zoo") as zoo:
        for record in zoo:
            assert (record.layout.kind, record.layout.base_model) == ("dense", str(encoder))
            tensors = zoo.weights(record).tensors
            assert tensors.keys() == start.keys()
            moved = torch.cat([(tensors[name] - value).flatten() for name, value in start.items()])
            assert 0 < moved.abs().max() < 0.1
            assert record.metrics["val_accuracy"] >= record.metrics["base_val_accuracy"]


def test_fine_tunes_of_a_network_start_from_a_file(tmp_path: Path) -> None:
    recipe, few = CONFIGS / "finetune-digits.yaml", ("members_per_task=2", "network.training.epochs=1")
    assert build(recipe, tmp_path / "first", few).added == 2
    with Zoo.open(tmp_path / "first") as zoo:
        first = zoo.records()[0]
        zoo.export(first.id, tmp_path / "start")
        start = zoo.weights(first).tensors
    file = next((tmp_path / "start").iterdir())
    slow = (*few, f"network.initial={file}", "network.training.lr=0.0001")
    assert build(recipe, tmp_path / "second", slow).added == 2
    with Zoo.open(tmp_path / "second") as zoo:
        for record in zoo:
            weights = zoo.weights(record)
            assert max((weights.tensors[name] - value).abs().max().item() for name, value in start.items()) < 0.01
            assert record.metrics["val_accuracy"] >= first.metrics["val_accuracy"] - 0.05
    wrong = "network.architecture={family: mlp, sizes: [64, 8, 10]}"
    with pytest.raises(UsageError, match="does not fit"):
        build(recipe, tmp_path / "third", [*slow, wrong])
    with pytest.raises(UsageError, match="9 outputs, sklearn-digits has 10 classes"):
        build(recipe, tmp_path / "fourth", [*few, "network.architecture={family: mlp, sizes: [64, 9]}"])
    with pytest.raises(UsageError, match="exactly one of text and network"):
        build(recipe, tmp_path / "fifth", [*few, "network=null"])


def test_heads_on_frozen_features(encoder: Path, tasks: Path, tmp_path: Path) -> None:
    overrides = (f"data.sources=[{tasks}]", f"data.encoder.name={encoder}", "members_per_task=2", "training.epochs=60")
    report = build(CONFIGS / "heads-text.yaml", tmp_path / "zoo", overrides)
    assert (report.added, report.failed) == (6, 0)
    with Zoo.open(tmp_path / "zoo") as zoo:
        assert {record.layout.numel for record in zoo} == {16 * 3 + 3, 16 * 2 + 2}
        record = zoo.records(task="colours")[0]
        x, y = TaskData.select(zoo.dataset("colours"), (0, 1, 2)).part(VAL)
        weights = zoo.weights(record)
        found = logits(weights.layout.config["architecture"], weights.tensors, x).argmax(1)
        assert (found == y).float().mean().item() == pytest.approx(record.metrics["val_accuracy"], abs=1e-6)
        assert record.metrics["train_accuracy"] > 0.6


def test_heads_on_features_from_a_file(tmp_path: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 12)).astype(np.float32)
    np.savez(tmp_path / "made.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    overrides = (f"data={{sources: [{tmp_path / 'made.npz'}]}}", "members_per_task=3", "head.hidden=[4]")
    assert build(CONFIGS / "heads-text.yaml", tmp_path / "zoo", overrides).added == 3
    with Zoo.open(tmp_path / "zoo") as zoo:
        assert all(record.metrics["val_accuracy"] > 0.8 for record in zoo)
    np.savez(tmp_path / "made.npz", x=x[:, :, None], y=(x[:, 0] > 0).astype(np.int64))
    with pytest.raises(UsageError, match="give features"):
        build(CONFIGS / "heads-text.yaml", tmp_path / "other", overrides)


# parts


def test_an_encoder_that_is_nowhere_says_where_it_could_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="holds no text encoder"):
        TextEncoder(EncoderConfig(name=str(tmp_path)))
    with pytest.raises(NetworkError, match=r"'nobody/nothing'.*" + INSTALL_OFFLINE[:20]):
        TextEncoder(EncoderConfig(name="nobody/nothing"))


def test_encoding_does_not_depend_on_company(encoder: Path) -> None:
    loaded = TextEncoder(EncoderConfig(name=str(encoder)))
    texts = ["the red dog", "a", "blue fish is the colour the animal"]
    together = loaded.encode(texts)
    torch.testing.assert_close(together, torch.cat([loaded.encode([text]) for text in texts]))
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    states, mask = loaded.read(texts, batch=2)
    assert mask.sum(1).tolist() == [len(row) for row in loaded.tokens(texts, 48)]
    assert not states[~mask].any()
    pooled = torch.nn.functional.normalize(states.sum(1), dim=1)
    torch.testing.assert_close(pooled, together)


def test_the_labels_of_a_step_hold_those_of_the_batch() -> None:
    rng = torch.Generator().manual_seed(0)
    assert _labels(torch.tensor([2]), 5, 12, rng).equal(torch.arange(5))
    for _ in range(20):
        y = torch.randint(30, (16,), generator=rng)
        seen = _labels(y, 30, 12, rng)
        assert torch.isin(y, seen).all()
        assert len(seen) == len(seen.unique()) == max(12, len(y.unique()))


def test_the_learning_rate_rises_and_falls() -> None:
    config = TextTrainingConfig(steps=10, warmup=4)
    factors = [_factor(step, config) for step in range(10)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert factors[-1] > 0


def test_training_goes_on_where_a_task_is_smaller_than_a_batch(encoder: Path, tasks: Path) -> None:
    loaded = TextEncoder(EncoderConfig(name=str(encoder)))
    (task,) = load_text_tasks([str(tasks / "kinds.json.gz")], 0.1, 0)
    config = TextTrainingConfig(steps=3, batch_size=100)
    assert finetune(loaded, list(loaded.model.parameters()), task, config, 0) > 0
