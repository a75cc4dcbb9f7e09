"""Vision transformers as transformers names them: in its files, or in the modules of its fifth version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.architectures import Architecture, UnitGroup, register_family
from zoo.architectures._pretrained import (
    affine,
    build,
    columns,
    fields,
    head_maps,
    number,
    relu_gauges,
    rows,
)
from zoo.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

CLASSES = "ViTForImageClassification"
BARE = "ViTModel"
MODELS = (BARE, CLASSES)
FILE = (
    *("encoder.layer", "attention.attention.query", "attention.attention.key", "attention.attention.value"),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
)
MODULE = (
    *("layers", "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
    *("mlp.fc1", "mlp.fc2"),
)


@register_family("vit_transformers")
class ViTTransformers:
    """``{"family": "vit_transformers", "model": "ViTForImageClassification", "config": {...}, "names": "file"}``.

    ``names`` is ``file`` for what is saved, and ``module`` for the state dict of the model itself.
    """

    @staticmethod
    def build(architecture: Architecture) -> nn.Module:
        """Return the model of transformers; see ``zoo.architectures._pretrained``.

        Raises:
            UsageError: if the tensors have the names of files, which the model does not have.
        """
        if _names(architecture) == FILE:
            raise UsageError("the tensors have the names of files", "load the exported folder with transformers")
        return build(architecture, MODELS)

    @staticmethod
    def groups(architecture: Architecture) -> tuple[UnitGroup, ...]:
        """Return heads and MLP units of every layer, then the residual stream, where nothing outside reads it."""
        model, config, root = fields(architecture, MODELS, "vit.")
        layers, *parts = _names(architecture)
        width, count = number(config, "hidden_size", 768), number(config, "num_attention_heads", 12)
        embeddings = f"{root}embeddings."
        stream = [(f"{embeddings}cls_token", 2), (f"{embeddings}position_embeddings", 2)]
        stream += rows(f"{embeddings}patch_embeddings.projection")
        biased = bool(config.get("qkv_bias", True))
        groups = []
        for i in range(number(config, "num_hidden_layers", 12)):
            layer = f"{root}{layers}.{i}."
            q, k, v, out, up, down = (f"{layer}{part}" for part in parts)
            maps = head_maps(q, k, v, out, width, biased=biased)
            groups.append(UnitGroup((*rows(q, k, v, bias=biased), *columns(out)), count, maps=maps))
            ways = (rows(up), columns(down))
            size = number(config, "intermediate_size", 3072)
            groups.append(UnitGroup(ways[0] + ways[1], size, gauges=relu_gauges(config.get("hidden_act"), *ways)))
            stream += [*columns(q, k, v, up), *rows(out, down)]
            stream += affine(f"{layer}layernorm_before", f"{layer}layernorm_after")
        if model != BARE:
            stream += [*affine(f"{root}layernorm"), *columns("classifier")]
            groups.append(UnitGroup(tuple(stream), width))
        return tuple(groups)

    @staticmethod
    def outputs(architecture: Architecture) -> UnitGroup:
        """Return the rows of the classifier; see ``Family.outputs``."""
        model, config, _ = fields(architecture, MODELS)
        if model == BARE:
            raise UsageError(f"the outputs of {model} are no classes", f"use {CLASSES}")
        labels = config.get("id2label")
        return UnitGroup(rows("classifier"), len(labels) if labels else number(config, "num_labels", 2))

    @staticmethod
    def describe(architecture: Architecture) -> str:
        """Return a phrase such as ``12-layer ViT of width 768``."""
        _, config, _ = fields(architecture, MODELS)
        return f"{number(config, 'num_hidden_layers', 12)}-layer ViT of width {number(config, 'hidden_size', 768)}"


def _names(architecture: Architecture) -> tuple[str, ...]:
    names = architecture.get("names", "file")
    if names not in ("file", "module"):
        raise UsageError(f"names of the ViT are {names!r}", 'choose "file" or "module"')
    return FILE if names == "file" else MODULE
