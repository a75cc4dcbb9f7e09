"""The ``config.json`` that transformers and diffusers write beside the weights of a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from zoo.adapter_folder import MAX_EXTRA, small_file
from zoo.errors import BadArtefact
from zoo.kinds import parse_json

CONFIG_FILE = "config.json"
_WEIGHTS = re.compile(r"(diffusion_pytorch_|pytorch_)?model(\.[\w-]+)?\.(safetensors|bin)(\.index\.json)?")
NO_FUNCTION = (
    *("_name_or_path", "transformers_version", "_diffusers_version", "torch_dtype", "dtype", "architectures"),
    *("id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params", "use_cache", "model_type"),
)
"""Entries that say where a model comes from, what its outputs are called, or what the tensors say already."""


def files_beside(path: Path) -> list[Path]:
    """The configuration beside a file that has one of the names under which these libraries save weights."""
    config = path.with_name(CONFIG_FILE)
    return [config] if _WEIGHTS.fullmatch(path.name) and config.is_file() else []


def read(path: Path, root: Path) -> tuple[bytes | None, dict[str, Any] | None, tuple[str, ...]]:
    """Read the configuration beside a weight file.

    Args:
        path: the weights, or the index of their shards.
        root: folder that links may lead to.

    Returns:
        Its bytes and its content, ``None`` where there is none or it is no JSON object, and notes on what was left
        aside.
    """
    for config in files_beside(path):
        data = small_file(config, root.resolve())
        if data is None:
            return None, None, (f"{CONFIG_FILE} left aside: larger than {MAX_EXTRA >> 20} MiB, or a link to elsewhere",)
        try:
            return data, parse_json(data, str(config)), ()
        except BadArtefact:
            return data, None, (f"{CONFIG_FILE} is kept but not understood",)
    return None, None, ()


def function_of(config: dict[str, Any]) -> dict[str, Any]:
    """The entries of a configuration that decide, with the tensors, which function is computed."""
    return {key: value for key, value in config.items() if key not in NO_FUNCTION}
