"""Small networks of every family, with a way to run them, for tests of symmetries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.architectures import UnitGroup, family

Tensors = dict[str, Tensor]

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
BERT = {**TINY, "vocab_size": 30, "max_position_embeddings": 12, "type_vocab_size": 2}
GPT2 = {"vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 12}
GPT2 |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LLAMA = {**TINY, "vocab_size": 30, "num_key_value_heads": 2, "max_position_embeddings": 12}
LLAMA |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
RESNET = {"family": "resnet", "blocks": [1, 1], "widths": [8, 12], "classes": 5}
VIT = {"family": "vit", "image": 8, "patch": 4, "width": 12, "layers": 2, "heads": 3, "mlp": 10, "classes": 4}
VIT_CONFIG = {**TINY, "image_size": 8, "patch_size": 4}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mlp": {"family": "mlp", "sizes": [6, 7, 4, 5, 3], "activation": "tanh"},
    "mlp-relu": {"family": "mlp", "sizes": [6, 7, 4, 5, 3], "activation": "relu"},
    "cnn": {"family": "cnn"},
    "cnn-relu": {"family": "cnn", "activation": "relu"},
    "resnet": RESNET,
    "resnet-conv": {**RESNET, "shortcut": "conv", "blocks": [2, 1]},
    "resnet-torchvision": {**RESNET, "style": "torchvision", "activation": "tanh"},
    "resnet-bottleneck": {**RESNET, "expansion": 4, "blocks": [2, 1]},
    "resnet-bottleneck-torchvision": {**RESNET, "style": "torchvision", "expansion": 2},
    "resnet-bottleneck-bare": {**RESNET, "norm": False, "expansion": 2, "activation": "tanh"},
    "resnet-deep": {**RESNET, "style": "torchvision", "expansion": 4, "stem": "deep", "shortcut": "pool"},
    "resnet-bare": {**RESNET, "norm": False, "prefix": "module."},
    "resnet-bare-conv": {**RESNET, "norm": False, "shortcut": "conv"},
    "resnet-unnormalised-tanh": {**RESNET, "norm": False, "activation": "tanh", "blocks": [1, 1]},
    "vit": VIT,
    "vit-relu": {**VIT, "activation": "relu"},
    "vit-transformers": {
        "family": "vit_transformers",
        "model": "ViTForImageClassification",
        "names": "module",
        "config": {**VIT_CONFIG, "num_labels": 4},
    },
    "vit-headless": {
        "family": "vit_transformers",
        "model": "ViTModel",
        "names": "module",
        "config": {**VIT_CONFIG, "qkv_bias": False, "hidden_act": "relu"},
    },
    "bert-classes": {"family": "bert", "model": "BertForSequenceClassification", "config": BERT},
    "bert-words": {"family": "bert", "model": "BertForMaskedLM", "config": {**BERT, "hidden_act": "relu"}},
    "bert-untied": {"family": "bert", "model": "BertForMaskedLM", "config": {**BERT, "tie_word_embeddings": False}},
    "bert": {"family": "bert", "model": "BertModel", "config": BERT},
    "gpt2": {"family": "gpt2", "model": "GPT2LMHeadModel", "config": GPT2},
    "gpt2-classes": {"family": "gpt2", "model": "GPT2ForSequenceClassification", "config": GPT2},
    "gpt2-bare": {"family": "gpt2", "model": "GPT2Model", "config": GPT2},
    "llama": {"family": "llama", "model": "LlamaForCausalLM", "config": LLAMA},
    "llama-biased": {
        "family": "llama",
        "model": "LlamaForSequenceClassification",
        "config": {**LLAMA, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    },
    "llama-tied": {"family": "llama", "model": "LlamaForCausalLM", "config": {**LLAMA, "tie_word_embeddings": True}},
}


def make(architecture: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """A network in evaluation mode, with random values in everything that starts as 0 or 1."""
    torch.manual_seed(seed)
    network = family(architecture).build(architecture).eval()
    for name, value in network.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else torch.randn_like(value) * 0.5 + 0.2)
        elif not value.is_floating_point():
            value.copy_(torch.arange(value.numel()).view(value.shape) + 11)
    return network


def state(network: nn.Module) -> Tensors:
    """A copy of the state dict."""
    return {name: value.clone() for name, value in network.state_dict().items()}


def groups(architecture: Mapping[str, Any]) -> tuple[UnitGroup, ...]:
    """The groups that the family declares."""
    return family(architecture).groups(architecture)


def inputs(architecture: Mapping[str, Any]) -> Tensor:
    """A batch that the network accepts."""
    random = torch.Generator().manual_seed(5)
    kind = architecture["family"]
    if kind in ("bert", "gpt2", "llama"):
        return torch.randint(1, 30, (3, 9), generator=random)
    shapes = {"vit_transformers": (3, 8, 8), "mlp": (6,), "cnn": (1, 28, 28), "resnet": (3, 16, 16), "vit": (3, 8, 8)}
    return torch.randn(7, *shapes[kind], generator=random)


@torch.no_grad()
def run(network: nn.Module, tensors: Tensors, x: Tensor) -> Tensor:
    """Outputs of a network with other tensors; shared ones have to agree."""
    network.load_state_dict(tensors)
    for name, value in network.state_dict().items():
        assert value.equal(tensors[name]), f"{name} is shared with a tensor of another value"
    found = network(x)
    return found if isinstance(found, Tensor) else found[0]


def difference(a: Tensor, b: Tensor) -> float:
    """Largest change of an output, in units of the largest output."""
    return float((a - b).abs().max() / b.abs().max())


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether names, types and values agree."""
    return list(a) == list(b) and all(a[name].dtype == b[name].dtype and a[name].equal(b[name]) for name in a)


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Largest relative difference of a tensor."""
    parts = [float((a[n].double() - b[n].double()).norm() / b[n].double().norm().clamp(min=1e-30)) for n in b]
    return max(parts)
