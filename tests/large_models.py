"""Tiny transformers checkpoints with tokenizers, and tasks for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = 40
TINY = [
    "chunk.rows=4",
    "chunk.columns=8",
    "model.codec={latent: 8, width: 16, depth: 1, heads: 2}",
    "model.denoiser={width: 16, depth: 1, heads: 2, sampling_steps: 5}",
    "codec={steps: 6, batch_size: 8}",
    "diffusion={steps: 6, batch_size: 8}",
    "layers.top=2",
    "sample.n=3",
    "sample.controls=1",
]


def save_tokenizer(folder: Path) -> None:
    """Word-level tokenizer of the words w0, w1, ..."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w0")
    fast.save_pretrained(folder)


def save_model(folder: Path, family: str, **changes: Any) -> Path:
    """Write a random model of a family, and its tokenizer; returns the folder."""
    torch.manual_seed(0)
    model: Any
    if family == "llama":
        size = {"hidden_size": 16, "intermediate_size": 36, "num_hidden_layers": 2, "vocab_size": WORDS}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        tied = changes.pop("tied", False)
        config = transformers.LlamaConfig(**size, **heads, tie_word_embeddings=tied, initializer_range=0.3)
        model = transformers.LlamaForCausalLM(config)
    elif family == "mixtral":
        size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": WORDS}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2}
        config = transformers.MixtralConfig(**size, **heads, initializer_range=0.3)
        model = transformers.MixtralForCausalLM(config)
    elif family == "gpt2":
        config = transformers.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, vocab_size=WORDS, n_positions=32, initializer_range=0.3
        )
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.BertConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=WORDS,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
        model = transformers.BertModel(config)
    model.to(changes.pop("dtype", torch.float32)).save_pretrained(folder, **changes)
    save_tokenizer(folder)
    return folder


def sentence(seed: int, length: int = 6) -> str:
    """Random words; different seeds give different texts."""
    generator = torch.Generator().manual_seed(seed)
    return " ".join(f"w{i}" for i in torch.randint(1, WORDS, (length,), generator=generator).tolist())


def likelihood_task(path: Path, first: int = 0, count: int = 12) -> Path:
    """Running texts."""
    path.write_text("".join(json.dumps({"text": sentence(i)}) + "\n" for i in range(first, first + count)))
    return path


def choice_task(path: Path, first: int = 0, count: int = 12) -> Path:
    """Questions with two or three choices."""
    rows = []
    for i in range(first, first + count):
        choices = [" " + sentence(1000 + 10 * i + k, 1 + k) for k in range(2 + i % 2)]
        rows.append({"prompt": sentence(i), "choices": choices, "answer": i % 2})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def label_task(path: Path) -> Path:
    """A text classification task with all parts."""
    parts = {
        part: [[sentence(100 * p + i), i % 2] for i in range(12)]
        for p, part in enumerate(("train", "validation", "test"))
    }
    labels = [{"name": "a", "text": "w1 w2"}, {"name": "b", "text": "w3 w4"}]
    path.write_text(json.dumps({"name": "tiny", "labels": labels, **parts}))
    return path
