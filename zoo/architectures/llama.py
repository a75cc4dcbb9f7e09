"""Llama as transformers names it: groups of heads that share keys and values, gated MLP units, the residual stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.architectures import Architecture, FreeMap, Gauge, Part, UnitGroup, register_family
from zoo.architectures._pretrained import build, columns, fields, number, rows
from zoo.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

HEADS = {
    "LlamaForCausalLM": "lm_head",
    "LlamaForSequenceClassification": "score",
    "LlamaForTokenClassification": "score",
}
BARE = "LlamaModel"
MODELS = (BARE, *HEADS)


@register_family("llama")
class Llama:
    """``{"family": "llama", "model": "LlamaForCausalLM", "config": {...}}``.

    Query heads that share keys and values move inside of their set, and the sets move as a whole.
    """

    @staticmethod
    def build(architecture: Architecture) -> nn.Module:
        """Return the model of transformers; see ``zoo.architectures._pretrained``."""
        return build(architecture, MODELS)

    @staticmethod
    def groups(architecture: Architecture) -> tuple[UnitGroup, ...]:
        """Return heads, sets of heads and MLP units of every layer, then the stream, where nothing outside reads it."""
        model, config, root = fields(architecture, MODELS, "model.")
        width, heads = number(config, "hidden_size", 4096), number(config, "num_attention_heads", 32)
        sets = number(config, "num_key_value_heads", heads)
        if heads % sets:
            raise UsageError(f"{heads} heads cannot share {sets} keys", "num_key_value_heads must divide them")
        share = heads // sets
        head = number(config, "head_dim", max(1, width // heads))
        block = share * head
        biased, mlp_biased = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
        stream = [(f"{root}embed_tokens.weight", 1)]
        groups = []
        for i in range(number(config, "num_hidden_layers", 32)):
            layer = f"{root}layers.{i}."
            q, k, v, o = (f"{layer}self_attn.{name}_proj" for name in "qkvo")
            queries = (*rows(q, bias=biased), *columns(o))
            for s in range(sets if share > 1 else 0):
                stretch = ((s * block, (s + 1) * block),)
                groups.append(UnitGroup((), share, parts=tuple(Part(*axis, stretch) for axis in queries)))
            values = tuple(Part(*axis, ((0, sets * head),)) for axis in rows(v, bias=False))
            outputs = (Part(f"{o}.weight", 1, ((0, heads * head),)),)
            free_map = FreeMap(values, outputs)  # not between queries and keys, which are rotated
            if biased:
                free_map = FreeMap(values, outputs, Part(f"{v}.bias", 0, ((0, sets * head),)), f"{o}.bias")
            groups.append(UnitGroup((*queries, *rows(k, v, bias=biased)), sets, maps=(free_map,)))
            gate, up, down = (f"{layer}mlp.{name}_proj" for name in ("gate", "up", "down"))
            ways = (rows(up, bias=mlp_biased), columns(down))
            free = (Gauge(*ways, False), Gauge(*ways, True))  # what is gated is linear
            axes = (*rows(gate, up, bias=mlp_biased), *columns(down))
            groups.append(UnitGroup(axes, number(config, "intermediate_size", 11008), gauges=free))
            stream += [*columns(q, k, v, gate, up), *rows(o, bias=biased), *rows(down, bias=mlp_biased)]
            stream += [(f"{layer}input_layernorm.weight", 0), (f"{layer}post_attention_layernorm.weight", 0)]
        if model != BARE:
            stream += [(f"{root}norm.weight", 0), (f"{HEADS[model]}.weight", 1)]
            groups.append(UnitGroup(tuple(stream), width))
        return tuple(groups)

    @staticmethod
    def tied(architecture: Architecture) -> tuple[str, ...]:
        """Return the head of a language model, if it is the word embedding."""
        model, config, _ = fields(architecture, MODELS)
        return ("lm_head.weight",) if model == "LlamaForCausalLM" and config.get("tie_word_embeddings", False) else ()

    @staticmethod
    def outputs(architecture: Architecture) -> UnitGroup:
        """Return the rows of the classifier; see ``Family.outputs``."""
        model, config, _ = fields(architecture, MODELS)
        if HEADS.get(model) != "score":
            raise UsageError(f"the outputs of {model} are no classes", "use a sequence or token classifier")
        labels = config.get("id2label")
        biased = model == "LlamaForTokenClassification"
        return UnitGroup(rows("score", bias=biased), len(labels) if labels else number(config, "num_labels", 2))

    @staticmethod
    def describe(architecture: Architecture) -> str:
        """Return a phrase such as ``32-layer Llama of width 4096``."""
        _, config, _ = fields(architecture, MODELS)
        return f"{number(config, 'num_hidden_layers', 32)}-layer Llama of width {number(config, 'hidden_size', 4096)}"
