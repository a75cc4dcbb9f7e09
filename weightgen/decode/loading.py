"""Turn ids, folders, loaded models and task sums into the members of a fusion."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from weightgen.decode.adapter_base import check_base
from weightgen.decode.memory import no_model
from weightgen.decode.passes import Member
from zoo.errors import UsageError, WeightgenError

Source = str | Path | nn.Module | Mapping[str, float]
"""An id or folder, a loaded model, or a task sum: experts by id or folder, each with its weight."""


@dataclass(frozen=True)
class Loaded:
    """A model and how to name it again.

    Attributes:
        member: the model.
        reference: id, folder or task sum for the saved JSON; ``None`` for a model that has none.
    """

    member: Member
    reference: str | dict[str, float] | None


@contextmanager
def explain_memory(what: str) -> Iterator[None]:
    """Turn running out of memory into an error that says what to do.

    Raises:
        WeightgenError: if memory ran out inside of the block.
    """
    remedy = (
        "use a smaller batch or shorter texts, dtype=torch.bfloat16, or adapters instead of whole experts; "
        "see what is needed with: weightgen doctor fusion --memory-only"
    )
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise WeightgenError(f"out of memory while {what}: {str(error).splitlines()[0]}", remedy) from None
    except MemoryError:
        raise WeightgenError(f"out of memory while {what}", remedy) from None
    except RuntimeError as error:
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise WeightgenError(f"out of memory while {what}", remedy) from None


def _adapter_config(source: str | Path) -> dict[str, Any] | None:
    path = Path(source) / "adapter_config.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    if Path(source).exists() or str(source).count("/") != 1:
        return None
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(str(source)).to_dict()
    except (ValueError, OSError):
        return None


def name_of(source: Any) -> str | dict[str, float] | None:
    """How a source is written into the saved JSON: folders with their full path, so that it can be read anywhere."""
    if isinstance(source, Mapping):
        return {str(name_of(key)): float(weight) for key, weight in source.items()}
    if isinstance(source, str | Path):
        return str(Path(source).resolve()) if Path(source).exists() else str(source)
    if hasattr(source, "peft_config"):
        return None
    name = getattr(source, "name_or_path", "")
    return name_of(name) if name else None


def load_model(source: str | Path | nn.Module, role: str, **options: Any) -> Any:
    """A causal model in evaluation mode.

    Args:
        source: id, folder or loaded model.
        role: what it is for, named in errors.
        **options: passed on to ``from_pretrained``.

    Raises:
        BadArtefact: if there is no causal model.
        WeightgenError: if it does not fit in memory.
    """
    if isinstance(source, nn.Module):
        return source.eval()
    with explain_memory(f"loading the {role} {source}"):
        try:
            return AutoModelForCausalLM.from_pretrained(str(source), **options).eval()
        except (OSError, ValueError, KeyError) as error:
            raise no_model(f"the {role} {source}", source, error) from None


def load_pair(
    expert: Source, anchor: Source | None, known: dict[str, nn.Module], **options: Any
) -> tuple[Loaded, Loaded]:
    """An expert and its anchor; an adapter hangs on the anchor, and both then share their weights.

    Args:
        expert: id, folder, loaded model, PEFT adapter or task sum.
        anchor: the model that the expert was tuned from; may be left out for a loaded PEFT model.
        known: models that were loaded already, by name; extended here, so that nothing is loaded twice.
        **options: passed on to ``from_pretrained``.

    Raises:
        UsageError: if an adapter does not belong to the anchor, or a source is missing.
        BadArtefact: if a source is no model.
    """
    if hasattr(expert, "peft_config"):
        return _loaded_peft(expert, anchor)
    if anchor is None:
        raise UsageError("an expert has no anchor", "give the model that it was tuned from, beside it")
    if isinstance(anchor, Mapping):
        raise UsageError(f"the anchor is a task sum {dict(anchor)!r}", "give one model")
    base = _once(anchor, "anchor", known, options)
    if isinstance(expert, Mapping):
        summed = add_tasks(base, expert, known, **options)
        return Loaded(Member(summed), name_of(expert)), Loaded(Member(base), name_of(anchor))
    config = None if isinstance(expert, nn.Module) else _adapter_config(expert)
    if config is None:
        model = _once(expert, "expert", known, options)
        return Loaded(Member(model), name_of(expert)), Loaded(Member(base), name_of(anchor))
    peft, adapter = attach_adapter(base, str(expert), config)
    known[str(name_of(anchor) or id(anchor))] = peft
    return Loaded(Member(peft, adapter), name_of(expert)), Loaded(Member(peft), name_of(anchor))


def _once(source: str | Path | nn.Module, role: str, known: dict[str, nn.Module], options: dict[str, Any]) -> Any:
    key = str(id(source)) if isinstance(source, nn.Module) else str(name_of(source))
    if key not in known:
        known[key] = load_model(source, role, **options)
    return known[key]


def _loaded_peft(expert: Any, anchor: Source | None) -> tuple[Loaded, Loaded]:
    names: list[str] = expert.active_adapters
    if len(names) != 1:
        raise UsageError(f"the PEFT expert has {len(names)} active adapters", "activate exactly one with set_adapter")
    base = expert.get_base_model()
    if anchor is not None and anchor is not base and anchor is not expert:
        raise UsageError(
            "the PEFT expert hangs on another model than its anchor", "give its own base model as anchor, or None"
        )
    expert.eval()
    return Loaded(Member(expert, names[0]), None), Loaded(Member(expert), None)


def _misfit(said: str) -> str:
    """What torch or PEFT said of an adapter that does not fit, in one line: the first tensor with another shape."""
    found = re.search(
        r"size mismatch for (\S+):.*?torch\.Size\((\[.*?\])\).*?torch\.Size\((\[.*?\])\)", said, re.DOTALL
    )
    if found is None:
        return next(line.strip() for line in said.splitlines() if line.strip())[:200]
    name, own, wanted = found.groups()
    return f"size mismatch, {name.removeprefix('base_model.model.')} is {own} in the adapter and {wanted} on the anchor"


def attach_adapter(base: Any, source: str, config: Mapping[str, Any]) -> tuple[nn.Module, str]:
    """Hang an adapter on a model that may carry others already.

    Returns:
        The PEFT model and the name of the adapter.

    Raises:
        UsageError: if the adapter was made for another base.
    """
    from peft import PeftModel

    check_base(base, source, config)
    wanted = config.get("base_model_name_or_path")
    remedy = f"give the base it was trained on as anchor: {wanted}" if wanted else "give the base it was trained on"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # PEFT asks transformers
            if hasattr(base, "peft_config"):
                name = f"adapter-{len(base.peft_config)}"
                base.load_adapter(source, adapter_name=name)
                return base.eval(), name
            return PeftModel.from_pretrained(base, source, adapter_name="adapter-0").eval(), "adapter-0"
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"the adapter {source} does not fit its anchor: {_misfit(str(error))}", remedy) from None


def add_tasks(base: nn.Module, weights: Mapping[str, float], known: dict[str, nn.Module], **options: Any) -> nn.Module:
    """Task arithmetic: base + sum_t w_t (E_t - base), as a new model (arXiv 2212.04089, section 2).

    Args:
        base: the model all experts were tuned from; not changed.
        weights: experts by id or folder, adapters included, each with its weight.
        known: models that were loaded already.
        **options: passed on to ``from_pretrained``.

    Raises:
        UsageError: if there is no expert, or one has other tensors.
    """
    import copy

    from peft import PeftModel

    if not weights:
        raise UsageError("a task sum has no expert", "name at least one, with its weight")
    plain = base.get_base_model() if hasattr(base, "peft_config") else base  # type: ignore[operator]
    if plain is not base:
        raise UsageError("a task sum cannot share its anchor with an adapter", "give the anchor as its own folder")
    summed = copy.deepcopy(plain)
    reference = dict(plain.named_parameters())
    for source, weight in weights.items():
        config = _adapter_config(source)
        if config is None:
            expert = _once(source, "expert", known, options)
        else:
            expert = PeftModel.from_pretrained(copy.deepcopy(plain), source).merge_and_unload()
        tuned = dict(expert.named_parameters())
        different = [k for k in reference if k not in tuned or tuned[k].shape != reference[k].shape]
        if different:
            raise UsageError(
                f"expert {source} has no tensor like {different[0]} of the anchor", "sum tasks of one base"
            )
        with torch.no_grad():
            for name, parameter in summed.named_parameters():
                parameter.add_(tuned[name].to(parameter.device) - reference[name], alpha=weight)
    return summed.eval()


def load_tokenizer(source: Any) -> PreTrainedTokenizerBase | None:
    """Tokenizer of a folder or id; a loaded one is returned as it is, ``None`` if there is none."""
    if isinstance(source, PreTrainedTokenizerBase):
        return source
    if not isinstance(source, str | Path):
        return None
    try:
        return AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError, KeyError, ImportError):
        return None


def check_pairs(experts: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Experts as pairs.

    Raises:
        UsageError: if there is none, or one is no pair.
    """
    if not experts:
        raise UsageError("the list of experts is empty", "give at least one pair: experts=[(expert, anchor)]")
    pairs = []
    for entry in experts:
        if not isinstance(entry, tuple | list) or len(entry) != 2:
            raise UsageError(f"{type(entry).__name__} is no pair", "write experts=[(expert, anchor), ...]")
        pairs.append((entry[0], entry[1]))
    return pairs
