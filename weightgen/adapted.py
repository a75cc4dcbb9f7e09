"""A frozen text encoder under adapters that come from outside."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from zoo.build.encoder import TextEncoder
from zoo.errors import UsageError
from zoo.types import Layout

PREFIX = "base_model.model."
_FACTOR = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")


class AdaptedEncoder:
    """A frozen encoder whose linear layers take low-rank updates from outside; the updates keep their gradients."""

    def __init__(self, encoder: TextEncoder, layout: Layout) -> None:
        """Find the modules that the adapters of a layout change.

        Raises:
            UsageError: if the adapters are no plain LoRA on linear layers of this encoder.
        """
        self.encoder = encoder
        config = layout.config["peft"]
        rank = int(config["r"])
        self.scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
        modules = dict(encoder.model.named_modules())
        self.pairs: dict[str, tuple[str, str]] = {}
        for spec in layout.tensors:
            found = _FACTOR.match(spec.name)
            if found is None or not isinstance(modules.get(found["module"]), nn.Linear) or config.get("rank_pattern"):
                raise UsageError(
                    f"the tensor {spec.name!r} is no plain LoRA factor of a linear layer of {encoder.base_model}",
                    "use adapters of plain LoRA for this encoder",
                )
            a, b = self.pairs.get(found["module"], ("", ""))
            self.pairs[found["module"]] = (spec.name, b) if found["side"] == "A" else (a, spec.name)
        self._modules = {name: modules[name] for name in self.pairs}
        shapes = {spec.name: spec.shape for spec in layout.tensors}
        for name, (a, b) in self.pairs.items():
            wanted, there = (shapes[b][0], shapes[a][1]), tuple(modules[name].weight.shape)
            if wanted != there:
                raise UsageError(
                    f"the adapter changes {name} of {wanted[1]} inputs and {wanted[0]} outputs, in "
                    f"{encoder.base_model} it has {there[1]} and {there[0]}",
                    "give the base model that the adapters were made for",
                )

    @contextlib.contextmanager
    def applied(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Add the update of one adapter to what the linear layers give, inside the ``with`` block."""
        handles = []
        for name, module in self._modules.items():
            a, b = (tensors[key] for key in self.pairs[name])
            handles.append(module.register_forward_hook(_adding(a, b, self.scale)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def embed(self, tokens: Sequence[Sequence[int]], tensors: Mapping[str, Tensor]) -> Float[Tensor, "n d"]:
        """Unit vectors of some texts under one adapter."""
        with self.applied(tensors):
            return self.encoder.embed(tokens)


def _adding(a: Tensor, b: Tensor, scale: float) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        return output + scale * F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype))

    return hook
