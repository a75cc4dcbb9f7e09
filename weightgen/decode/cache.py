"""One cache for all models of a fusion; generation sees a single sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache


@dataclass(frozen=True, eq=False)
class OwnPrompt:
    """What a model has read instead of, or in front of, the visible tokens.

    Attributes:
        mask: attention mask of its own tokens, one row a sequence.
        replaced: how many of the first visible tokens they stand for; 0 if they only stand in front.
    """

    mask: Int[Tensor, "b n"]
    replaced: int = 0


class FusedCache(Cache):
    """Caches of all forward passes of a fusion, with what the fusion itself remembers.

    The length, and what is cropped, are in visible tokens: those of ``input_ids``. A pass that holds several models in
    one batch (adapters on one base) keeps one row a sequence and model.

    Attributes:
        caches: cache of each pass.
        parts: models in the batch of each pass.
        own: own prompt of each pass.
        seen: visible tokens so far.
        alphas: weight of each expert at every position whose logits were asked for; ``None`` before the first.
        evidence: log-probability of expert minus anchor of the text up to each position; ``None`` if no rule asks.
        last: logits of the small models at the positions of the last call, to judge the token that follows.
    """

    def __init__(self, caches: Sequence[Cache], parts: Sequence[int]) -> None:
        self.caches = tuple(caches)
        self.parts = tuple(parts)
        self.own: list[OwnPrompt | None] = [None] * len(self.caches)
        self.seen = 0
        self.alphas: Float[Tensor, "b t k"] | None = None
        self.evidence: Float[Tensor, "b t k"] | None = None
        self.last: list[Float[Tensor, "b n v"]] = []
        self.offloading = False
        self.layer_class_to_replicate = None

    @property
    def layers(self) -> list:  # type: ignore[override]
        """Layers of all caches; what transformers does to every layer reaches all models."""
        return [layer for cache in self.caches for layer in cache.layers]

    @property
    def is_compileable(self) -> bool:
        """False: sub-models are compiled one by one."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of visible tokens."""
        return self.seen

    def __len__(self) -> int:
        return len(self.layers)

    def _rows(self, index: Tensor, part_count: int, rows: int) -> Tensor:
        return torch.cat([index + part * rows for part in range(part_count)])

    def _select(self, index: Int[Tensor, " n"]) -> None:
        for place, own in enumerate(self.own):
            if own is not None:
                self.own[place] = replace(own, mask=own.mask[index.to(own.mask.device)])
        self.alphas = None if self.alphas is None else self.alphas[index.to(self.alphas.device)]
        self.evidence = None if self.evidence is None else self.evidence[index.to(self.evidence.device)]
        self.last = [logits[index.to(logits.device)] for logits in self.last]

    def _batch(self, cache: Cache, part_count: int) -> int:
        keys = next((k for one in cache.layers if (k := getattr(one, "keys", None)) is not None), None)
        return 0 if keys is None else keys.shape[0] // part_count

    def reorder_cache(self, beam_idx: Int[Tensor, " n"]) -> None:
        """Reorder the rows of all caches, for beam search."""
        for cache, count in zip(self.caches, self.parts, strict=True):
            cache.reorder_cache(self._rows(beam_idx, count, self._batch(cache, count)))  # type: ignore[arg-type]
        self._select(beam_idx)

    def batch_select_indices(self, indices: Int[Tensor, " n"]) -> None:
        """Keep some rows."""
        for cache, count in zip(self.caches, self.parts, strict=True):
            cache.batch_select_indices(self._rows(indices, count, self._batch(cache, count)))
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row; the models of a shared batch stay in their parts."""
        rows = max((self._batch(c, n) for c, n in zip(self.caches, self.parts, strict=True)), default=0)
        for cache in self.caches:
            cache.batch_repeat_interleave(repeats)
        if rows:
            self._select(torch.arange(rows).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens: a negative number says how many, a positive one how many stay."""
        removed = -tokens_to_remove if tokens_to_remove <= 0 else max(self.seen - tokens_to_remove, 0)
        self.crop_each([removed] * len(self.caches))
        self.forget(removed)

    def crop_each(self, removed: Sequence[int]) -> None:
        """Forget a number of last tokens in each cache, whatever the number of visible tokens."""
        for cache, count in zip(self.caches, removed, strict=True):
            if count or hasattr(cache, "is_croppable"):
                cache.crop(-count)

    def forget(self, removed: int) -> None:
        """Take back what the fusion remembers of the last visible tokens, not the caches."""
        self.seen -= removed
        if removed:
            self.alphas = None if self.alphas is None else self.alphas[:, :-removed]
            self.evidence = None if self.evidence is None else self.evidence[:, :-removed]
            self.last = [logits[:, :-removed] for logits in self.last]

    def reset(self) -> None:
        """Empty all caches."""
        for cache in self.caches:
            cache.reset()
        self.seen, self.alphas, self.evidence, self.last = 0, None, None, []
        self.own = [None] * len(self.caches)
