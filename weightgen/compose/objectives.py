"""What learned compositions minimise: functions from the changes of a base's tensors to a scalar.

Each runs the base with the changes added, by ``torch.func.functional_call``: the base itself is not touched. The
class has ``at(step)``, the objective on a part of the examples, so that gradient steps stay cheap; called directly it
uses all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from weightgen.compose.registry import Objective
from zoo.architectures import Architecture
from zoo.build.encoder import TextEncoder
from zoo.errors import UsageError
from zoo.networks import logits
from zoo.seeds import seed_of


@dataclass(frozen=True, eq=False)
class OverExamples:
    """A mean over examples.

    Attributes:
        loss: of the changes and the numbers of some examples.
        count: how many examples there are.
        batch: examples of a gradient step; 0 means all.
        seed: decides which examples a step sees; every pass sees each once.
    """

    loss: Callable[[Mapping[str, Tensor], Sequence[int]], Tensor]
    count: int
    batch: int = 0
    seed: int = 0

    def __call__(self, deltas: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The loss over all examples."""
        return self.loss(deltas, range(self.count))

    def at(self, step: int) -> Objective:
        """The loss of one gradient step."""
        if not 0 < self.batch < self.count:
            return self
        steps = math.ceil(self.count / self.batch)
        generator = torch.Generator().manual_seed(seed_of("examples", self.seed, step // steps))
        order = torch.randperm(self.count, generator=generator).tolist()
        place = (step % steps) * self.batch
        return lambda deltas: self.loss(deltas, order[place : place + self.batch])


def with_deltas(module: nn.Module, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of a module with changes added; gradients flow to the changes alone.

    Args:
        module: the base.
        deltas: by name of a parameter; in any floating type.

    Raises:
        UsageError: if the module has no such parameter, or one of another shape.
    """
    parameters = {name: value.detach() for name, value in module.named_parameters()}
    for name, delta in deltas.items():
        there = parameters.get(name)
        if there is None or there.shape != delta.shape:
            found = "nothing of that name" if there is None else f"a tensor of shape {tuple(there.shape)}"
            raise UsageError(
                f"the mixture changes {name!r} {tuple(delta.shape)}, the base has {found}",
                "give the base model, in the class, that the adapters were trained on",
            )
        parameters[name] = (there + delta.to(there.device)).to(there.dtype)
    return parameters


class _Embedder(nn.Module):
    """An encoder's ``embed`` as a module, so that its parameters can be replaced for a call."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.base = encoder.model
        self.encoder = encoder

    def forward(self, tokens: Sequence[Sequence[int]]) -> Float[Tensor, "n d"]:
        return self.encoder.embed(tokens)


def _text_logits(
    encoder: TextEncoder, texts: Sequence[str], label_texts: Sequence[str]
) -> Callable[[Mapping[str, Tensor], Sequence[int]], Tensor]:
    """Function from changes and numbers of texts to logits: cosines of text and label embeddings, times a scale."""
    longest = encoder.config.train_tokens
    tokens, labels = encoder.tokens(texts, longest), encoder.tokens(label_texts, longest)
    embedder = _Embedder(encoder)

    def run(deltas: Mapping[str, Tensor], rows: Sequence[int]) -> Float[Tensor, "n c"]:
        changed = {f"base.{k}": v for k, v in with_deltas(encoder.model, deltas).items()}
        found = functional_call(embedder, changed, ([tokens[i] for i in rows],))
        return encoder.config.scale * found @ functional_call(embedder, changed, (labels,)).T

    return run


def text_classification(
    encoder: TextEncoder,
    texts: Sequence[str],
    y: Int[Tensor, " n"],
    label_texts: Sequence[str],
    *,
    batch: int = 0,
    seed: int = 0,
) -> OverExamples:
    """Cross-entropy of classification without a head: the encoder embeds texts and labels.

    Args:
        encoder: the base.
        texts: examples.
        y: number of each one's label.
        label_texts: each label in words.
        batch: examples of a gradient step; 0 means all.
        seed: decides which.
    """
    run = _text_logits(encoder, texts, label_texts)
    return OverExamples(lambda d, rows: F.cross_entropy(run(d, rows), y[list(rows)]), len(texts), batch, seed)


def text_unlabelled(
    encoder: TextEncoder,
    texts: Sequence[str],
    label_texts: Sequence[str],
    *,
    kind: Literal["entropy", "trusted"] = "trusted",
    balance: float = 1.0,
    trusted: int = 4,
    batch: int = 0,
    seed: int = 0,
) -> OverExamples:
    """An objective at test time, from texts without labels.

    Args:
        encoder: the base.
        texts: examples.
        label_texts: each label in words.
        kind: ``entropy`` of the predictions, less ``balance`` times the entropy of their mean (otherwise one label for
            all is best); or ``trusted``: cross-entropy with the base's own labels for the texts it is surest of,
            equally many a label, as in the unsupervised objective of aTLAS (arXiv 2407.02880, section 5.2).
        balance: see ``kind``.
        trusted: texts a label that are trusted.
        batch: examples of a gradient step; 0 means all.
        seed: decides which.
    """
    run = _text_logits(encoder, texts, label_texts)
    if kind == "entropy":
        return OverExamples(lambda d, rows: _entropy(run(d, rows), balance), len(texts), batch, seed)
    with torch.no_grad():
        sure = torch.cat([run({}, range(n, min(n + 64, len(texts)))).softmax(-1) for n in range(0, len(texts), 64)])
    chosen = sure.topk(min(trusted, len(texts)), dim=0).indices.T.reshape(-1)  # labels * trusted
    y = torch.arange(len(label_texts)).repeat_interleave(len(chosen) // len(label_texts))
    kept = [str(texts[i]) for i in chosen.tolist()]
    return text_classification(encoder, kept, y, label_texts, batch=batch, seed=seed)


def _entropy(found: Float[Tensor, "n c"], balance: float) -> Float[Tensor, ""]:
    p = found.softmax(-1)
    mean = p.mean(0)
    each = -(p * found.log_softmax(-1)).sum(-1).mean()
    return each + balance * (mean * mean.clamp(min=1e-12).log()).sum()


def causal_lm(
    model: Any,
    input_ids: Int[Tensor, "n t"],
    labels: Int[Tensor, "n t"] | None = None,
    *,
    batch: int = 0,
    seed: int = 0,
) -> OverExamples:
    """Mean loss a token of a causal language model of transformers.

    Args:
        model: the base.
        input_ids: one sequence a row.
        labels: the tokens to predict, -100 where none is; by default all of ``input_ids``.
        batch: sequences of a gradient step; 0 means all.
        seed: decides which.
    """
    wanted = input_ids if labels is None else labels

    def loss(deltas: Mapping[str, Tensor], rows: Sequence[int]) -> Float[Tensor, ""]:
        chosen = list(rows)
        given = {"input_ids": input_ids[chosen], "attention_mask": torch.ones_like(input_ids[chosen])}
        found = functional_call(model, with_deltas(model, deltas), (), given).logits.float()
        return F.cross_entropy(found[:, :-1].flatten(0, 1), wanted[chosen][:, 1:].flatten(), ignore_index=-100)

    return OverExamples(loss, len(input_ids), batch, seed)


def classification(
    architecture: Architecture,
    base: Mapping[str, Tensor] | None,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    batch: int = 0,
    seed: int = 0,
) -> OverExamples:
    """Cross-entropy of a whole network.

    Args:
        architecture: of the network.
        base: tensors that the changes are added to; ``None`` where the changes are the whole values.
        x: inputs.
        y: labels.
        batch: examples of a gradient step; 0 means all.
        seed: decides which.
    """

    def loss(deltas: Mapping[str, Tensor], rows: Sequence[int]) -> Float[Tensor, ""]:
        tensors = dict(deltas) if base is None else {**base, **{k: base[k] + d for k, d in deltas.items()}}
        chosen = list(rows)
        return F.cross_entropy(logits(architecture, tensors, x[chosen]), y[chosen])

    return OverExamples(loss, len(y), batch, seed)
