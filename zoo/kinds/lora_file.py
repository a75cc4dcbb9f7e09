"""LoRA in a single file without configuration, as diffusers, kohya's scripts and others save it.

    lora_unet_down_blocks_0_attn1_to_q.lora_down.weight / .lora_up.weight / .alpha      kohya
    unet.down_blocks.0.attn1.processor.to_q_lora.down.weight / .up.weight               diffusers, old
    unet.down_blocks.0.attn1.to_q.lora.down.weight / .up.weight                         diffusers
    transformer.blocks.0.attn.to_q.lora_A.weight / .lora_B.weight                       diffusers, as PEFT names them

The update of a module is ``scale * up @ down`` with ``scale = alpha / rank``, or 1 where no ``alpha`` is stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from zoo import formats, safefile
from zoo.errors import BadArtefact
from zoo.kinds import Found, Kind, blamed_on, dense, register
from zoo.kinds.lora import regauged, same_adapters
from zoo.lora_gauge import update_norm
from zoo.specs import specs
from zoo.types import Layout, Weights

if TYPE_CHECKING:
    from torch import Tensor

_ROLES = {"down": "lora_A", "up": "lora_B", "mid": "lora_mid", "A": "lora_A", "B": "lora_B"}
_PATTERNS = (
    re.compile(r"^(?P<module>.+)\.lora_(?P<factor>down|up|mid|A|B)(?:\.default)?\.(?P<rest>weight|bias)$"),
    re.compile(r"^(?P<module>.+?)[._]lora(?:_linear_layer)?\.(?P<factor>down|up|mid)\.(?P<rest>weight|bias)$"),
)
_OTHER = re.compile(
    r"^(?P<module>.+?)(?:[._]lora(?:_linear_layer)?)?\.(?P<role>alpha|dora_scale|lora_magnitude_vector)"
)


def split_name(name: str) -> tuple[str, str]:
    """Module path and role (``lora_A``, ``lora_B``, ``lora_mid``, ``alpha``, ``dora_scale`` ...) of a tensor."""
    for pattern in _PATTERNS:
        if found := pattern.match(name):
            return found["module"], _ROLES[found["factor"]] + ("_bias" if found["rest"] == "bias" else "")
    if found := _OTHER.match(name):
        return found["module"], found["role"]
    module, _, role = name.rpartition(".")
    return module, role


def pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Names of the factors ``A`` (down) and ``B`` (up) of every module that has both and nothing between them."""
    parts = {split_name(name): name for name in names}
    return [
        (name, parts[module, "lora_B"])
        for (module, role), name in parts.items()
        if role == "lora_A" and (module, "lora_B") in parts and (module, "lora_mid") not in parts
    ]


def is_lora(names: Iterable[str]) -> bool:
    """Whether most tensors of a file are factors of LoRA or belong to them."""
    roles = [split_name(name)[1] for name in names]
    own = sum(role.startswith("lora_") or role in ("alpha", "dora_scale") for role in roles)
    return {"lora_A", "lora_B"} <= set(roles) and 2 * own > len(roles)


def layout(tensors: Mapping[str, Tensor], *, base_model: str | None = None) -> Layout:
    """Describe the tensors of a file.

    Args:
        tensors: values by name.
        base_model: model that they belong to, if it is known.

    Raises:
        BadArtefact: if a factor lacks its partner, ranks differ, or a tensor cannot be stored.
    """
    parts = {name: split_name(name) for name in tensors}
    if len(set(parts.values())) != len(parts):
        raise BadArtefact("two tensors of the file have the same module and role", "save the adapter again")
    by_part = {part: name for name, part in parts.items()}
    for (module, role), name in by_part.items():
        partner = {"lora_A": "lora_B", "lora_B": "lora_A"}.get(role)
        if partner is not None and (module, partner) not in by_part:
            raise BadArtefact(f"tensor {name!r} has no partner {partner}", "save the adapter again")
    for name_a, name_b in pairs(tensors):
        a, b = tensors[name_a], tensors[name_b]
        if a.ndim < 2 or b.ndim < 2 or (a.shape[0] != b.shape[1] and not (a.ndim > 2 and a.shape[0] % b.shape[1] == 0)):
            shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
            raise BadArtefact(f"factors {name_a!r} and {name_b!r} of shapes {shapes} do not multiply", "save it again")
    return Layout("lora_file", base_model, specs(tensors, parts))


def from_state_dict(tensors: Mapping[str, Tensor], *, base_model: str | None = None) -> Weights:
    """An adapter from its tensors as a file names them; arguments and errors as in ``layout``."""
    return Weights(layout(tensors, base_model=base_model), dict(tensors))


@register
class LoraFile(Kind):
    """Files of LoRA factors."""

    name: ClassVar[str] = "lora_file"
    order: ClassVar[int] = 500

    def matches(self, path: Path) -> bool:
        """Whether the header of a safetensors file lists factors, or a PyTorch file is named after LoRA."""
        if not path.is_file():
            return False
        kind = formats.detect(path)
        return (kind == "safetensors" and is_lora(safefile.names(path))) or (
            kind == "torch" and "lora" in path.name.lower()
        )

    def read(self, path: Path, *, root: Path | None = None) -> Found:
        """Read one file; what holds no factors in spite of its name is a dense item. See ``Kind.read``."""
        source = formats.read_tensors(path, root=root)
        if not is_lora(source.tensors):
            return dense.found(dense.from_state_dict(source.tensors), source)
        stated = source.files[0].metadata.get("ss_base_model_version")
        with blamed_on(path):
            return dense.found(from_state_dict(source.tensors, base_model=stated or None), source)

    def write(self, weights: Weights, folder: Path, extra_files: Mapping[str, bytes] | None = None) -> None:
        """Write the file it came from; see ``Kind.write``."""
        dense.write(weights, folder, extra_files)

    def canonical(self, weights: Weights) -> Weights:
        """The same update in the canonical gauge of ``zoo.lora_gauge``; ``alpha`` and the rest stay."""
        return regauged(weights, pairs(weights.tensors))

    def invariant(self, weights: Weights) -> float | None:
        """Norm of the update without its scale; see ``Kind.invariant``."""
        return update_norm(weights.tensors, pairs(weights.tensors))

    def same_function(self, a: Weights, b: Weights) -> bool:
        """Whether all updates and all other tensors are equal; see ``Kind.same_function``."""
        return same_adapters(a, b, pairs(a.tensors))
