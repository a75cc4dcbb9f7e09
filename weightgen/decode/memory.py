"""How much memory a fusion needs, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from zoo.errors import BadArtefact, WeightgenError

SOLVER_BUFFERS = 20
"""Vectors of the size of the vocabulary that a row needs while it is fused, in float32."""


def weight_bytes(source: str | Path, dtype: torch.dtype | None = None) -> int:
    """Memory for the weights of a model or adapter; nothing is read but its config or file sizes.

    Raises:
        BadArtefact: if there is no model.
    """
    adapter = Path(source) / "adapter_model.safetensors"
    if adapter.is_file():
        return adapter.stat().st_size
    try:
        config = AutoConfig.from_pretrained(str(source))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise BadArtefact(
            f"{source} is no causal language model: {str(error).splitlines()[0]}", "give its folder or Hub id"
        ) from None
    stored = getattr(config, "dtype", None)
    size = (dtype or (stored if isinstance(stored, torch.dtype) else torch.float32)).itemsize
    return size * sum(parameter.numel() for parameter in model.parameters())


def cache_bytes(source: str | Path, tokens: int, rows: int, dtype: torch.dtype | None = None) -> int:
    """Memory for the keys and values of a model; 0 for an adapter, whose rows are counted with its base."""
    if (Path(source) / "adapter_config.json").is_file():
        return 0
    config: Any = AutoConfig.from_pretrained(str(source)).get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * (dtype or torch.float32).itemsize * tokens * rows


def estimate(
    strong: str | Path,
    experts: Sequence[tuple[str | Path, str | Path]],
    tokens: int = 1024,
    rows: int = 1,
    dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """Gigabytes of each model, of all caches and of the fusion itself.

    Args:
        strong: id or folder.
        experts: pairs of ids or folders; an anchor that several share is counted once.
        tokens: length of a sequence, prompt and answer.
        rows: sequences at a time.
        dtype: type that the models are loaded in; by default the stored one.
    """
    names: dict[str, str] = {str(strong): "strong"}
    for place, (expert, anchor) in enumerate(experts):
        names.setdefault(str(expert), f"expert {place}")
        names.setdefault(str(anchor), f"anchor {place}")
    sizes: dict[str, float] = {name: float(weight_bytes(source, dtype)) for source, name in names.items()}
    sizes["caches"] = float(sum(cache_bytes(source, tokens, rows, dtype) for source in names))
    for expert, anchor in experts:
        if (Path(expert) / "adapter_config.json").is_file():
            sizes["caches"] += cache_bytes(anchor, tokens, rows, dtype)
    vocabulary = AutoConfig.from_pretrained(str(strong)).get_text_config(decoder=True).vocab_size
    sizes["fusion"] = 4.0 * rows * vocabulary * (SOLVER_BUFFERS + 2 * len(experts))
    sizes["total"] = sum(sizes.values())
    return {name: size / 1e9 for name, size in sizes.items()}


def available() -> float:
    """Free gigabytes: of the accelerator if there is one, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] / 1e9
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (ValueError, OSError, AttributeError):
        return float("inf")


def check_memory(sizes: dict[str, float]) -> None:
    """Fail before loading if the models cannot fit.

    Raises:
        WeightgenError: if more is needed than is free.
    """
    free = available()
    if sizes["total"] > free:
        largest = max((name for name in sizes if name != "total"), key=lambda name: sizes[name])
        raise WeightgenError(
            f"the fusion needs about {sizes['total']:.1f} GB and {free:.1f} GB are free; most of it is {largest}",
            "load in bfloat16, use an adapter on the anchor instead of a whole expert, or a smaller strong model",
        )
