"""LoRA adapters in the folder form of PEFT: ``adapter_config.json`` and one file of factors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from zoo import adapter_folder, safefile
from zoo.adapter_folder import SAVE_AGAIN
from zoo.errors import BadArtefact
from zoo.kinds import TOLERANCE, Found, Kind, blamed_on, close, register
from zoo.lora_gauge import Pairs, regauge, same_updates, stacks, update_norm
from zoo.naming import module_of
from zoo.specs import specs
from zoo.types import Layout, Weights

if TYPE_CHECKING:
    from torch import Tensor

# Variants in which the update is more than B @ A of one layer: their factors have no free gauge.
OWN_SHAPE = (
    *("use_bdlora", "use_qalora", "kasa_config", "monteclora_config", "velora_config", "arrow_config"),
    "megatron_config",
)
OWN_GAUGE = ("target_parameters", *OWN_SHAPE)
# Entries of a configuration that concern training, other versions, or what the names of the tensors say already.
NO_FUNCTION = (
    *("peft_version", "inference_mode", "auto_mapping", "base_model_name_or_path", "revision", "task_type"),
    *("init_lora_weights", "loftq_config", "corda_config", "eva_config", "lora_ga_config", "lora_dropout"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("megatron_core", "qalora_group_size", "runtime_config"),
)
_FACTOR = re.compile(r"^(?P<module>.+?)\.(?P<role>lora_[A-Za-z_]+?)(?:\.(?P<rest>weight|bias))?$")
_PLAIN_PATTERN = re.compile(r"^[\w.\-]+$")
_PAIRS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))


def split_name(name: str) -> tuple[str, str]:
    """Module path and role of a tensor of an adapter.

    Factors have the roles ``lora_A``, ``lora_B``, ``lora_embedding_A`` ...; a bias inside a factor has ``_bias`` behind
    it. Other tensors (saved modules, biases of the base) have the last component of their name.
    """
    found = _FACTOR.match(name)
    if found is None:
        return module_of(name), name.rpartition(".")[2]
    return found["module"], found["role"] + ("_bias" if found["rest"] == "bias" else "")


def layout(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Layout:
    """Describe an adapter.

    Args:
        tensors: values by name.
        config: content of ``adapter_config.json``, kept unchanged in ``Layout.config["peft"]``.

    Returns:
        The layout, with the base model of the configuration.

    Raises:
        BadArtefact: if the tensors and the configuration do not fit together, or the method is not LoRA.
    """
    _check(tensors, config)
    found = specs(tensors, {name: split_name(name) for name in tensors})
    return Layout("lora", adapter_folder.base_model(config), found, {"peft": dict(config)})


def from_state_dict(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Weights:
    """An adapter from its tensors, named as PEFT saves them, and its configuration; errors as in ``layout``."""
    return Weights(layout(tensors, config), dict(tensors))


def pairs(names: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names of the two factors, ``A`` then ``B``, of every adapted module, in file order of ``A``."""
    by_part = {split_name(name): name for name in names}
    result = []
    for (module, role), name in by_part.items():
        for role_a, role_b in _PAIRS:
            if role == role_a and (module, role_b) in by_part:
                result.append((name, by_part[module, role_b]))
    return result


def expected_ranks(module: str, config: Mapping[str, Any]) -> set[int]:
    """Ranks that the configuration allows for a module.

    Plain keys of ``rank_pattern`` are compared as PEFT does, with the end of the module path. Keys that are regular
    expressions come from strangers and are not run: then every rank of the pattern is allowed.
    """
    pattern = config.get("rank_pattern") or {}
    default = config.get("r", 8)
    if all(_PLAIN_PATTERN.match(key) for key in pattern):
        for key, rank in pattern.items():
            if module == key or module.endswith("." + key):
                return {rank}
        return {default}
    return {default, *pattern.values()}


def _check(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    method = config.get("peft_type")
    if method != "LORA":
        raise BadArtefact(f"adapter of type {method!r} is not LoRA", "read it as the kind 'peft'")
    if not isinstance(config.get("rank_pattern") or {}, dict):
        raise BadArtefact(f"rank_pattern is {config['rank_pattern']!r}, not a map", SAVE_AGAIN)
    ranks = [config.get("r", 8), *(config.get("rank_pattern") or {}).values()]
    if not all(type(rank) is int and rank > 0 for rank in ranks):
        raise BadArtefact(f"adapter configuration has the ranks {ranks}, not positive whole numbers", SAVE_AGAIN)
    by_part = {split_name(name): tensor for name, tensor in tensors.items()}
    if len(by_part) != len(tensors):
        raise BadArtefact("two tensors of the adapter have the same module and role", SAVE_AGAIN)
    factors = 0
    for (module, role), tensor in by_part.items():
        for role_a, role_b in _PAIRS:
            if role not in (role_a, role_b):
                continue
            factors += 1
            other = by_part.get((module, role_b if role == role_a else role_a))
            if other is None:
                raise BadArtefact(f"module {module!r} has {role} without its partner", SAVE_AGAIN)
            if role == role_a and not any(config.get(key) for key in OWN_SHAPE):
                _check_rank(module, tensor, other, config)
    if not factors:
        raise BadArtefact("adapter file holds no LoRA factors", SAVE_AGAIN)


def _check_rank(module: str, a: Tensor, b: Tensor, config: Mapping[str, Any]) -> None:
    if a.ndim < 2 or b.ndim < 2:
        raise BadArtefact(f"factors of {module!r} have {a.ndim} and {b.ndim} dimensions, expected 2", SAVE_AGAIN)
    grouped = a.ndim > 2 and a.shape[0] % b.shape[1] == 0
    if a.shape[0] != b.shape[1] and not grouped:
        raise BadArtefact(f"factors of {module!r} have ranks {a.shape[0]} and {b.shape[1]}", SAVE_AGAIN)
    allowed = expected_ranks(module.removeprefix("base_model.model."), config)
    stacked = config.get("target_parameters") and any(a.shape[0] % rank == 0 for rank in allowed)
    if a.shape[0] not in allowed and not stacked:
        raise BadArtefact(f"module {module!r} has rank {a.shape[0]}, its configuration says {allowed}", SAVE_AGAIN)


@register
class Lora(Kind):
    """PEFT LoRA folders."""

    name: ClassVar[str] = "lora"

    def matches(self, path: Path) -> bool:
        """Whether it is a PEFT folder of the method LoRA, or the weight file inside one."""
        return adapter_folder.is_adapter(path) and adapter_folder.method_of(path) == "LORA"

    def read(self, path: Path, *, root: Path | None = None) -> Found:
        """Read configuration, factors and the small files beside them; see ``Kind.read``."""
        tensors, config, kept, notes = adapter_folder.read(path, root)
        with blamed_on(path):
            return Found(from_state_dict(tensors, config), kept, notes)

    def write(self, weights: Weights, folder: Path, extra_files: Mapping[str, bytes] | None = None) -> None:
        """Write a folder that ``PeftModel.from_pretrained`` loads; see ``Kind.write``."""
        adapter_folder.write(folder, weights.tensors, weights.layout.config["peft"], extra_files)

    def canonical(self, weights: Weights) -> Weights:
        """The same update in the canonical gauge; see ``zoo.lora_gauge``.

        Half-precision factors become float32, because rounding them again would change the function. Convolutions with
        groups, and variants whose update is not one product ``B @ A``, are returned unchanged.
        """
        if not _free_gauge(weights.layout):
            return weights
        return regauged(weights, pairs(weights.tensors))

    def invariant(self, weights: Weights) -> float | None:
        """Norm of the update; see ``Kind.invariant``."""
        return update_norm(weights.tensors, pairs(weights.tensors)) if _free_gauge(weights.layout) else None

    def function_config(self, layout: Layout) -> dict[str, Any]:
        """The configuration without what concerns training, versions and defaults; see ``Kind.function_config``."""
        return {key: value for key, value in layout.config["peft"].items() if value and key not in NO_FUNCTION}

    def same_function(self, a: Weights, b: Weights) -> bool:
        """Whether all updates and all other tensors are equal; see ``Kind.same_function``."""
        return same_adapters(a, b, pairs(a.tensors))


def _free_gauge(layout: Layout) -> bool:
    return not any(layout.config["peft"].get(key) for key in OWN_GAUGE)


def regauged(weights: Weights, pairs: Pairs) -> Weights:
    """Weights with the given pairs of factors in the canonical gauge."""
    changed = regauge(weights.tensors, pairs)
    tensors = {name: changed.get(name, tensor) for name, tensor in weights.tensors.items()}
    specs = tuple(replace(s, dtype=str(safefile.dtype_name(tensors[s.name].dtype))) for s in weights.layout.tensors)
    return Weights(replace(weights.layout, tensors=specs), tensors)


def same_adapters(a: Weights, b: Weights, pairs: Pairs) -> bool:
    """Whether two adapters of equal names and shapes have equal updates and equal other tensors."""
    free = {name for members in stacks(a.tensors, pairs).values() for pair in members for name in pair}
    rest = {name: tensor for name, tensor in a.tensors.items() if name not in free}
    return close(rest, b.tensors) and same_updates(a.tensors, b.tensors, pairs, TOLERANCE)
