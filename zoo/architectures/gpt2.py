"""GPT-2 as transformers names it: heads inside of packed matrices, MLP units, the residual stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.architectures import Architecture, FreeMap, Part, UnitGroup, register_family
from zoo.architectures._pretrained import affine, build, fields, number, refuse, relu_gauges
from zoo.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

HEADS = {
    "GPT2LMHeadModel": "lm_head",
    "GPT2ForSequenceClassification": "score",
    "GPT2ForTokenClassification": "classifier",
}
BARE = "GPT2Model"
MODELS = (BARE, *HEADS)


@register_family("gpt2")
class GPT2:
    """``{"family": "gpt2", "model": "GPT2LMHeadModel", "config": {...}}``; its matrices are ``[inputs, outputs]``.

    The published files of language models have the ``prefix`` ``""``.
    """

    @staticmethod
    def build(architecture: Architecture) -> nn.Module:
        """Return the model of transformers; see ``zoo.architectures._pretrained``."""
        return build(architecture, MODELS)

    @staticmethod
    def groups(architecture: Architecture) -> tuple[UnitGroup, ...]:
        """Return heads and MLP units of every layer, then the residual stream, where nothing outside reads it."""
        model, config, root = fields(architecture, MODELS, "transformer.")
        refuse(config, "add_cross_attention")
        width, heads = number(config, "n_embd", 768), number(config, "n_head", 12)
        stream = [(f"{root}wte.weight", 1), (f"{root}wpe.weight", 1)]
        groups = []
        for i in range(number(config, "n_layer", 12)):
            block = f"{root}h.{i}."
            packed = tuple(
                Part(f"{block}attn.c_attn.{name}", axis, ((k * width, (k + 1) * width),))
                for name, axis in (("weight", 1), ("bias", 0))
                for k in range(3)
            )
            q, k, v, q_bias, k_bias, v_bias = packed
            out = Part(f"{block}attn.c_proj.weight", 0, ((0, width),))
            maps = (FreeMap((q, q_bias), (k,), k_bias), FreeMap((v,), (out,), v_bias, f"{block}attn.c_proj.bias"))
            groups.append(UnitGroup(((f"{block}attn.c_proj.weight", 0),), heads, parts=packed, maps=maps))
            up = ((f"{block}mlp.c_fc.weight", 1), (f"{block}mlp.c_fc.bias", 0))
            down = ((f"{block}mlp.c_proj.weight", 0),)
            gauges = relu_gauges(config.get("activation_function"), up, down)
            groups.append(UnitGroup(up + down, number(config, "n_inner", 4 * width), gauges=gauges))
            stream += [(f"{block}attn.c_attn.weight", 0), (f"{block}mlp.c_fc.weight", 0)]
            for name in ("attn", "mlp"):
                stream += [(f"{block}{name}.c_proj.weight", 1), (f"{block}{name}.c_proj.bias", 0)]
            stream += affine(f"{block}ln_1", f"{block}ln_2")
        if model != BARE:
            stream += [*affine(f"{root}ln_f"), (f"{HEADS[model]}.weight", 1)]
            groups.append(UnitGroup(tuple(stream), width))
        return tuple(groups)

    @staticmethod
    def tied(architecture: Architecture) -> tuple[str, ...]:
        """Return the head of a language model, which is the word embedding."""
        model, config, _ = fields(architecture, MODELS)
        return ("lm_head.weight",) if model == "GPT2LMHeadModel" and config.get("tie_word_embeddings", True) else ()

    @staticmethod
    def outputs(architecture: Architecture) -> UnitGroup:
        """Return the rows of the classifier; see ``Family.outputs``."""
        model, config, _ = fields(architecture, MODELS)
        if model in (BARE, "GPT2LMHeadModel"):
            raise UsageError(f"the outputs of {model} are no classes", "use a sequence or token classifier")
        labels = config.get("id2label")
        axes = ((f"{HEADS[model]}.weight", 0), *([("classifier.bias", 0)] if HEADS[model] == "classifier" else []))
        return UnitGroup(axes, len(labels) if labels else number(config, "num_labels", 2))

    @staticmethod
    def describe(architecture: Architecture) -> str:
        """Return a phrase such as ``12-layer GPT-2 of width 768``."""
        _, config, _ = fields(architecture, MODELS)
        return f"{number(config, 'n_layer', 12)}-layer GPT-2 of width {number(config, 'n_embd', 768)}"
