"""Run networks from their tensors, one or many at once."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from zoo.architectures import Architecture, family
from zoo.errors import UsageError
from zoo.types import Layout


def architecture_of(layout: Layout) -> Architecture:
    """Return the architecture a layout declares.

    Raises:
        UsageError: if it declares none, so that the network cannot be run.
    """
    architecture = layout.config.get("architecture")
    if architecture is None:
        raise UsageError(
            f"the {layout.kind} layout {layout.fingerprint[:12]} declares no architecture",
            "collect it with an `architecture` entry in its weightgen.json side-car",
        )
    return architecture


@functools.lru_cache(maxsize=32)
def _skeleton(text: str) -> nn.Module:
    with torch.device("meta"):
        return family(json.loads(text)).build(json.loads(text)).eval()


def skeleton(architecture: Architecture) -> nn.Module:
    """Return a module without storage that ``functional_call`` can fill; one a distinct architecture is kept."""
    return _skeleton(json.dumps(dict(architecture), sort_keys=True))


def takes(architecture: Architecture, shape: Sequence[int]) -> bool:
    """Whether a network can be run on examples of a shape; nothing is computed."""
    module = skeleton(architecture)
    try:
        with torch.no_grad():
            module(torch.zeros(1, *shape, device="meta"))
    except RuntimeError:
        return False
    return True


def logits(
    architecture: Architecture, tensors: Mapping[str, Tensor], inputs: Float[Tensor, "n ..."]
) -> Float[Tensor, "n c"]:
    """Logits of one network for a batch of inputs."""
    return functional_call(skeleton(architecture), dict(tensors), (inputs,))


def logits_many(
    architecture: Architecture, tensors: Mapping[str, Tensor], inputs: Float[Tensor, "m n ..."]
) -> Float[Tensor, "m n c"]:
    """Logits of ``m`` networks at once, each on its own batch; differentiable in the weights.

    Args:
        architecture: shared by all networks.
        tensors: state dict whose values are stacked along a new first axis of size ``m``.
        inputs: one batch a network.

    A family that knows a faster way than ``vmap`` has it as a static method ``many`` of the same arguments.
    """
    many = getattr(family(architecture), "many", None)
    if many is not None:
        return many(architecture, tensors, inputs)
    module = skeleton(architecture)
    return vmap(lambda weights, x: functional_call(module, weights, (x,)))(dict(tensors), inputs)
