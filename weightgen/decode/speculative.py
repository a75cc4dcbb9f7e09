"""Speculative decoding of a fusion: the expert drafts, the fused distribution verifies, and nothing is lost.

    model.generate(**inputs, custom_generate=speculate)

The expert's own forward passes are needed for the fusion anyway, so a draft costs nothing extra: the strong model
and the anchors then read all drafted tokens in one pass. A drafted token x is kept with probability min(1, p(x) / q(x))
for the fused distribution p and the draft q, and the first that is not is drawn anew from max(p - q, 0); the result has
the distribution p exactly (arXiv 2211.17192, theorem 1). Processors of logits act on both. A draft goes on
while its next token is likely to be kept, which the expert's confidence tells; that never looks at the token that is
drawn, so that the distribution stays what it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput

from weightgen.decode.cache import FusedCache
from weightgen.decode.model import WeakToStrong
from weightgen.decode.passes import Pass
from zoo.errors import UsageError

LONGEST = 16
MEMORY = 0.9
SPARE = 0.2
"""What a drafted token costs beside the draft step, in units of a verification."""
FIRST, BINS, HOPE = 0.7, 4, 0.01
"""Share of drafts that is expected to be kept at first, levels of confidence, and how skipped ones get new chances."""
PROCESSOR_BANDWIDTH, ACCELERATOR_BANDWIDTH = 2e10, 1e12
LAYER_SECONDS = 3e-4
"""Bytes a second, and the time to start a layer: only their order of size is of importance."""


@dataclass
class Drafting:
    """Decides how long to draft: as long as the next token is likely enough to be kept for what it costs.

    Attributes:
        cost: time of one draft step in units of one verification.
        rates: recent share of drafted tokens that were kept, by the expert's confidence in them.
        reach: probability that all of the present draft is kept.
        levels: confidence of each token of the present draft.
    """

    cost: float
    rates: list[float] = field(default_factory=lambda: [FIRST] * BINS)
    reach: float = 1.0
    levels: list[int] = field(default_factory=list)

    def wants(self, confidence: float) -> bool:
        """Whether to draft one token more, given the probability of the expert's favourite."""
        level = min(int(confidence * BINS), BINS - 1)
        chance = self.reach * self.rates[level]
        if len(self.levels) == LONGEST or chance < self.cost + SPARE:
            self.rates[level] += HOPE * (1 - self.rates[level])
            return False
        self.reach = chance
        self.levels.append(level)
        return True

    def learn(self, kept: int) -> None:
        """Take note of how much of the draft was kept: each such token is a success, the first dropped a failure."""
        for place, level in enumerate(self.levels[: kept + 1]):
            self.rates[level] = MEMORY * self.rates[level] + (1 - MEMORY) * (place < kept)
        self.reach, self.levels = 1.0, []


def accept(
    draft: Int[Tensor, " n"],
    q: Float[Tensor, "n v"],
    p: Float[Tensor, "m v"],
    sample: bool,
) -> Int[Tensor, " r"]:
    """Tokens that one round yields: the accepted draft, and one more from the fused distribution.

    Args:
        draft: drafted tokens.
        q: distribution that each was drawn from.
        p: fused distribution at each of them, and after the last.
        sample: draw tokens; otherwise take the most probable.

    Returns:
        At least one token; distributed as if each was drawn from ``p``.
    """
    if not sample:
        best = p.argmax(-1)
        kept = int((draft == best[: len(draft)]).long().cumprod(0).sum())
        return best[: kept + 1]
    place = torch.arange(len(draft), device=draft.device)
    ratio = p[place, draft] / q[place, draft]
    kept = int((torch.rand_like(ratio) < ratio).long().cumprod(0).sum())
    rest = p[kept]
    if kept < len(draft):
        rest = (rest - q[kept]).clamp(min=0)
        rest = p[kept] if rest.sum() <= 0 else rest
    return torch.cat([draft[:kept], torch.multinomial(rest, 1)])


def cost_of_draft(model: WeakToStrong) -> float:
    """Time of a draft step in units of that of a verification, estimated from sizes."""
    times = [_step_seconds(one) for one in model.passes]
    drafter = model.where[1][0]
    return times[drafter] / max(sum(times) - times[drafter], 1e-9)


def _step_seconds(one: Pass) -> float:
    """About what a step of a model takes: its weights are read once, and every layer has to be started."""
    bytes_read = sum(p.numel() * p.element_size() for p in one.model.parameters())
    layers = one.model.config.get_text_config(decoder=True).num_hidden_layers
    bandwidth = PROCESSOR_BANDWIDTH if one.model.device.type == "cpu" else ACCELERATOR_BANDWIDTH
    return bytes_read / bandwidth + layers * LAYER_SECONDS


class _Round:
    """State of one sequence: its tokens and the caches of all passes, which hold all tokens but the last."""

    def __init__(self, model: WeakToStrong, ids: Int[Tensor, "1 t"], kwargs: dict[str, Any]) -> None:
        self.model, self.ids = model, ids
        self.mask: Tensor | None = kwargs.get("attention_mask")
        self.small = (kwargs.get("small_input_ids"), kwargs.get("small_attention_mask"))
        self.cache: FusedCache = model.new_cache()
        self.drafter = model.where[1][0]
        self.part = model.where[1][1]
        self.others = [i for i in range(len(model.passes)) if i != self.drafter]
        if ids.shape[1] > 1:
            mask = None if self.mask is None else self.mask[:, :-1]
            small = [None if x is None else x[:, :-1] for x in self.small]
            model(
                ids[:, :-1], mask, past_key_values=self.cache, logits_to_keep=1,
                small_input_ids=small[0], small_attention_mask=small[1],
            )  # fmt: skip
            self.cache.alphas = None

    def mask_for(self, extra: int) -> Tensor | None:
        if self.mask is None:
            return None
        grown = self.ids.shape[1] + extra - self.mask.shape[1]
        return torch.cat([self.mask, self.mask.new_ones(1, grown)], dim=1)

    def step(
        self, longest: int, drafting: Drafting, processors: LogitsProcessorList, sample: bool
    ) -> tuple[Int[Tensor, " r"], int, Float[Tensor, "m v"], Float[Tensor, "m v"]]:
        """Draft, verify and accept once; the new tokens, how many were drafted, scores and raw logits."""
        model, cache = self.model, self.cache
        new, drafted, draft_q, drafts = self.ids[:, -1:], [], [], []
        for place in range(longest + 1):
            raw = model.run_pass(self.drafter, new, self.mask_for(place), cache, 1)
            drafts.append(raw)
            if place == longest:
                break
            logits = self._of_strong(raw[self.part])
            text = torch.cat([self.ids, *drafted], dim=1)
            logits = processors(text, logits.float())  # type: ignore[arg-type]
            q = logits.softmax(-1)
            if not drafting.wants(q.amax().item()):
                break
            token = torch.multinomial(q, 1) if sample else q.argmax(-1, keepdim=True)
            drafted.append(token)
            draft_q.append(q[0])
            new = token
        length = len(drafted)
        block = torch.cat([self.ids[:, -1:], *drafted], dim=1)
        raw_all: list[list[Tensor]] = [[] for _ in model.passes]
        for i in self.others:
            raw_all[i] = model.run_pass(i, block, self.mask_for(length), cache, length + 1)
        raw_all[self.drafter] = [torch.cat([d[part] for d in drafts], dim=1) for part in range(len(drafts[0]))]
        fused, _ = model.fuse_raw(raw_all, block, self.mask_for(length), cache, length + 1)
        scores = []
        for place in range(length + 1):
            text = torch.cat([self.ids, *drafted[:place]], dim=1)
            scores.append(processors(text, fused[:, place].clone())[0])  # type: ignore[arg-type]
        stacked = torch.stack(scores)
        p = stacked.softmax(-1)
        tokens = accept(block[0, 1:], torch.stack(draft_q) if draft_q else p[:0], p, sample)
        return tokens, length, stacked, fused[0]

    def _of_strong(self, logits: Float[Tensor, "1 1 v"]) -> Float[Tensor, "1 w"]:
        """Logits of the drafter over the strong model's tokens."""
        vocabulary = self.model.vocabulary
        common = vocabulary.of_small(0, logits[:, -1])
        if vocabulary.count == vocabulary.size:
            return common
        wide = common.new_full((1, vocabulary.size), -torch.inf)
        if vocabulary.strong_ids is None:
            wide[:, : vocabulary.count] = common
        else:
            wide[:, vocabulary.strong_ids.to(wide.device)] = common
        return wide


def speculate(
    model: WeakToStrong,
    input_ids: Int[Tensor, "b t"],
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    synced_gpus: bool = False,
    streamer: Any = None,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Decoding loop for ``generate(custom_generate=speculate)``; greedy or sampling, rows of a batch one by one.

    Returns:
        Token ids, or the usual output with ``past_key_values`` (of the last row) if it was asked for.

    Raises:
        UsageError: for beams.
    """
    if generation_config.num_beams not in (1, None):
        raise UsageError("speculative decoding has no beams", "use num_beams=1, or leave custom_generate out")
    rows, scores, logits, cache = [], (), (), None
    for row in range(input_ids.shape[0]):
        ids, kwargs = input_ids[row : row + 1], dict(model_kwargs)
        for key in ("attention_mask", "small_input_ids", "small_attention_mask"):
            kwargs[key] = None if kwargs.get(key) is None else kwargs[key][row : row + 1]
        state, drafting = _Round(model, ids, kwargs), Drafting(cost_of_draft(model))
        ended = False
        while not ended:
            room = (generation_config.max_length or 1 << 30) - state.ids.shape[1]
            tokens, drafted, step_scores, step_logits = state.step(
                room - 1, drafting, logits_processor, generation_config.do_sample
            )
            drafting.learn(len(tokens) - 1)
            kept = 0
            for token in tokens:
                state.ids = torch.cat([state.ids, token.view(1, 1)], dim=1)
                kept += 1
                if streamer is not None:
                    streamer.put(token.view(1).cpu())
                if bool(stopping_criteria(state.ids, None).all()):  # type: ignore[arg-type]
                    ended = True
                    break
            # The caches hold the last token and the draft; all but the accepted part of it goes.
            state.cache.crop(-(drafted + 1 - kept))
            scores += tuple(s[None] for s in step_scores[:kept])
            logits += tuple(s[None] for s in step_logits[:kept])
        rows.append(state.ids[0])
        cache = state.cache
    if streamer is not None:
        streamer.end()
    width = max(len(row) for row in rows)
    pad = generation_config.pad_token_id if generation_config.pad_token_id is not None else 0
    sequences = torch.stack([torch.nn.functional.pad(row, (0, width - len(row)), value=pad) for row in rows])
    if not generation_config.return_dict_in_generate:
        return sequences
    one = input_ids.shape[0] == 1
    return GenerateDecoderOnlyOutput(
        sequences=sequences,  # type: ignore[arg-type]
        scores=scores if one and generation_config.output_scores else None,  # type: ignore[arg-type]
        logits=logits if one and generation_config.output_logits else None,  # type: ignore[arg-type]
        past_key_values=cache,
    )
