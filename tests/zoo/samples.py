"""Small weights and adapters that the tests of the zoo share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo import safefile
from zoo.kinds import dense, lora
from zoo.types import Weights

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "org/base",
    "r": 2,
    "lora_alpha": 4,
    "rank_pattern": {},
    "target_modules": ["query"],
}


def mlp(seed: int = 0) -> Weights:
    """A network of two layers with a batch norm between them."""
    random = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {
        "fc1.weight": torch.randn(4, 3, generator=random),
        "fc1.bias": torch.randn(4, generator=random),
        "bn.weight": torch.randn(4, generator=random),
        "bn.running_mean": torch.randn(4, generator=random),
        "bn.num_batches_tracked": torch.tensor(7),
        "fc2.weight": torch.randn(2, 4, generator=random, dtype=torch.float32).to(torch.bfloat16),
    }
    return dense.from_state_dict(state)


def factors(seed: int = 0, layers: int = 2) -> dict[str, Tensor]:
    """Factors of rank 2 for a few layers of width 6."""
    random = torch.Generator().manual_seed(seed)
    result = {}
    for layer in range(layers):
        prefix = f"base_model.model.layer.{layer}.query."
        result[prefix + "lora_A.weight"] = torch.randn(2, 6, generator=random)
        result[prefix + "lora_B.weight"] = torch.randn(6, 2, generator=random)
    return result


def adapter(seed: int = 0, **config: Any) -> Weights:
    """An adapter over ``factors``."""
    return lora.from_state_dict(factors(seed), {**CONFIG, **config})


def write_adapter(folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    """Write an adapter folder without the code under test."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    save_file(tensors if tensors is not None else factors(), folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors agree in names, order, types and every bit."""
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and safefile.raw(a[n]) == safefile.raw(b[n]) for n in a
    )
