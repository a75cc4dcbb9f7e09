"""One forward pass of a fusion: a model, or several adapters and their base in one batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from weightgen.decode.cache import OwnPrompt
from weightgen.decode.few_rows import few_rows


@dataclass(frozen=True)
class Member:
    """One model of a fusion.

    Attributes:
        model: the model, or the PEFT model that holds the adapter.
        adapter: name of the adapter that is on; ``None`` for a plain model and for the base of a PEFT model.
        prompt: tokens that this model alone reads in front of the text.
    """

    model: Any
    adapter: str | None = None
    prompt: tuple[int, ...] = ()

    @property
    def is_peft(self) -> bool:
        """Whether adapters hang on the model."""
        return hasattr(self.model, "peft_config")

    @property
    def core(self) -> PreTrainedModel:
        """The transformers model that is run."""
        return self.model.get_base_model() if self.is_peft else self.model


class AdapterRows:
    """Switches adapters on for their own rows of a batch alone.

    While active, the output of every low-rank factor is 0 outside of the adapter's rows, so that base and adapters run
    as one model: the base weights are read once for all.
    """

    def __init__(self, model: nn.Module, adapters: Sequence[str]) -> None:
        self.model, self.adapters, self.parts = model, tuple(adapters), len(adapters) + 1
        self._active = False
        for part, adapter in enumerate(self.adapters):
            for module in model.modules():
                factors = getattr(module, "lora_B", None)
                if factors is not None and adapter in factors:
                    factors[adapter].register_forward_hook(self._hook(part))

    def _hook(self, part: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if self._active:
                rows = output.shape[0] // self.parts
                output[: part * rows] = 0
                output[(part + 1) * rows :] = 0

        return hook

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self._active = True
        try:
            with only_adapters(self.model, self.adapters):
                yield
        finally:
            self._active = False


@contextmanager
def only_adapters(model: Any, adapters: Sequence[str]) -> Iterator[None]:
    """Have exactly these adapters of a PEFT model on; none of them gives the base model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not adapters:
        with model.disable_adapter():
            yield
        return
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer.active_adapters for layer in layers]
    if all(list(names) == list(adapters) for names in before):
        yield
        return
    for layer in layers:
        layer.set_adapter(list(adapters), inference_mode=True)
    try:
        yield
    finally:
        for layer, names in zip(layers, before, strict=True):
            layer.set_adapter(list(names), inference_mode=True)


def can_share(model: nn.Module) -> bool:
    """Whether adapters can be on for some rows only: plain LoRA on linear layers."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            return False
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            plain = isinstance(module, LoraLayer) and not len(layer.lora_embedding_A)
            if not plain or getattr(layer, "lora_variant", None) or any(layer.use_dora.values()) or layer.merged:
                return False
    return True


class Pass:
    """One forward pass and the members whose logits it gives."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)
        self.parts = len(members)
        first = members[0]
        self.prompt = first.prompt
        self.model = first.core
        self.context: Callable[[], AbstractContextManager[None]] = nullcontext
        if self.parts > 1:
            self.context = AdapterRows(first.model, [m.adapter for m in members if m.adapter is not None])
        elif first.is_peft:
            adapters = [] if first.adapter is None else [first.adapter]
            self.context = lambda: only_adapters(first.model, adapters)
        self.forward: Callable[..., Any] = self.model

    @cached_property
    def _accepts(self) -> set[str]:
        return set(inspect.signature(type(self.model).forward).parameters)

    def new_cache(self, length: int | None) -> Cache:
        """An empty cache; of a fixed length if one is given."""
        config = self.model.config.get_text_config(decoder=True)
        if length is None:
            return DynamicCache(config=config)
        return StaticCache(config=config, max_cache_len=length + len(self.prompt))

    def start(self, rows: int, device: torch.device, ids: Tensor | None, mask: Tensor | None, seen: int) -> OwnPrompt:
        """Own prompt of this pass: given tokens that stand for the visible ones, or its fixed prompt."""
        if ids is not None:
            given = torch.ones_like(ids) if mask is None else mask
            front = given.new_ones(rows, len(self.prompt))
            return OwnPrompt(torch.cat([front, given], dim=1), seen)
        return OwnPrompt(torch.ones(rows, len(self.prompt), dtype=torch.long, device=device))

    def run(
        self,
        ids: Int[Tensor, "b t"],
        mask: Int[Tensor, "b s"] | None,
        own: OwnPrompt | None,
        cache: Cache | None,
        keep: int,
        starts: bool,
    ) -> list[Float[Tensor, "b n v"]]:
        """Logits of each member.

        Args:
            ids: new tokens, in this model's ids.
            mask: attention mask over all visible tokens; ``None`` if none is padding.
            own: own prompt, if there is one.
            cache: cache of this pass.
            keep: how many last positions are wanted.
            starts: whether this is the first call for the sequence.
        """
        rows = ids.shape[0]
        if starts and self.prompt:
            front = torch.tensor(self.prompt, device=ids.device).expand(rows, -1)
            ids = torch.cat([front, ids], dim=1)
        if own is not None and (mask is not None or not bool(own.mask.all().item())):
            visible = own.mask.new_ones(rows, 0) if mask is None else mask[:, own.replaced :]
            past = 0 if cache is None else int(cache.get_seq_length())
            if mask is None:
                visible = own.mask.new_ones(rows, past + ids.shape[1] - own.mask.shape[1])
            mask = torch.cat([own.mask, visible.to(own.mask.dtype)], dim=1)
        elif own is not None:
            mask = None
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": cache is not None, "return_dict": True}
        if mask is not None:
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            inputs |= {"attention_mask": mask}
            if "position_ids" in self._accepts:
                inputs["position_ids"] = positions
        if self.parts > 1:
            names = ("input_ids", "attention_mask", "position_ids")
            inputs |= {k: inputs[k].repeat(self.parts, 1) for k in names if k in inputs}
        if cache is not None:
            inputs["past_key_values"] = cache
        if "logits_to_keep" in self._accepts:
            inputs["logits_to_keep"] = keep
        device = next(self.model.parameters()).device
        inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        plain = self.forward is self.model  # compiled ones do as their compiler thinks best
        with self.context(), few_rows(inputs["input_ids"]) if plain else nullcontext():
            logits = self.forward(**inputs).logits[:, -keep:]
        return list(logits.chunk(self.parts, dim=0))


def plan_passes(members: Sequence[Member], shared: bool = True) -> tuple[list[Pass], list[tuple[int, int]]]:
    """The fewest forward passes that give the logits of all members.

    Args:
        members: the models, in order; equal ones are run once.
        shared: whether adapters and their base may run as one batch.

    Returns:
        The passes, and for each member which pass gives its logits, and as which part.
    """
    groups: list[list[Member]] = []
    for member in dict.fromkeys(members):
        home = next((g for g in groups if _same_batch(g[0], member)), None) if shared else None
        if home is None:
            groups.append([member])
        else:
            home.append(member)
    # The base is the last part of a shared batch: the hooks number the adapters from 0.
    ordered = [sorted(g, key=lambda m: m.adapter is None) for g in groups]
    split: list[list[Member]] = []
    for group in ordered:
        whole = len(group) > 1 and group[-1].adapter is None and can_share(group[0].model)
        split += [group] if whole else [[m] for m in group]
    where = {member: (i, part) for i, group in enumerate(split) for part, member in enumerate(group)}
    return [Pass(group) for group in split], [where[member] for member in members]


def _same_batch(one: Member, other: Member) -> bool:
    return one.is_peft and one.model is other.model and one.prompt == other.prompt
