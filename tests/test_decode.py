"""A fused model is a causal language model of transformers: every way of generating, exactly."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList, pipeline
from transformers.modeling_outputs import CausalLMOutputWithPast

from tests.decoding import gpt2, llama, save, tokenizer
from weightgen import WeakToStrong
from weightgen.decode.streaming import TextPieces
from weightgen.fusion import fuse

NEW = 8
GREEDY = {"max_new_tokens": NEW, "do_sample": False}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def models(request: pytest.FixtureRequest) -> tuple:
    make = llama if request.param == "llama" else gpt2
    return make(0), make(1), make(2)


@pytest.fixture(scope="module")
def fused(models: tuple) -> WeakToStrong:
    strong, expert, anchor = models
    return WeakToStrong(strong, [(expert, anchor)])


def prompts(rows: int = 2, length: int = 6) -> Tensor:
    return torch.randint(3, 290, (rows, length), generator=torch.Generator().manual_seed(1))


def by_hand(model: WeakToStrong, ids: Tensor, new: int = NEW) -> Tensor:
    """Greedy decoding without any cache."""
    for _ in range(new):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids


def same_until_end(one: Tensor, other: Tensor) -> bool:
    """Equal up to the first end token after the prompt; what follows is padding."""
    for a, b in zip(one.tolist(), other.tolist(), strict=True):
        stop = next((i + 1 for i, t in enumerate(a) if t == 0), len(a))
        if a[:stop] != b[:stop]:
            return False
    return True


@torch.no_grad()
def test_forward_returns_fused_logits_and_alphas(models: tuple, fused: WeakToStrong) -> None:
    ids = prompts()
    out = fused(ids, labels=ids)
    strong, expert, anchor = (model(ids).logits for model in models)
    logits, alphas = fuse("dynamic", strong, [expert], [anchor])
    assert isinstance(out, CausalLMOutputWithPast)
    assert torch.allclose(out.logits, logits)
    assert out.alphas.shape == (2, 6, 1)
    assert torch.equal(out.alphas, alphas)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert torch.isclose(out.loss, expected)
    assert torch.allclose(fused(ids, logits_to_keep=2).logits, logits[:, -2:], atol=1e-4)


@torch.no_grad()
def test_greedy_with_cache_static_cache_and_without(fused: WeakToStrong) -> None:
    ids = prompts()
    expected = by_hand(fused, ids)
    for options in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        found = fused.generate(ids, **GREEDY, **options)
        assert same_until_end(found, expected[:, : found.shape[1]])


@torch.no_grad()
def test_left_padding_changes_nothing(fused: WeakToStrong) -> None:
    ids = prompts()
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    padded = fused.generate(ids.masked_fill(mask == 0, 1), attention_mask=mask, **GREEDY)
    alone = fused.generate(ids[:1, 3:], **GREEDY)
    assert same_until_end(
        padded[:1, 6:], torch.nn.functional.pad(alone[:, 3:], (0, padded.shape[1] - alone.shape[1] - 3))
    )


@torch.no_grad()
def test_beams_reorder_all_caches(fused: WeakToStrong) -> None:
    ids = prompts()
    for options in ({}, {"num_return_sequences": 2}):
        with_cache = fused.generate(ids, num_beams=3, **GREEDY, **options)
        without = fused.generate(ids, num_beams=3, use_cache=False, **GREEDY, **options)
        assert torch.equal(with_cache, without)


@torch.no_grad()
def test_sampling_repeats_with_a_seed_and_follows_the_distribution(fused: WeakToStrong) -> None:
    ids = prompts(1).expand(400, -1)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(fused.generate(ids, max_new_tokens=1, do_sample=True, top_k=0)[:, -1])
    assert torch.equal(*draws)
    share = torch.bincount(draws[0], minlength=300) / 400
    assert (share - fused(ids[:1]).logits[0, -1].softmax(-1)).abs().sum() / 2 < 0.35


@torch.no_grad()
def test_streaming_stopping_and_processors(fused: WeakToStrong) -> None:
    ids = prompts(1)
    pieces: list[str] = []
    words = tokenizer()
    found = fused.generate(ids, streamer=TextPieces(words, pieces.append), **GREEDY)
    assert "".join(pieces) == words.decode(found[0, 6:], skip_special_tokens=True)

    class Length(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 9)

    assert fused.generate(ids, stopping_criteria=StoppingCriteriaList([Length()]), **GREEDY).shape[1] <= 9

    class Only(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([7]), 0.0)

    assert (fused.generate(ids, logits_processor=LogitsProcessorList([Only()]), **GREEDY)[:, 6:] == 7).all()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_assistant_model_changes_nothing(models: tuple, fused: WeakToStrong) -> None:
    ids = prompts(1)
    assisted = fused.generate(ids, assistant_model=models[1], **GREEDY)
    assert torch.equal(assisted, fused.generate(ids, **GREEDY))


@torch.no_grad()
def test_a_fused_model_can_assist_another(models: tuple, fused: WeakToStrong) -> None:
    ids = prompts(1)
    assisted = models[0].generate(ids, assistant_model=fused, **GREEDY)
    assert torch.equal(assisted, models[0].generate(ids, **GREEDY))


@torch.no_grad()
def test_pipeline(fused: WeakToStrong) -> None:
    words = tokenizer()
    run = pipeline("text-generation", model=fused, tokenizer=words)
    (answer,) = run("in the", max_new_tokens=4, do_sample=False)
    expected = fused.generate(**words("in the", return_tensors="pt", return_token_type_ids=False), max_new_tokens=4)
    assert answer["generated_text"] == words.decode(expected[0], skip_special_tokens=True)


@torch.no_grad()
def test_the_cache_remembers_the_alphas(fused: WeakToStrong) -> None:
    ids = prompts()
    out = fused.generate(ids, return_dict_in_generate=True, **GREEDY)
    steps = out.sequences.shape[1] - 6
    assert out.past_key_values.alphas.shape == (2, steps, 1)
    direct = fused(out.sequences).alphas[:, 5:-1]
    if not (out.sequences == 0).any():
        assert torch.allclose(out.past_key_values.alphas, direct, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers for it
@torch.no_grad()
def test_a_shared_lora_expert_is_the_merged_one() -> None:
    from peft import LoraConfig, get_peft_model

    strong, anchor = llama(0), llama(2)
    targets = ["q_proj", "v_proj", "down_proj"]
    adapted = get_peft_model(copy.deepcopy(anchor), LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    adapted.add_adapter("second", LoraConfig(r=2, target_modules=["k_proj"], init_lora_weights=False))
    merged = copy.deepcopy(adapted).merge_and_unload(adapter_names=["default"])
    shared = WeakToStrong(strong, [(adapted, None)])
    apart = WeakToStrong(strong, [(adapted, None)], shared=False)
    plain = WeakToStrong(strong, [(merged, anchor)])
    assert [len(m.passes) for m in (shared, apart, plain)] == [2, 3, 3]
    ids = prompts()
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    for model in (shared, apart):
        assert torch.allclose(model(ids, mask).logits, plain(ids, mask).logits, atol=2e-3)
        for options in (GREEDY, {**GREEDY, "num_beams": 3}):
            assert torch.equal(
                model.generate(ids, attention_mask=mask, **options), plain.generate(ids, attention_mask=mask, **options)
            )
    adapted.eval()
    assert torch.allclose(adapted(ids).logits, merged(ids).logits, atol=1e-4)  # outside of the fusion all is as before


@torch.no_grad()
def test_own_prompts_are_read_by_their_model_alone() -> None:
    strong, expert, anchor = llama(0), llama(1), llama(2)
    ids = prompts()
    front = [9, 8, 7]
    model = WeakToStrong(strong, [(expert, anchor)], prompts={"expert": front})
    ahead = torch.cat([torch.tensor(front).expand(2, -1), ids], dim=1)
    logits, _ = fuse("dynamic", strong(ids).logits, [expert(ahead).logits[:, 3:]], [anchor(ids).logits])
    assert torch.allclose(model(ids).logits, logits, atol=1e-3)
    found = model.generate(ids, **GREEDY)
    assert same_until_end(found, by_hand(model, ids)[:, : found.shape[1]])

    plain = WeakToStrong(strong, [(expert, anchor)])
    other = prompts(2, 4) + 1
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    out = plain.generate(
        ids,
        small_input_ids=other,
        small_attention_mask=mask,
        return_dict_in_generate=True,
        output_logits=True,
        **GREEDY,
    )
    text = out.sequences[1:2, 6:10]
    small = torch.cat([other[1:2], text], dim=1)
    big = torch.cat([ids[1:2], text], dim=1)
    expected, _ = fuse(
        "dynamic", strong(big).logits[:, -1], [expert(small).logits[:, -1]], [anchor(small).logits[:, -1]]
    )
    assert torch.allclose(out.logits[4][1:2], expected, atol=1e-3)


@torch.no_grad()
def test_joint_rule_keeps_its_evidence_in_the_cache() -> None:
    first, second, anchor = llama(1), llama(3), llama(2)
    model = WeakToStrong(llama(0), [(first, anchor), (second, anchor)], rule="joint")
    assert len(model.passes) == 4  # the anchor runs once
    ids = prompts()
    found = model.generate(ids, **GREEDY)
    assert same_until_end(found, by_hand(model, ids)[:, : found.shape[1]])
    cache = model.new_cache()
    model(ids, past_key_values=cache)
    log = [
        m(ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).sum((1, 2)) for m in (first, second, anchor)
    ]
    expected = torch.stack([log[0] - log[2], log[1] - log[2]], dim=-1)
    assert torch.allclose(cache.evidence[:, -1], expected, atol=1e-3)


@torch.no_grad()
def test_a_task_sum_is_anchor_plus_weighted_differences(tmp_path: Path) -> None:
    paths = [save(llama(seed), tmp_path / str(seed)) for seed in (0, 1, 2, 3)]
    model = WeakToStrong(paths[0], [({paths[1]: 0.5, paths[3]: 0.25}, paths[2])])
    tensors = [dict(llama(seed).named_parameters()) for seed in (1, 3, 2)]
    name = "model.layers.0.mlp.up_proj.weight"
    one, two, base = (t[name] for t in tensors)
    summed = dict(model.models[1].named_parameters())[name]
    assert torch.allclose(summed, base + 0.5 * (one - base) + 0.25 * (two - base), atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers for it
@torch.no_grad()
def test_saved_as_json_and_loaded(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    strong, anchor = save(llama(0), tmp_path / "strong"), save(llama(2), tmp_path / "anchor")
    get_peft_model(llama(2), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(
        tmp_path / "adapter"
    )
    model = WeakToStrong(
        strong, [(str(tmp_path / "adapter"), anchor)], rule="static", settings={"alpha": 0.5}, prompts={"small": "the "}
    )
    model.save_pretrained(tmp_path / "fusion")
    assert {p.name for p in (tmp_path / "fusion").iterdir()} == {"config.json", "generation_config.json"}
    again = WeakToStrong.from_pretrained(tmp_path / "fusion")
    ids = prompts()
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert len(again.passes) == 2
