"""LoRA adapters as exact changes of the base's tensors, and back.

The scaling is folded in (``alpha / r``, rank stabilisation, patterns a module), so that factors of different ranks and
scalings can be added. What is no linear change of a weight is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from weightgen.compose.delta import Delta, Truncated, truncate
from zoo.errors import UsageError
from zoo.kinds import lora
from zoo.lora_gauge import scaling
from zoo.types import Weights

PREFIX = "base_model.model."
NOT_LINEAR = {
    "use_dora": "DoRA, whose update depends on the norm of the base's columns",
    "use_qalora": "QALoRA, which pools its inputs",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow, which routes between adapters",
    "kasa_config": "KaSA, which changes the base's own singular values",
    "monteclora_config": "MonteCLoRA, which samples its factors",
    "velora_config": "VeLoRA, which compresses what it reads",
    "megatron_config": "LoRA on layers split by Megatron",
    "alora_invocation_tokens": "activated LoRA, which changes nothing before its invocation tokens",
    "layer_replication": "LoRA on a base with repeated layers",
    "target_parameters": "LoRA on stacked parameters",
    "trainable_token_indices": "LoRA with trained token vectors",
    "lora_bias": "LoRA with a bias inside its factors",
}
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_REMEDY = "merge it into its base and extract a plain LoRA, or leave it out"
_PLAIN = re.compile(r"^[\w.\-]+$")


@dataclass(frozen=True, eq=False)
class Slot:
    """Where the factors of a tensor go: their names, and their shapes without the rank."""

    name_a: str
    name_b: str
    inputs: tuple[int, ...]
    outputs: int


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter, its scaling folded in.

    Attributes:
        name: what messages call it.
        config: content of ``adapter_config.json``.
        base_model: name of the base.
        deltas: float64, by name of the base's tensor.
        slots: by the same names.
        saved: whole tensors that the adapter brings (heads, biases), by their names in the file.
    """

    name: str
    config: Mapping[str, Any]
    base_model: str | None
    deltas: Mapping[str, Delta]
    slots: Mapping[str, Slot]
    saved: Mapping[str, Tensor]


def read_adapter(weights: Weights, name: str) -> Adapter:
    """Fold the scaling of an adapter into changes of the base's tensors.

    Args:
        weights: of the kind ``lora``.
        name: for messages.

    Raises:
        UsageError: if the adapter is not linear in its factors, or its scaling cannot be known.
    """
    if weights.layout.kind != "lora":
        what = weights.layout.config.get("peft", {}).get("peft_type") or weights.layout.kind
        raise UsageError(f"{name} is of the kind {what!r}, not LoRA", "compose adapters saved by PEFT as LoRA")
    config = weights.layout.config["peft"]
    _refuse(config, name)
    deltas, slots, used = {}, {}, set()
    for name_a, name_b in lora.pairs(weights.tensors):
        a, b = weights.tensors[name_a], weights.tensors[name_b]
        module, role = lora.split_name(name_a)
        if a.shape[0] != b.shape[1] or any(size != 1 for size in b.shape[2:]):
            raise UsageError(f"{name}: factors of {module!r} belong to a convolution with groups", _REMEDY)
        embedding = role == "lora_embedding_A"
        turned = embedding or bool(config.get("fan_in_fan_out"))
        inputs, outputs = tuple(a.shape[1:]), b.shape[0]
        shape = (*inputs, outputs) if turned else (outputs, *inputs)
        factor = module_scaling(module.removeprefix(PREFIX), a.shape[0], config, name)
        tensor = module.removeprefix(PREFIX) + ".weight"
        up, down = b.double().flatten(1) * factor, a.double().flatten(1)
        deltas[tensor] = Delta(up, down, shape, turned)
        slots[tensor] = Slot(name_a, name_b, inputs, outputs)
        used |= {name_a, name_b}
    saved = {key: tensor for key, tensor in weights.tensors.items() if key not in used}
    return Adapter(name, config, weights.layout.base_model, deltas, slots, saved)


def _refuse(config: Mapping[str, Any], name: str) -> None:
    for key, what in NOT_LINEAR.items():
        if config.get(key):
            raise UsageError(f"{name} is {what} ({key} is set), so it is no linear change of a weight", _REMEDY)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGED_BASE):
        raise UsageError(
            f"{name} was started with {start!r}, which changes the base itself",
            "save it as a plain LoRA with path_initial_model_for_weight_conversion of PEFT",
        )


def module_scaling(module: str, rank: int, config: Mapping[str, Any], name: str) -> float:
    """Factor in front of ``B @ A`` of one module.

    Args:
        module: path in the base model.
        rank: rank of its factors.
        config: of the adapter.
        name: for messages.

    Raises:
        UsageError: if a key of ``alpha_pattern`` is a regular expression: those of strangers are not run.
    """
    alpha = config.get("lora_alpha", 8)
    for key, value in (config.get("alpha_pattern") or {}).items():
        if not _PLAIN.match(key):
            raise UsageError(
                f"{name} has the regular expression {key!r} in alpha_pattern",
                "write the names of the modules there instead",
            )
        if module == key or module.endswith("." + key):
            alpha = value
            break
    return scaling(rank, alpha, rslora=bool(config.get("use_rslora")))


def check_together(adapters: Sequence[Adapter]) -> None:
    """Refuse adapters that do not belong together.

    Raises:
        UsageError: if they name different bases or revisions, or call one module by different names.
    """
    first = adapters[0]
    for other in adapters[1:]:
        for what, one, two in (
            ("the base model", first.base_model, other.base_model),
            ("the revision", first.config.get("revision"), other.config.get("revision")),
        ):
            if one != two:
                raise UsageError(
                    f"{first.name} has {what} {one!r}, {other.name} has {two!r}",
                    "compose adapters of one base model only; correct adapter_config.json if both are the same",
                )
    names = sorted({name for adapter in adapters for name in adapter.deltas}, key=lambda name: name[::-1])
    for short, long in pairwise(names):
        if long.endswith("." + short):
            raise UsageError(
                f"adapters call a module {short!r} and {long!r}",
                "compose adapters that were trained with the same class of model",
            )


def mixed_saved(adapters: Sequence[Adapter], weights: Sequence[float] | None) -> dict[str, Tensor]:
    """Whole tensors of the result: those that all adapters share, or their weighted mean.

    Args:
        adapters: parents.
        weights: shares of a method whose result is the weighted sum; ``None`` for all others.

    Raises:
        UsageError: if the tensors differ and cannot be mixed: a sum of whole tensors means something only if the
            weights add up to 1.
    """
    first = adapters[0].saved
    for other in adapters[1:]:
        if {n: t.shape for n, t in other.saved.items()} != {n: t.shape for n, t in first.items()}:
            odd = sorted(set(other.saved) ^ set(first)) or sorted(first)
            raise UsageError(
                f"{adapters[0].name} and {other.name} save different whole modules, for example {odd[0]!r}",
                "compose adapters without modules_to_save, or with the same ones",
            )
    if all(torch.equal(other.saved[n], t) for other in adapters[1:] for n, t in first.items()):
        return dict(first)
    if weights is None or abs(sum(weights) - 1) > 1e-6:
        found = "this method cannot mix them" if weights is None else f"the weights add up to {sum(weights):g}"
        raise UsageError(
            f"the adapters save different values of {min(first)!r} and {found}",
            "use the method linear with weights that add up to 1",
        )
    return {
        n: sum((w * a.saved[n].double() for w, a in zip(weights, adapters, strict=True)), torch.zeros(())).to(t.dtype)
        for n, t in first.items()
    }


def write_adapter(
    deltas: Mapping[str, Delta], rank: int | None, parents: Sequence[Adapter], saved: Mapping[str, Tensor]
) -> tuple[Weights, dict[str, Truncated]]:
    """A plain LoRA of scaling 1 that makes the given changes.

    Args:
        deltas: changes by tensor name.
        rank: rank of every module; by default the smallest at which nothing is lost.
        parents: adapters that the names come from.
        saved: whole tensors to bring along.

    Returns:
        Float32 weights in the form of PEFT, and what was cut in every module.
    """
    cuts = truncate(deltas, rank)
    wanted = rank or max(cut.needed for cut in cuts.values())
    slots = {name: slot for parent in reversed(parents) for name, slot in parent.slots.items()}
    tensors: dict[str, Tensor] = {}
    for name, cut in cuts.items():
        slot, a = slots[name], cut.delta.a
        assert a is not None
        pointwise = (1,) * (len(slot.inputs) - 1)
        tensors[slot.name_a] = a.float().reshape(wanted, *slot.inputs).contiguous()
        tensors[slot.name_b] = cut.delta.b.float().reshape(slot.outputs, wanted, *pointwise).contiguous()
    return lora.from_state_dict({**tensors, **saved}, _config(wanted, parents, list(slots))), cuts


def _config(rank: int, parents: Sequence[Adapter], names: Sequence[str]) -> dict[str, Any]:
    first = parents[0].config
    keys = ("target_modules", "layers_to_transform", "layers_pattern", "exclude_modules")
    agreed = all(
        parent.deltas.keys() == parents[0].deltas.keys() and all(parent.config.get(k) == first.get(k) for k in keys)
        for parent in parents
    )
    kinds = {parent.config.get("task_type") for parent in parents}
    targets = first.get("target_modules") if agreed else sorted(name.removesuffix(".weight") for name in names)
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": parents[0].base_model,
        "revision": first.get("revision"),
        "task_type": kinds.pop() if len(kinds) == 1 else None,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": targets,
        **{key: first.get(key) for key in keys[1:] if agreed},
        "modules_to_save": first.get("modules_to_save"),
        "bias": first.get("bias", "none"),
        "fan_in_fan_out": any(parent.config.get("fan_in_fan_out") for parent in parents),
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
