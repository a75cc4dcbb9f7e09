"""Adapters of any method that PEFT has or will have: tensors and configuration are kept exactly and given back.

LoRA itself is understood (``zoo.kinds.lora``). Of the other methods only what the names say is used: which module a
tensor belongs to and what it is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from zoo import adapter_folder
from zoo.adapter_folder import SAVE_AGAIN
from zoo.errors import BadArtefact
from zoo.kinds import Found, Kind, blamed_on, register
from zoo.specs import specs
from zoo.types import Layout, Weights

if TYPE_CHECKING:
    from torch import Tensor

# How PEFT begins the names of a method's tensors, where that is not the name of the method.
PREFIXES = {"LOHA": "hada_", "ADALORA": "lora_|ranknum", "VERA": "vera_", "PVERA": "pvera_|vera_"}


def split_name(name: str, method: str) -> tuple[str, str]:
    """Module path and role of a tensor.

    The role begins at the component that is named after the method: ``q.oft_R.weight`` is ``oft_R`` of ``q`` and
    ``q.hada_w1_a`` is ``hada_w1_a`` of ``q``. A bias inside it has ``_bias`` behind it. Without such a component the
    role is the last component of the name.

    Args:
        name: key in the adapter file.
        method: ``peft_type`` of the configuration.
    """
    prefix = re.compile(PREFIXES.get(method, re.escape(method.lower().replace("_", "")) + "_"))
    parts = name.split(".")
    for i in range(len(parts) - 1, max(len(parts) - 4, -1), -1):
        if prefix.match(parts[i]):
            return ".".join(parts[:i]), parts[i] + ("_bias" if parts[-1] == "bias" and i < len(parts) - 1 else "")
    return ".".join(parts[:-1]), parts[-1]


def layout(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Layout:
    """Describe an adapter.

    Args:
        tensors: values by name.
        config: content of ``adapter_config.json``, kept unchanged in ``Layout.config["peft"]``.

    Returns:
        The layout, with the base model of the configuration.

    Raises:
        BadArtefact: if the configuration names no method, or a tensor cannot be stored.
    """
    method = config.get("peft_type")
    if not isinstance(method, str) or not method:
        raise BadArtefact(f"adapter configuration has the peft_type {method!r}, not the name of a method", SAVE_AGAIN)
    found = specs(tensors, {name: split_name(name, method) for name in tensors})
    return Layout("peft", adapter_folder.base_model(config), found, {"peft": dict(config)})


def from_state_dict(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Weights:
    """An adapter from its tensors, named as PEFT saves them, and its configuration; errors as in ``layout``."""
    return Weights(layout(tensors, config), dict(tensors))


@register
class Peft(Kind):
    """PEFT folders of every method but LoRA."""

    name: ClassVar[str] = "peft"
    order: ClassVar[int] = 200

    def matches(self, path: Path) -> bool:
        """Whether it is a folder with an adapter configuration, or the weight file inside one."""
        return adapter_folder.is_adapter(path)

    def read(self, path: Path, *, root: Path | None = None) -> Found:
        """Read configuration, tensors and the small files beside them; see ``Kind.read``."""
        tensors, config, kept, notes = adapter_folder.read(path, root)
        with blamed_on(path):
            return Found(from_state_dict(tensors, config), kept, notes)

    def write(self, weights: Weights, folder: Path, extra_files: Mapping[str, bytes] | None = None) -> None:
        """Write a folder that ``PeftModel.from_pretrained`` loads; see ``Kind.write``."""
        adapter_folder.write(folder, weights.tensors, weights.layout.config["peft"], extra_files)

    def canonical(self, weights: Weights) -> Weights:
        """The weights themselves: what is free differs from method to method and is not known here."""
        return weights
