"""Speculative decoding loses nothing, and drafts as far as it pays."""

from __future__ import annotations

import pytest
import torch

from tests.decoding import llama
from weightgen import WeakToStrong
from weightgen.decode.speculative import LONGEST, Drafting, accept, speculate
from zoo.errors import UsageError


def test_accepted_tokens_have_the_fused_distribution() -> None:
    torch.manual_seed(0)
    p = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
    q = torch.tensor([[0.2, 0.2, 0.2, 0.4], [0.4, 0.3, 0.2, 0.1]])
    first, second = torch.zeros(4), torch.zeros(4)
    draws = 4000
    for _ in range(draws):
        tokens = accept(torch.multinomial(q, 1).squeeze(1), q, p, sample=True)
        first[tokens[0]] += 1
        if len(tokens) > 1:
            second[tokens[1]] += 1
    assert (first / draws - p[0]).abs().max() < 0.03
    assert first[3] == 0
    assert (second / second.sum() - p[1]).abs().max() < 0.04


def test_greedy_takes_the_longest_agreeing_draft() -> None:
    p = torch.eye(4)[[1, 2, 3]]
    q = torch.full((2, 4), 0.25)
    assert accept(torch.tensor([1, 2]), q, p, sample=False).tolist() == [1, 2, 3]
    assert accept(torch.tensor([1, 0]), q, p, sample=False).tolist() == [1, 2]
    assert accept(torch.tensor([0, 2]), q, p, sample=False).tolist() == [1]


@torch.no_grad()
@pytest.mark.parametrize("rule", ["dynamic", "joint"])
def test_greedy_text_scores_and_alphas_are_those_of_plain_decoding(rule: str) -> None:
    model = WeakToStrong(llama(0), [(llama(1), llama(2))], rule=rule)
    ids = torch.randint(3, 290, (2, 6))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    plain = model.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False)
    quick = model.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False, custom_generate=speculate)
    for one, other in zip(plain.tolist(), quick.tolist(), strict=True):
        stop = next((i + 1 for i, t in enumerate(one) if t == 0), len(one))
        assert one[:stop] == other[:stop]
    options = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    slow = model.generate(ids[1:], **options)
    fast = model.generate(ids[1:], custom_generate=speculate, **options)
    assert torch.equal(slow.sequences, fast.sequences)
    assert torch.allclose(torch.cat(slow.scores), torch.cat(fast.scores), atol=5e-3)
    assert torch.allclose(slow.past_key_values.alphas, fast.past_key_values.alphas, atol=5e-3)
    assert slow.past_key_values.seen == fast.past_key_values.seen


@torch.no_grad()
def test_sampled_text_has_the_distribution_of_plain_sampling() -> None:
    size = 12
    model = WeakToStrong(llama(0, size=size), [(llama(1, size=size), llama(2, size=size))])
    model.generation_config.eos_token_id = None
    ids = torch.tensor([[3, 4, 5]])
    torch.manual_seed(0)
    drawn = model.generate(
        ids.expand(80, -1), max_new_tokens=2, do_sample=True, top_k=0, temperature=3.0, custom_generate=speculate
    )
    first = (model(ids).logits[0, -1] / 3).softmax(-1)
    following = [(model(torch.cat([ids, torch.tensor([[t]])], 1)).logits[0, -1] / 3).softmax(-1) for t in range(size)]
    second = sum(first[t] * following[t] for t in range(size))
    for place, expected in ((3, first), (4, second)):
        share = torch.bincount(drawn[:, place], minlength=size) / len(drawn)
        chi = ((share - expected).square() / expected).sum() * len(drawn)
        assert chi < 35  # 11 degrees of freedom: below 35 in 99.97 % of samples


def drafted(drafting: Drafting, confidence: float) -> int:
    length = 0
    while drafting.wants(confidence):
        length += 1
    drafting.reach, drafting.levels = 1.0, []
    return length


def test_drafts_grow_with_acceptance_and_shrink_with_cost() -> None:
    assert drafted(Drafting(0.02), 0.9) > drafted(Drafting(0.3), 0.9) > drafted(Drafting(0.7), 0.9) == 0
    drafting = Drafting(0.1)
    for kept in (True, False):
        for _ in range(60):
            drafting.wants(0.9 if kept else 0.3)
            drafting.learn(int(kept))
    assert drafted(drafting, 0.9) == LONGEST  # tokens of this confidence were always kept
    assert drafted(drafting, 0.3) == 0  # those never
    assert max(drafted(drafting, 0.3) for _ in range(200)) > 0  # skipped ones get a new chance


@torch.no_grad()
def test_beams_are_refused() -> None:
    model = WeakToStrong(llama(0), [(llama(1), llama(2))])
    with pytest.raises(UsageError, match="no beams"):
        model.generate(torch.tensor([[3, 4]]), num_beams=2, max_new_tokens=3, custom_generate=speculate)
