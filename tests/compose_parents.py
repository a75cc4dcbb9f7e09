"""Tiny parents for tests of composition: adapters as PEFT makes them, and networks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightgen.compose.adapters import read_adapter
from weightgen.compose.delta import Delta
from zoo.architectures import family
from zoo.kinds import dense, lora
from zoo.types import Weights

MLP = {"family": "mlp", "sizes": [5, 7, 3], "activation": "relu"}
CONFIG = {"peft_type": "LORA", "base_model_name_or_path": "base", "bias": "none"}


class Small(nn.Module):
    """A module with every layer that LoRA adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.first = nn.Linear(6, 8)
        self.conv = nn.Conv2d(3, 4, 3)
        self.point = nn.Conv2d(4, 5, 1)
        self.head = nn.Linear(8, 2)


def adapter(seed: int, rank: int = 2, modules: tuple[str, ...] = ("layer.0.q", "layer.1.q"), **changes: Any) -> Weights:
    """A LoRA with random factors on matrices of 6 outputs and 5 inputs."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for module in modules:
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, 5, generator=generator)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(6, rank, generator=generator)
    config = {**CONFIG, "r": rank, "lora_alpha": 4, "target_modules": ["q"], **changes}
    return lora.from_state_dict(tensors, config)


def network(seed: int) -> Weights:
    """A perceptron with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = family(MLP).build(MLP)
    return dense.from_state_dict({k: v.clone() for k, v in module.state_dict().items()}, architecture=MLP)


def changes(weights: Weights) -> dict[str, Tensor]:
    """What an adapter or network adds, in full."""
    if weights.layout.kind == "dense":
        return {name: value.double() for name, value in weights.tensors.items()}
    return {name: delta.values() for name, delta in read_adapter(weights, "it").deltas.items()}


def values(deltas: Mapping[str, Delta]) -> dict[str, Tensor]:
    """Changes in full."""
    return {name: delta.values() for name, delta in deltas.items()}


def error(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Relative distance of two sets of changes; tensors that one does not have count as zero."""
    names = {*found, *wanted}
    zero = torch.zeros(())
    off = sum((found.get(n, zero) - wanted.get(n, zero)).square().sum() for n in names)
    return float((off / sum(value.square().sum() for value in wanted.values())) ** 0.5)


def by_peft(folder: Path, seed: int, **settings: Any) -> tuple[Weights, dict[str, Tensor]]:
    """An adapter that PEFT made on ``Small``, and what merging it into the base changes there."""
    from peft import LoraConfig, get_peft_model

    from weightgen.compose import load

    torch.manual_seed(0)
    small = Small()
    before = {name: value.detach().clone() for name, value in small.named_parameters()}
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(small, LoraConfig(base_model_name_or_path="base", **settings))  # type: ignore[arg-type]
        for name, value in wrapped.named_parameters():
            if "lora_" in name:
                nn.init.normal_(value)
        wrapped.save_pretrained(str(folder), save_embedding_layers=False)
        merged = wrapped.merge_and_unload()  # type: ignore[operator]
    after = {name: value.detach() - before[name] for name, value in merged.named_parameters()}
    return load(folder), {name: value for name, value in after.items() if value.any()}
