"""What the text so far says for each expert: its log-probability minus that of the anchor, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from weightgen.decode.cache import FusedCache


def log_probability(logits: Float[Tensor, "b t v"], tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Log-probability of tokens under the logits of the positions before them; 0 where the token is -1."""
    chosen = logits.gather(-1, tokens.clamp(min=0)[..., None]).squeeze(-1).float()
    value = chosen - torch.stack([row.float().logsumexp(-1) for row in logits])
    return value.masked_fill(tokens < 0, 0.0)


def extend_evidence(
    experts: Sequence[Float[Tensor, "b t v"]],
    anchors: Sequence[Float[Tensor, "b t v"]],
    tokens: Int[Tensor, "b s"],
    mask: Int[Tensor, "b m"] | None,
    cache: FusedCache | None,
) -> Float[Tensor, "b s k"]:
    """Evidence of the text up to each new token.

    Args:
        experts: logits of each expert at the new tokens; fewer positions if it read a prompt of its own.
        anchors: logits of each anchor.
        tokens: the new tokens, as places among the common ones, -1 for others.
        mask: attention mask over all tokens; the first real token of a row says nothing.
        cache: holds the logits before the new tokens and the evidence so far; both are brought up to date.

    Returns:
        Sum of log-ratios of the tokens up to and with each position.
    """
    rows, length = tokens.shape
    small = [*experts, *anchors]
    if mask is not None:
        real = mask[:, -length:].bool()
        before = torch.cat([mask[:, :-length][:, -1:].bool(), real], dim=1)[:, :length]
        before = before if before.shape[1] == length else torch.cat([real.new_zeros(rows, 1), real[:, :-1]], dim=1)
        tokens = tokens.masked_fill(~(real & before), -1)
    shift = []
    for place, logits in enumerate(small):
        known = logits[:, -length:]
        first = cache.last[place][:, -1:] if cache is not None and cache.last else None
        previous = known[:, :-1] if first is None else torch.cat([first.to(known.dtype), known[:, :-1]], dim=1)
        values = log_probability(previous, tokens[:, -previous.shape[1] :]) if previous.shape[1] else None
        padded = torch.zeros(rows, length, device=tokens.device)
        if values is not None:
            padded[:, length - values.shape[1] :] = values
        shift.append(padded)
    count = len(experts)
    steps = torch.stack([shift[t] - shift[count + t] for t in range(count)], dim=-1)
    total = steps.nan_to_num(neginf=-1e4, posinf=1e4).cumsum(1)
    if cache is not None:
        if cache.evidence is not None:
            total = total + cache.evidence[:, -1:]
        cache.evidence = total if cache.evidence is None else torch.cat([cache.evidence, total], dim=1)
        cache.last = [logits[:, -length:] for logits in small]
    return total
