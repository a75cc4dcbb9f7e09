"""LoRA adapters in the folder form of PEFT: ``adapter_config.json`` and one file of factors."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from zoo import formats, safefile
from zoo.errors import BadArtefact
from zoo.kinds import ORIGIN, Found, Kind, parse_json, register
from zoo.lora_gauge import canonical_factors
from zoo.naming import layer_index, module_of
from zoo.types import Layout, TensorSpec, Weights

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
MAX_EXTRA = 1 << 20
DEFAULT_METADATA = {"format": "pt"}
KEPT_FILES = ("README.md", "metadata.json", "weightgen.json", "LICENSE", "LICENSE.txt", "LICENSE.md")
SAVE_AGAIN = "save the adapter again with PeftModel.save_pretrained"
# Variants in which the update is more than B @ A of one layer: their factors have no free gauge.
OWN_GAUGE = (
    *("target_parameters", "use_bdlora", "use_qalora", "kasa_config", "monteclora_config", "velora_config"),
    *("arrow_config", "megatron_config"),
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
    parts = {name: split_name(name) for name in tensors}
    layers = layer_index(module for module, _ in parts.values())
    specs = []
    for name, tensor in tensors.items():
        dtype = safefile.dtype_name(tensor.dtype)
        if dtype is None:
            raise BadArtefact(f"tensor {name!r} is {tensor.dtype}, which safetensors cannot hold", "convert it first")
        module, role = parts[name]
        specs.append(TensorSpec(name, tuple(tensor.shape), dtype, layers[module], role))
    return Layout("lora", config.get("base_model_name_or_path"), tuple(specs), {"peft": dict(config)})


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
        raise BadArtefact(f"adapter of type {method!r} is not supported, only 'LORA' is", "train a LoRA adapter")
    base = config.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise BadArtefact(f"base_model_name_or_path is {base!r}, not a name", SAVE_AGAIN)
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
            if role == role_a:
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


def _small_file(path: Path, root: Path) -> bytes | None:
    if not path.is_file() or not path.resolve().is_relative_to(root) or path.stat().st_size > MAX_EXTRA:
        return None
    return path.read_bytes()


@register
class Lora(Kind):
    """PEFT LoRA folders."""

    name: ClassVar[str] = "lora"

    def matches(self, path: Path) -> bool:
        """Whether it is a folder with an adapter configuration, or the weight file inside one."""
        return (path / CONFIG_FILE).is_file() or (path.name in WEIGHT_FILES and (path.parent / CONFIG_FILE).is_file())

    def read(self, path: Path, *, root: Path | None = None) -> Found:
        """Read configuration, factors and the small files beside them; see ``Kind.read``."""
        folder = path.parent if path.is_file() else path
        root = (root or folder).resolve()
        config_bytes = _small_file(folder / CONFIG_FILE, root)
        if config_bytes is None:
            raise BadArtefact(f"{folder / CONFIG_FILE} leads outside its folder or is too large", SAVE_AGAIN)
        config = parse_json(config_bytes, str(folder / CONFIG_FILE))
        file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
        if file is None:
            raise BadArtefact(f"{folder} has {CONFIG_FILE} but none of {', '.join(WEIGHT_FILES)}", SAVE_AGAIN)
        if not file.resolve().is_relative_to(root):
            raise BadArtefact(f"{file} leads outside its folder", "copy the file itself")
        source = formats.read_tensors(file)
        try:
            weights = from_state_dict(source.tensors, config)
        except BadArtefact as error:
            raise BadArtefact(f"{folder}: {error.cause}", error.remedy) from None
        kept = {CONFIG_FILE: config_bytes}
        for name in KEPT_FILES:
            if (data := _small_file(folder / name, root)) is not None:
                kept[name] = data
        if source.files[0].metadata != DEFAULT_METADATA:
            kept[ORIGIN] = json.dumps({"metadata": dict(source.files[0].metadata)}).encode()
        return Found(weights, kept, source.notes)

    def write(self, weights: Weights, folder: Path, extra_files: Mapping[str, bytes] | None = None) -> None:
        """Write a folder that ``PeftModel.from_pretrained`` loads; see ``Kind.write``."""
        extra = dict(extra_files or {})
        metadata = DEFAULT_METADATA
        if ORIGIN in extra:
            metadata = parse_json(extra.pop(ORIGIN), ORIGIN)["metadata"]
        config = weights.layout.config["peft"]
        if CONFIG_FILE not in extra or parse_json(extra[CONFIG_FILE], CONFIG_FILE) != config:
            extra[CONFIG_FILE] = (json.dumps(config, indent=2) + "\n").encode()
        safefile.save(folder / WEIGHT_FILES[0], weights.tensors, metadata)
        for name, data in extra.items():
            (folder / name).write_bytes(data)

    def canonical(self, weights: Weights) -> Weights:
        """The same update in the canonical gauge; see ``zoo.lora_gauge``.

        Half-precision factors become float32, because rounding them again would change the function. Convolutions with
        groups, and variants whose update is not one product ``B @ A``, are returned unchanged.
        """
        config = weights.layout.config["peft"]
        if any(config.get(key) for key in OWN_GAUGE):
            return weights
        stacks: dict[tuple[Any, ...], list[tuple[str, str]]] = defaultdict(list)
        for name_a, name_b in pairs(weights.tensors):
            a, b = weights.tensors[name_a], weights.tensors[name_b]
            pointwise = all(size == 1 for size in b.shape[2:])
            if a.is_floating_point() and b.dtype == a.dtype and pointwise and a.shape[0] == b.shape[1]:
                stacks[tuple(a.shape), tuple(b.shape), a.dtype].append((name_a, name_b))
        changed = {}
        for (shape_a, shape_b, _), members in stacks.items():
            changed |= _canonical_stack(weights.tensors, members, shape_a, shape_b)
        tensors = {name: changed.get(name, tensor) for name, tensor in weights.tensors.items()}
        specs = tuple(replace(s, dtype=str(safefile.dtype_name(tensors[s.name].dtype))) for s in weights.layout.tensors)
        return Weights(replace(weights.layout, tensors=specs), tensors)


def _canonical_stack(
    tensors: Mapping[str, Tensor], members: list[tuple[str, str]], shape_a: tuple[int, ...], shape_b: tuple[int, ...]
) -> dict[str, Tensor]:
    import torch

    a = torch.stack([tensors[name].flatten(1) for name, _ in members])  # n r (i k k)
    b = torch.stack([tensors[name].flatten(1) for _, name in members])  # n o r
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    new_a, new_b = canonical_factors(a.to(dtype), b.to(dtype))
    result = {}
    for i, (name_a, name_b) in enumerate(members):
        result[name_a] = new_a[i].to(dtype).reshape(shape_a)
        result[name_b] = new_b[i].to(dtype).reshape(shape_b)
    return result
