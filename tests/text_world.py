"""A very small text encoder, text tasks, and a zoo of adapters for them; made once a test process."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

WORDS = [
    *("cat", "dog", "fish", "bird", "red", "blue", "green", "grey", "runs", "sleeps", "eats", "jumps"),
    *("the", "a", "is", "not", "animal", "colour", "action"),
]
TASKS = {
    "animals": ("Which animal is it?", ("cat", "dog", "fish", "bird")),
    "colours": ("Which colour is it?", ("red", "blue", "green", "grey")),
    "actions": ("What does it do?", ("runs", "sleeps", "eats", "jumps")),
}


def make_encoder(folder: Path) -> Path:
    """Save a BERT of two layers with its tokenizer."""
    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


def with_peft(model: Any, folder: Path) -> Any:
    """A base model under an adapter, as PEFT loads it."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(model, str(folder)).eval()


def make_task(name: str, folder: Path) -> Path:
    """Save a task: the label is the word of the task that a text holds."""
    description, labels = TASKS[name]
    rng = torch.Generator().manual_seed(len(name))

    def rows(count: int) -> list[list[object]]:
        made: list[list[object]] = []
        for i in range(count):
            noise = [WORDS[j] for j in torch.randint(12, 19, (3,), generator=rng).tolist()]
            made.append([" ".join([*noise[:2], labels[i % 4], noise[2], str(i)]), i % 4])
        return made

    content = {
        "name": name,
        "description": description,
        "labels": [{"name": label, "text": f"the {label}"} for label in labels],
        "train": rows(40),
        "validation": rows(16),
        "test": rows(16),
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the small encoder."""
    return make_encoder(tmp_path_factory.mktemp("encoder") / "bert")


@pytest.fixture(scope="session")
def text_tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of the tasks by name."""
    folder = tmp_path_factory.mktemp("tasks")
    return {name: make_task(name, folder) for name in TASKS}


@pytest.fixture(scope="session")
def adapter_zoo(text_encoder: Path, text_tasks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a zoo of six adapters of the small encoder; one task is for validation."""
    from zoo.build import build

    path = tmp_path_factory.mktemp("zoo") / "adapters"
    overrides = [
        f"data.sources=[{', '.join(str(file) for file in text_tasks.values())}]",
        f"encoder={{name: {text_encoder}}}",
        "lora.r=2",
        "tasks={held_out: [], validation: [actions]}",
        "training={steps: 3, batch_size: 4}",
    ]
    build(Path(__file__).parent.parent / "configs" / "lora-text.yaml", path, overrides)
    return path
