"""BERT as transformers names it: heads of attention, MLP units, the residual stream, the pooler."""

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
    refuse,
    relu_gauges,
    rows,
)
from zoo.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

POOLED = {
    "BertForSequenceClassification": "classifier",
    "BertForMultipleChoice": "classifier",
    "BertForNextSentencePrediction": "cls.seq_relationship",
}
TOKENS = {"BertForTokenClassification": "classifier", "BertForQuestionAnswering": "qa_outputs"}
WORDS = "BertForMaskedLM"
BARE = "BertModel"
MODELS = (BARE, WORDS, *POOLED, *TOKENS)
DECODER = "cls.predictions.decoder"


@register_family("bert")
class Bert:
    """``{"family": "bert", "model": "BertForSequenceClassification", "config": {...}}``."""

    @staticmethod
    def build(architecture: Architecture) -> nn.Module:
        """Return the model of transformers; see ``zoo.architectures._pretrained``."""
        return build(architecture, MODELS)

    @staticmethod
    def groups(architecture: Architecture) -> tuple[UnitGroup, ...]:
        """Return heads and MLP units of every layer, then the residual stream, where nothing outside reads it."""
        model, config, root = fields(architecture, MODELS, "bert.")
        refuse(config, "is_decoder", "add_cross_attention")
        words, tokens = f"{root}embeddings.word_embeddings.weight", f"{root}embeddings.token_type_embeddings.weight"
        stream = [(words, 1), (f"{root}embeddings.position_embeddings.weight", 1), (tokens, 1)]
        stream += affine(f"{root}embeddings.LayerNorm")
        groups = []
        for i in range(number(config, "num_hidden_layers", 12)):
            layer = f"{root}encoder.layer.{i}."
            attention = [f"{layer}attention.self.{name}" for name in ("query", "key", "value")]
            mixed, up, down = f"{layer}attention.output", f"{layer}intermediate.dense", f"{layer}output"
            heads = (*rows(*attention), *columns(f"{mixed}.dense"))
            query, key, value = attention
            maps = head_maps(query, key, value, f"{mixed}.dense", number(config, "hidden_size", 768))
            plain = config.get("position_embedding_type", "absolute") == "absolute"
            groups.append(UnitGroup(heads, number(config, "num_attention_heads", 12), maps=maps if plain else maps[1:]))
            units = (rows(up), columns(f"{down}.dense"))
            gauges = relu_gauges(config.get("hidden_act"), *units)
            size = number(config, "intermediate_size", 3072)
            groups.append(UnitGroup(units[0] + units[1], size, gauges=gauges))
            stream += [*columns(*attention, up), *rows(f"{mixed}.dense", f"{down}.dense")]
            stream += affine(f"{mixed}.LayerNorm", f"{down}.LayerNorm")
        width = number(config, "hidden_size", 768)
        if model in POOLED:
            pooler = f"{root}pooler.dense"
            stream += columns(pooler)
            groups.append(UnitGroup((*rows(pooler), *columns(POOLED[model])), width, odd=True))
        elif model in TOKENS:
            stream += columns(TOKENS[model])
        elif model == WORDS:
            transform = "cls.predictions.transform"
            stream += columns(f"{transform}.dense")
            inner = (*rows(f"{transform}.dense"), *affine(f"{transform}.LayerNorm"), *columns(DECODER))
            if config.get("tie_word_embeddings", True):
                stream += inner  # the decoder is the word embedding
            else:
                groups.append(UnitGroup(inner, width))
        if model != BARE:
            groups.append(UnitGroup(tuple(stream), width))
        return tuple(groups)

    @staticmethod
    def tied(architecture: Architecture) -> tuple[str, ...]:
        """Return the decoder of a masked language model, which is the word embedding."""
        model, config, _ = fields(architecture, MODELS)
        shared = model == WORDS and config.get("tie_word_embeddings", True)
        return (f"{DECODER}.weight", f"{DECODER}.bias") if shared else ()

    @staticmethod
    def outputs(architecture: Architecture) -> UnitGroup:
        """Return the rows of the classifier; see ``Family.outputs``."""
        model, config, _ = fields(architecture, MODELS)
        head = {**POOLED, **TOKENS}.get(model)
        if head is None or model in ("BertForMultipleChoice", "BertForQuestionAnswering"):
            raise UsageError(f"the outputs of {model} are no classes", "use a sequence or token classifier")
        labels = config.get("id2label")
        return UnitGroup(rows(head), len(labels) if labels else number(config, "num_labels", 2))

    @staticmethod
    def describe(architecture: Architecture) -> str:
        """Return a phrase such as ``12-layer BERT of width 768``."""
        _, config, _ = fields(architecture, MODELS)
        return f"{number(config, 'num_hidden_layers', 12)}-layer BERT of width {number(config, 'hidden_size', 768)}"
