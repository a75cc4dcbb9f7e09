"""How much memory a fusion needs, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.peft_utils import find_adapter_config_file

from zoo.errors import BadArtefact, WeightgenError

SOLVER_BUFFERS = 20
"""Vectors of the size of the vocabulary that a row needs while it is fused, in float32."""


def no_model(what: str, source: str | Path, error: Exception) -> BadArtefact:
    """The error for a source that holds no causal model; a folder that is not there is called that.

    Args:
        what: how to name the model.
        source: folder or Hub id.
        error: what transformers said.
    """
    missing = not Path(source).exists() and str(source).count("/") != 1
    reason = "there is no such folder" if missing else str(error).splitlines()[0]
    return BadArtefact(f"{what} is no causal language model: {reason}", "give the folder or Hub id of one")


def _is_adapter(source: str | Path) -> bool:
    try:
        return find_adapter_config_file(str(source)) is not None
    except (OSError, ValueError):
        return False


def weight_bytes(source: str | Path, dtype: torch.dtype | None = None, role: str = "model") -> int:
    """Memory for the weights of a model or adapter; nothing is read but its config or file sizes.

    Args:
        source: id or folder; an adapter that must be fetched first counts nothing.
        dtype: type that it is loaded in; by default the stored one.
        role: what it is for, named in errors.

    Raises:
        BadArtefact: if there is no model.
    """
    if _is_adapter(source):
        return sum(path.stat().st_size for path in Path(source).glob("adapter_model.*"))
    try:
        config = AutoConfig.from_pretrained(str(source))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise no_model(f"the {role} {source}", source, error) from None
    stored = getattr(config, "dtype", None)
    size = (dtype or (stored if isinstance(stored, torch.dtype) else torch.float32)).itemsize
    return size * sum(parameter.numel() for parameter in model.parameters())


def cache_bytes(source: str | Path, tokens: int, rows: int, dtype: torch.dtype | None = None) -> int:
    """Memory for the keys and values of a model; 0 for an adapter, whose rows are counted with its base."""
    if _is_adapter(source):
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
    sizes: dict[str, float] = {
        name: float(weight_bytes(source, dtype, "strong model" if name == "strong" else name))
        for source, name in names.items()
    }
    sizes["caches"] = float(sum(cache_bytes(source, tokens, rows, dtype) for source in names))
    for expert, anchor in experts:
        if _is_adapter(expert):
            sizes["caches"] += cache_bytes(anchor, tokens, rows, dtype)
    vocabulary = AutoConfig.from_pretrained(str(strong)).get_text_config(decoder=True).vocab_size
    sizes["fusion"] = 4.0 * rows * vocabulary * (SOLVER_BUFFERS + 2 * len(experts))
    sizes["total"] = sum(sizes.values())
    return {name: size / 1e9 for name, size in sizes.items()}


def available(table: Path = Path("/proc/meminfo")) -> float:
    """Free gigabytes: of the accelerator if there is one, else of the machine, its file cache included.

    Args:
        table: where the kernel says how much it can give; systems without it count free pages alone.
    """
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] / 1e9
    try:
        rows = dict(line.split(":", 1) for line in table.read_text().splitlines())
        return int(rows["MemAvailable"].split()[0]) * 1024 / 1e9
    except (OSError, KeyError, ValueError):
        pass
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
        remedy = "load in bfloat16, use an adapter on the anchor instead of a whole expert, or a smaller strong model"
        if largest in ("caches", "fusion"):
            remedy = "use shorter texts or fewer of them at a time (here: --tokens, --rows, --max-new-tokens)"
        raise WeightgenError(
            f"the fusion needs about {sizes['total']:.1f} GB and {free:.1f} GB are free; most of it is {largest}",
            remedy,
        )
