"""Describing named tensors once it is known which module each belongs to and what it is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zoo import safefile
from zoo.errors import BadArtefact
from zoo.naming import layer_index
from zoo.types import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor


def specs(tensors: Mapping[str, Tensor], parts: Mapping[str, tuple[str, str]]) -> tuple[TensorSpec, ...]:
    """One spec a tensor, layers counted in execution order.

    Args:
        tensors: values by name, in file order.
        parts: module path and role of each.

    Raises:
        BadArtefact: if a tensor has a type that cannot be stored.
    """
    layers = layer_index(module for module, _ in parts.values())
    result = []
    for name, tensor in tensors.items():
        dtype = safefile.dtype_name(tensor.dtype)
        if dtype is None:
            raise BadArtefact(f"tensor {name!r} is {tensor.dtype}, which safetensors cannot hold", "convert it first")
        module, role = parts[name]
        result.append(TensorSpec(name, tuple(tensor.shape), dtype, layers[module], role))
    return tuple(result)
