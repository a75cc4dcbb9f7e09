"""Training state on disk without pickle: tensors in safetensors, the rest of the tree as JSON in its header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from zoo import safefile
from zoo.errors import BadArtefact

TREE = "tree"


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Replace every tensor of a tree by a reference; keys that are no strings survive."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_pack(k, tensors), _pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {"list" if isinstance(value, list) else "tuple": [_pack(v, tensors) for v in value]}
    if value is None or isinstance(value, str | int | float | bool):
        return {"value": value}
    raise TypeError(f"training state holds a {type(value).__name__}, which has no JSON form")


def _unpack(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in content}
    if kind in ("list", "tuple"):
        items = [_unpack(v, tensors) for v in content]
        return items if kind == "list" else tuple(items)
    if kind != "value":
        raise ValueError(f"unknown node {kind!r}")
    return content


class SafetensorsIO(CheckpointIO):
    """Lets the Lightning trainer save and resume through one safetensors file, written to the side and renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            TypeError: if it holds something that is neither tensor nor JSON.
        """
        tensors: dict[str, torch.Tensor] = {}
        tree = _pack(checkpoint, tensors)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        safefile.save(partial, tensors, {TREE: json.dumps(tree)})
        partial.replace(target)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            BadArtefact: if the file is damaged.
        """
        tensors, metadata = safefile.load(Path(path))
        try:
            return _unpack(json.loads(metadata[TREE]), tensors)
        except (KeyError, ValueError, AttributeError, TypeError):
            raise BadArtefact(f"training state {path} is damaged", "start again with --fresh") from None

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint if it is there."""
        Path(path).unlink(missing_ok=True)
