"""Tiny causal models and a tokenizer for the tests of weak-to-strong decoding, made in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SIZE = 300
END, PAD = "<|end|>", "<|pad|>"


def tokenizer(order: int = 1, extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Byte tokens with a few merges; ``order=-1`` numbers the same tokens the other way round."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "Ġthe", "in", *extra]
    names = [END, PAD, *pieces[::order]]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n")]
    made = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=END, pad_token=PAD, padding_side="left", clean_up_tokenization_spaces=False
    )


def llama(seed: int, width: int = 16, size: int = SIZE, **config: object) -> LlamaForCausalLM:
    """A Llama with random weights that are large enough for clear preferences."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": size,
        "hidden_size": width,
        "num_hidden_layers": 2,
        "intermediate_size": 2 * width,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "eos_token_id": 0,
        "bos_token_id": None,
        "pad_token_id": 1,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **config})).eval()


def gpt2(seed: int, size: int = SIZE) -> GPT2LMHeadModel:
    """A GPT-2 with random weights, learned positions and all."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=size, n_embd=16, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3, eos_token_id=0,
        bos_token_id=None, pad_token_id=1,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def save(model: PreTrainedModel, folder: Path, words: PreTrainedTokenizerFast | None = None) -> str:
    """Write a model with its tokenizer; the folder."""
    model.save_pretrained(folder)
    (words or tokenizer()).save_pretrained(folder)
    return str(folder)


def family(folder: Path) -> dict[str, str]:
    """Folders of a strong model, an expert and its anchor, and a file of labelled items."""
    made = {
        "strong": save(llama(0, 32), folder / "strong"),
        "expert": save(llama(1), folder / "expert"),
        "anchor": save(llama(2), folder / "anchor"),
        "items": str(folder / "items.jsonl"),
    }
    items = [{"prompt": f"Count to {n}: ", "answer": " ".join(map(str, range(n)))} for n in range(2, 9)]
    Path(made["items"]).write_text("".join(json.dumps(item) + "\n" for item in items))
    return made
