"""Judge fusion rules on labelled answers: every model reads each text once, every rule is applied to its logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weightgen.decode.model import WeakToStrong
from weightgen.fusion import apply_rule, find_rule

BATCH = 16
Encoded = tuple[list[int], list[int]]
"""Tokens of a prompt and of its answer."""


@dataclass(frozen=True, eq=False)
class Score:
    """How a method does on each item.

    Attributes:
        log_probability: of the whole answer, summed over its tokens.
        hits: answer tokens that the method would have chosen itself.
        tokens: tokens of the answer.
        alphas: mean weight of each expert over the answer.
    """

    log_probability: Float[Tensor, " items"]
    hits: Float[Tensor, " items"]
    tokens: Float[Tensor, " items"]
    alphas: Float[Tensor, "items k"]

    @property
    def exact(self) -> Float[Tensor, " items"]:
        """1 where greedy decoding gives exactly the answer: each token is chosen given those before it."""
        return (self.hits == self.tokens).float()


def member_logits(
    model: WeakToStrong, ids: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Logits of the strong model, the experts and the anchors at every position, over their common tokens."""
    raw = [model.run_pass(i, ids, mask, None, ids.shape[1]) for i in range(len(model.passes))]
    strong, *small = (raw[i][part] for i, part in model.where)
    common = [model.vocabulary.of_small(i, x) for i, x in enumerate(small)]
    return model.vocabulary.of_strong(strong), common[: model.count], common[model.count :]


def _batches(items: Sequence[Encoded]) -> Iterator[list[int]]:
    order = sorted(range(len(items)), key=lambda i: len(items[i][0]) + len(items[i][1]))
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]


@torch.no_grad()
def score_items(
    model: WeakToStrong, items: Sequence[Encoded], methods: Mapping[str, tuple[str, Mapping[str, Any]] | str]
) -> dict[str, Score]:
    """Score answers under several methods.

    Args:
        model: holds the models; its own rule is not used.
        items: tokens of prompts and answers; prompts must not be empty.
        methods: by name, a rule with its settings, or one of ``"strong"``, ``"expert"`` and ``"anchor"`` (the first).

    Returns:
        One score a method.
    """
    count = len(items)
    sums = {n: [torch.zeros(count), torch.zeros(count), torch.zeros(count, model.count)] for n in methods}
    lengths = torch.tensor([float(len(answer)) for _, answer in items])
    found = {n: None if isinstance(m, str) else find_rule(m[0], m[1]) for n, m in methods.items()}
    for rows in _batches(items):
        width = max(len(items[i][0]) + len(items[i][1]) for i in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        wanted = torch.zeros(len(rows), width - 1, dtype=torch.bool)
        for row, i in enumerate(rows):
            prompt, answer = items[i]
            ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            mask[row, : len(prompt) + len(answer)] = 1
            wanted[row, len(prompt) - 1 : len(prompt) + len(answer) - 1] = True
        ids, mask = ids.to(model.device), mask.to(model.device)
        strong, experts, anchors = member_logits(model, ids, mask)
        places = model.vocabulary.common_index(ids)
        evidence = None
        if any(f is not None and f[0].needs_evidence for f in found.values()):
            from weightgen.decode.evidence import extend_evidence

            evidence = extend_evidence(experts, anchors, places, mask, None)[:, :-1][wanted]
        chosen = [x[:, :-1][wanted] for x in (strong, *experts, *anchors)]
        own, small_experts, small_anchors = chosen[0], chosen[1 : 1 + model.count], chosen[1 + model.count :]
        target = places[:, 1:][wanted]
        owner = torch.tensor(rows)[wanted.nonzero()[:, 0]]
        for name, method in methods.items():
            rule = found[name]
            if rule is None:
                logits = {"strong": own, "expert": small_experts[0], "anchor": small_anchors[0]}[str(method)].float()
                alphas = torch.zeros(len(own), model.count)
            else:
                logits, alphas = apply_rule(*rule, own, small_experts, small_anchors, evidence)
            value = logits.log_softmax(-1).gather(-1, target.clamp(min=0)[:, None]).squeeze(-1)
            value = value.masked_fill(target < 0, -torch.inf).clamp(min=-1e3)
            hit = (logits.argmax(-1) == target).float()
            for total, one in zip(sums[name], (value, hit, alphas), strict=True):
                total.index_add_(0, owner, one.float().cpu())
    return {n: Score(s[0], s[1], lengths, s[2] / lengths[:, None]) for n, s in sums.items()}
