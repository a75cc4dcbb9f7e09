"""Which tokens the models of a fusion share, and which id each model gives them.

Models of one family differ in padding and in a few added tokens; then the common tokens are fused and the rest keeps
the strong model's share of probability. Tokenizers with other ids are matched by strings, if they cut every text into
the same pieces; others are refused, because a difference of logits over different pieces of text means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES = (
    "The quick brown fox jumps over the lazy dog, doesn't it?",
    "def area(r):\n\treturn 3.14159 * r ** 2  # 12,345.678\n\n",
    "Zwölf Boxkämpfer 東京 🙂 naïve café — “quoted” […] 007 1000000",
)


@dataclass(frozen=True, eq=False)
class SharedVocabulary:
    """The common tokens of a strong model and of its small models.

    Attributes:
        size: logits of the strong model.
        count: number of common tokens.
        strong_ids: their ids in the strong model; ``None``: the first ``count``.
        small_ids: their ids in each small model; ``None``: the same as in the strong model.
        inputs: for each small model, its id of every token of the strong model, -1 if it has none; ``None``: the same.
        limits: number of embeddings of each small model.
    """

    size: int
    count: int
    strong_ids: Int[Tensor, " n"] | None
    small_ids: tuple[Int[Tensor, " n"] | None, ...]
    inputs: tuple[Int[Tensor, " size"] | None, ...]
    limits: tuple[int, ...]

    def of_strong(self, logits: Float[Tensor, "*b v"]) -> Float[Tensor, "*b n"]:
        """Logits of the strong model over the common tokens."""
        return self._pick(logits, self.strong_ids)

    def of_small(self, model: int, logits: Float[Tensor, "*b v"]) -> Float[Tensor, "*b n"]:
        """Logits of a small model over the common tokens, in the strong model's order."""
        return self._pick(logits, self.small_ids[model])

    def _pick(self, logits: Tensor, ids: Tensor | None) -> Tensor:
        if ids is not None:
            return logits[..., ids.to(logits.device)]
        return logits if logits.shape[-1] == self.count else logits[..., : self.count]

    def merge(self, strong: Float[Tensor, "*b v"], fused: Float[Tensor, "*b n"]) -> Float[Tensor, "*b v"]:
        """Fused logits of all tokens; tokens that are not common keep their probability."""
        if self.count == self.size:
            return fused
        merged = strong.to(fused.dtype, copy=True)
        mass = self.of_strong(merged).logsumexp(-1, keepdim=True)
        block = fused.log_softmax(-1) + mass
        if self.strong_ids is None:
            merged[..., : self.count] = block
        else:
            merged[..., self.strong_ids.to(merged.device)] = block
        return merged

    def to_small(self, model: int, ids: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
        """Ids of a small model for tokens of the strong one.

        Raises:
            UsageError: if a token does not exist in the small model.
        """
        table = self.inputs[model]
        own = ids if table is None else table.to(ids.device)[ids]
        if table is not None or self.limits[model] < self.size:
            wrong = (own < 0) | (own >= self.limits[model])
            if bool(wrong.any().item()):
                raise UsageError(
                    f"token {int(ids[wrong][0])} does not exist in small model {model}",
                    "leave special tokens of the strong model out of the prompt, or give small_input_ids",
                )
        return own

    def common_index(self, ids: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
        """Place of tokens among the common ones, -1 for others."""
        if self.strong_ids is None:
            return torch.where(ids < self.count, ids, -1)
        table = torch.full((self.size,), -1, dtype=torch.long, device=ids.device)
        table[self.strong_ids.to(ids.device)] = torch.arange(self.count, device=ids.device)
        return table[ids]


def share_vocabulary(
    size: int,
    small_sizes: Sequence[int],
    tokenizer: PreTrainedTokenizerBase | None = None,
    small_tokenizers: Sequence[PreTrainedTokenizerBase | None] = (),
) -> SharedVocabulary:
    """Find the tokens that all models share.

    Args:
        size: logits of the strong model.
        small_sizes: logits of each small model.
        tokenizer: tokenizer of the strong model; without one, equal ids are taken for equal tokens.
        small_tokenizers: tokenizer of each small model.

    Returns:
        The common tokens.

    Raises:
        UsageError: if two tokenizers cut texts differently, or no token is common.
    """
    given = [*small_tokenizers, *[None] * (len(small_sizes) - len(small_tokenizers))]
    tables = [None if tokenizer is None or other is None else _table(tokenizer, other, size) for other in given]
    if all(table is None for table in tables):
        count = min(size, *small_sizes) if small_sizes else size
        nothing = (None,) * len(small_sizes)
        return SharedVocabulary(size, count, None, nothing, nothing, tuple(small_sizes))
    full = [torch.arange(size) if table is None else table for table in tables]
    common = torch.ones(size, dtype=torch.bool)
    for table, limit in zip(full, small_sizes, strict=True):
        common &= (table >= 0) & (table < limit)
    ids = common.nonzero().squeeze(-1)
    if not len(ids):
        raise UsageError("the models share no token", "choose an expert with the tokenizer of the strong model")
    return SharedVocabulary(size, len(ids), ids, tuple(table[ids] for table in full), tuple(tables), tuple(small_sizes))


def _table(tokenizer: Any, other: Any, size: int) -> Tensor | None:
    """Id in ``other`` of every token of ``tokenizer``, -1 where it has none; ``None`` if all ids are equal."""
    own, theirs = tokenizer.get_vocab(), other.get_vocab()
    if own == theirs:
        return None
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    special |= set(other.all_special_tokens) | set(other.get_added_vocab())
    missing = sorted(set(own) - set(theirs) - special)
    further = sorted(set(theirs) - set(own) - special)
    if missing or further:
        example = (missing or further)[0]
        raise UsageError(
            f"the tokenizers differ in {len(missing) + len(further)} tokens, for example {example!r}",
            "choose an expert with the tokenizer of the strong model",
        )
    for probe in PROBES:
        pieces = [t.convert_ids_to_tokens(t.encode(probe, add_special_tokens=False)) for t in (tokenizer, other)]
        if pieces[0] != pieces[1]:
            raise UsageError(
                f"the tokenizers cut {probe[:20]!r} into different pieces",
                "choose an expert with the tokenizer of the strong model",
            )
    table = torch.full((size,), -1, dtype=torch.long)
    for token, index in own.items():
        if token in theirs and index < size:
            table[index] = theirs[token]
    return table
