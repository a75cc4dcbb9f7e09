"""The base model that everything is tried on: read texts under any adapter, and what it costs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightgen.adapted import PREFIX, AdaptedEncoder
from weightgen.solve.budget import Meter, reading
from zoo.build.encoder import TextEncoder
from zoo.kinds import lora
from zoo.seeds import seed_of
from zoo.types import Weights

RANK = 4


@final
class Base:
    """A frozen encoder, its labels, and the meter that pays for every text.

    Attributes:
        encoder: the base model; nothing in it is trained.
        labels: each label in words.
        meter: what is charged.
        bfloat16: whether the processor has instructions for it, so that it is used.
    """

    def __init__(self, encoder: TextEncoder, labels: Sequence[str], meter: Meter) -> None:
        """Freeze the encoder."""
        for parameter in encoder.model.parameters():
            parameter.requires_grad_(False)
        self.encoder, self.labels, self.meter = encoder, tuple(labels), meter
        self.bfloat16 = _fast_bfloat16()

    @contextlib.contextmanager
    def quick(self) -> Iterator[None]:
        """Matrix products in bfloat16 where the processor has instructions for them."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            yield

    @torch.no_grad()
    def logits(self, adapter: Weights | None, texts: Sequence[str]) -> Float[Tensor, "n c"]:
        """What the base says under an adapter, or as it is."""
        adapted = contextlib.nullcontext()
        if adapter is not None:
            adapted = AdaptedEncoder(self.encoder, adapter.layout).applied(adapter.tensors)
        with self.meter.paying(reading(len(texts) + len(self.labels))), adapted, self.quick():
            vectors = self.encoder.encode([*texts, *self.labels])
        return self.encoder.config.scale * vectors[: len(texts)] @ vectors[len(texts) :].T

    def fresh(self, seed: int, rank: int = RANK) -> Weights:
        """An adapter that changes nothing yet: random down, zero up.

        It is on the layers that PEFT adapts in such a model by default, or on all linear ones if it knows none.
        """
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

        model = self.encoder.model
        ends = set(KNOWN.get(model.config.model_type, ()))
        every = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        linear = {name: module for name, module in every.items() if name.rpartition(".")[2] in ends} or every
        rng = torch.Generator().manual_seed(seed_of("fresh", seed))
        tensors: dict[str, Tensor] = {}
        for name, module in linear.items():
            down = (2 * torch.rand(rank, module.in_features, generator=rng) - 1) / module.in_features**0.5
            tensors[f"{PREFIX}{name}.lora_A.weight"] = down
            tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.zeros(module.out_features, rank)
        return lora.from_state_dict(tensors, _config(rank, sorted(linear), self.encoder.base_model))

    def named(self, adapter: Weights) -> Weights:
        """The adapter with the name of this base in its configuration."""
        name = self.encoder.base_model
        peft = {**adapter.layout.config["peft"], "base_model_name_or_path": name}
        return Weights(replace(adapter.layout, base_model=name, config={"peft": peft}), adapter.tensors)


def scaled(adapter: Weights, factor: float) -> Weights:
    """An adapter whose update is multiplied by a number."""
    tensors = {name: value * (factor if "lora_B" in name else 1.0) for name, value in adapter.tensors.items()}
    return Weights(adapter.layout, tensors)


def _config(rank: int, targets: Sequence[str], base_model: str) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def _fast_bfloat16() -> bool:
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())
