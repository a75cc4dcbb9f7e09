"""Whether the anchor is the model that an adapter was trained on: equal shapes do not say so."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from weightgen.large.folder import open_model
from zoo.errors import BadArtefact, UsageError

ROUNDING = 2e-2
"""Relative distance of two copies of one tensor at most, one of which may have been rounded to bfloat16."""


def check_base(anchor: Any, source: str, config: Mapping[str, Any]) -> None:
    """Compare the anchor with the base that an adapter names: by weights if that is a folder here, else by name.

    Args:
        anchor: the model that the adapter is to be used on; it may carry other adapters.
        source: the adapter, for messages.
        config: of the adapter.

    Raises:
        UsageError: if the named base is on this machine and has other weights.
    """
    named, own = str(config.get("base_model_name_or_path") or ""), str(getattr(anchor, "name_or_path", "") or "")
    if not named or not own or Path(named).resolve() == Path(own).resolve():
        return
    remedy = f"give the base it was trained on as anchor: {named}"
    compared = _compare(anchor, Path(named))
    if compared is None and Path(named).name != Path(own).name:  # the same name elsewhere is taken for a copy
        warnings.warn(f"the adapter {source} was trained on {named} and the anchor is {own}; {remedy}", stacklevel=2)
    elif compared:
        raise UsageError(
            f"the adapter {source} was trained on {named}, whose {compared} is not that of the anchor {own}", remedy
        )


def _compare(anchor: Any, folder: Path) -> str | None:
    """The last matrix of a layer if it differs, nothing in words if it is the same, ``None`` if that is unknown."""
    if not folder.is_dir():
        return None
    model = anchor.get_base_model() if hasattr(anchor, "peft_config") else anchor
    own = {name.replace(".base_layer.", "."): value for name, value in model.named_parameters() if "lora_" not in name}
    matrices = [
        name for name, value in own.items() if value.ndim == 2 and any(part.isdigit() for part in name.split("."))
    ]
    try:
        saved = open_model(str(folder))
        name = next(name for name in reversed(matrices) if name in saved.tensors)
        ((_, theirs),) = saved.stream([name])
    except (BadArtefact, StopIteration):
        return None
    mine = own[name].detach().cpu().float()
    if theirs.shape == mine.shape and torch.dist(theirs.float(), mine) <= ROUNDING * mine.norm():
        return ""
    return name
