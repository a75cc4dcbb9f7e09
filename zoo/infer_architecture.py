"""Recognising the architecture of a bare state dict, where names and shapes leave no doubt.

What a state dict cannot tell, such as the activation, is left open: only symmetries that hold whatever it is are used.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from zoo.architectures import Architecture, UnitGroup, family, tied
from zoo.errors import WeightgenError
from zoo.naming import natural_key

Shapes = Mapping[str, tuple[int, ...]]

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.conv1\.weight")
_SEQUENTIAL = re.compile(r"(.*\.)?(\d+)\.(weight|bias)")
_PRETRAINED = {
    "bert": ("BertModel", "bert."),
    "gpt2": ("GPT2Model", "transformer."),
    "llama": ("LlamaModel", "model."),
    "vit": ("ViTModel", "vit."),
}
"""The model without a head of each type of transformers, and what its tensors are called below a head."""
_ASIDE = re.compile(
    r"(^|\.)(classifier|qa_outputs|score|seq_relationship|predictions|decoder)\.bias"
    r"|.*\.attn\.(masked_)?bias|.*(position_ids|inv_freq)"
)
"""Tensors of transformers that no hidden unit reaches."""


def infer(shapes: Shapes, config: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """Recognise an architecture.

    Args:
        shapes: shape of every tensor by name, in the order of the file.
        config: content of the ``config.json`` that came with a checkpoint of transformers.

    Returns:
        A description for ``zoo.architectures.family``, or ``None`` where it would be a guess. Chains of linear layers,
        residual networks, and (with their configuration) BERT, GPT-2, Llama and ViT are known.
    """
    for recognise in (_chain, _resnet) if config is None else (_pretrained,):
        found = recognise(shapes, config or {})
        if found is not None:
            return found
    return None


def groups_of(architecture: Architecture, shapes: Shapes) -> tuple[UnitGroup, ...] | None:
    """Interchangeable units of a network that claims an architecture; ``None`` if the two do not fit."""
    import torch

    from zoo.head_maps import fits
    from zoo.units import names, places

    try:
        groups = family(architecture).groups(architecture)
        absent = {name for group in groups for name in names(group)} - shapes.keys()
        if absent - tied(architecture):
            return None
        tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        for group in groups:
            list(places(group, tensors))
        if not all(fits(group, shapes) for group in groups):
            return None
    except (WeightgenError, LookupError, TypeError, ValueError, AttributeError):
        return None  # the description came with a file and is not to be trusted
    return groups


def _chain(shapes: Shapes, _config: Mapping[str, Any]) -> dict[str, Any] | None:
    weights = [name for name in shapes if name.endswith(".weight")]
    layers = [name.removesuffix(".weight") for name in weights]
    tensors = {*weights, *(f"{layer}.bias" for layer in layers)}
    if not weights or not shapes.keys() <= tensors or not all(name.endswith((".weight", ".bias")) for name in shapes):
        return None
    layers.sort(key=natural_key)
    sizes = [shapes[f"{layer}.weight"] for layer in layers]
    if any(len(size) != 2 or 0 in size for size in sizes):
        return None
    if any(after[1] != before[0] for before, after in itertools.pairwise(sizes)):
        return None
    biases = [f"{layer}.bias" in shapes for layer in layers]
    if not all(biases[:-1]):
        return None  # an embedding has none, and its rows are words
    fits = [shapes[f"{layer}.bias"] == size[:1] for layer, size, has in zip(layers, sizes, biases, strict=True) if has]
    if not all(fits):
        return None
    matches = [_SEQUENTIAL.fullmatch(name) for name in shapes]
    numbered = all(matches) and len({match[1] for match in matches if match}) == 1
    # A ModuleList is numbered from 0 without gaps, a Sequential has functions between its layers.
    numbers = sorted({int(match[2]) for match in matches if match})
    sequential = numbered and len(numbers) > 1 and all(b - a > 1 for a, b in itertools.pairwise(numbers))
    widths = [sizes[0][1], *(size[0] for size in sizes)]
    return {"family": "chain", "layers": layers, "sizes": widths, "biases": biases, "sequential": sequential}


def _resnet(shapes: Shapes, _config: Mapping[str, Any]) -> dict[str, Any] | None:
    prefix = "module." if all(name.startswith("module.") for name in shapes) else ""
    bare = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
    style, head = next(
        ((style, head) for style, head in (("cifar", "linear"), ("torchvision", "fc")) if f"{head}.weight" in bare),
        ("", ""),
    )
    deep = "conv1.6.weight" in bare
    first = bare.get("conv1.0.weight" if deep else "conv1.weight", ())
    found = sorted((int(match[1]), int(match[2])) for name in bare if (match := _BLOCK.fullmatch(name)))
    stages = sorted({stage for stage, _ in found})
    if not style or len(first) != 4 or not stages or stages != list(range(1, len(stages) + 1)):
        return None
    blocks = [sum(stage == i for stage, _ in found) for i in stages]
    way = "shortcut" if style == "cifar" else "downsample"
    shortcut = next((how for how, at in (("pool", 1), ("conv", 0)) if _has_convolution(bare, way, at)), "pad")
    widths = [(*bare[f"layer{i}.0.conv1.weight"], 0)[0] for i in stages]
    stream = bare.get("layer1.0.conv3.weight", ())
    if shortcut == "pad" and style != "cifar" and len(stages) > 1:
        return None  # which channels the zeros are put at is not known
    architecture = {
        "family": "resnet",
        "style": style,
        "stem": "deep" if deep else first[2],
        "blocks": blocks,
        "widths": widths,
        "expansion": stream[0] // max(1, widths[0]) if stream else None,
        "shortcut": shortcut,
        "norm": "bn1.weight" in bare,
        "activation": None,
        "channels": first[1],
        "classes": bare[f"{head}.weight"][0] if bare[f"{head}.weight"] else 0,
        "prefix": prefix,
    }
    from zoo.architectures.resnet import shapes_of

    try:
        expected = shapes_of(architecture)
    except WeightgenError:
        return None
    counters = {name for name in expected if name.endswith("num_batches_tracked")}  # old files have none
    same = all(shapes.get(name, expected[name] if name in counters else None) == expected[name] for name in expected)
    return architecture if same and shapes.keys() <= expected.keys() else None


def _has_convolution(shapes: Shapes, way: str, at: int) -> bool:
    """Whether a shortcut has a convolution at a place of its sequence."""
    return any(name.endswith(f".{way}.{at}.weight") and len(shape) == 4 for name, shape in shapes.items())


def _pretrained(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """A model of transformers as its configuration says; where its head is not known, all but its residual stream."""
    kind, models = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str) or kind not in _PRETRAINED or not isinstance(models, list) or len(models) != 1:
        return None
    bare, prefix = _PRETRAINED[kind]
    described = {"family": kind, "config": dict(config)}
    if kind == "vit":
        inside = any(".attention.q_proj." in name for name in shapes)
        described |= {"family": "vit_transformers", "names": "module" if inside else "file"}
    for model, prefixes in ((models[0], (None, "")), (bare, (None, prefix))):
        for found in ({**described, "model": model, **({} if p is None else {"prefix": p})} for p in prefixes):
            if _fits(found, shapes, whole=model != bare):
                return found
    return None


def _fits(architecture: Architecture, shapes: Shapes, *, whole: bool) -> bool:
    """Whether every tensor is where the architecture has it; if ``whole``, no other tensor may be there."""
    from zoo.units import names

    groups = groups_of(architecture, shapes)
    if not groups:
        return False
    ends: dict[tuple[str, int], int] = {}
    for part in (part for group in groups for part in group.parts):
        ends[part.name, part.axis] = max(ends.get((part.name, part.axis), 0), *(stop for _, stop in part.ranges))
    if any(shapes[name][axis] != end for (name, axis), end in ends.items()):
        return False
    known = {name for group in groups for name in names(group)}
    return not whole or all(name in known or _ASIDE.search(name) for name in shapes)
