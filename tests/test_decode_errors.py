"""What goes wrong with weak-to-strong decoding is said with cause, value and remedy; vocabularies that differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.decoding import SIZE, llama, save, tokenizer
from weightgen import WeakToStrong
from weightgen.decode.loading import explain_memory
from weightgen.decode.memory import available, check_memory, estimate
from weightgen.fusion import fuse
from weightgen.fusion.vocabulary import share_vocabulary
from zoo.errors import BadArtefact, UsageError, WeightgenError


@torch.no_grad()
def test_padded_vocabularies_share_their_common_tokens() -> None:
    strong, expert, anchor = llama(0, size=310), llama(1, size=300), llama(2, size=304)
    model = WeakToStrong(strong, [(expert, anchor)])
    ids = torch.randint(3, 290, (2, 5))
    out = model(ids).logits
    base = strong(ids).logits
    common, _ = fuse("dynamic", base[..., :300], [expert(ids).logits], [anchor(ids).logits[..., :300]])
    assert out.shape[-1] == 310
    probability, before = out.softmax(-1), base.softmax(-1)
    assert torch.allclose(probability[..., 300:], before[..., 300:], atol=1e-5)
    share = before[..., :300].sum(-1, keepdim=True)
    assert torch.allclose(probability[..., :300], common.softmax(-1) * share, atol=1e-5)
    assert model.generate(ids, max_new_tokens=3).shape[1] <= 8
    with pytest.raises(UsageError, match="token 305 does not exist in small model 0"):
        model(torch.tensor([[3, 305]]))


@torch.no_grad()
def test_the_same_tokens_under_other_ids_are_mapped_by_strings() -> None:
    words, other = tokenizer(), tokenizer(order=-1)
    table = torch.arange(SIZE)
    for token, index in words.get_vocab().items():
        table[index] = other.get_vocab()[token]
    expert, anchor = llama(1), llama(2)
    renamed = [llama(1), llama(2)]
    for model in renamed:  # the same functions, with rows of embeddings and head in the other order
        for layer in (model.model.embed_tokens, model.lm_head):
            weight = layer.weight.clone()
            layer.weight[table] = weight
    ids = torch.tensor([words.encode("the thing in the bin")])
    plain = WeakToStrong(llama(0), [(expert, anchor)], tokenizer=words)
    mapped = WeakToStrong(llama(0), [tuple(renamed)], tokenizer=words, small_tokenizers=[other])
    count = len(words.get_vocab())
    assert mapped.vocabulary.count == count
    known = plain(ids).logits[..., :count].argmax(-1)
    found = mapped(ids).logits[..., :count].argmax(-1)
    assert (
        known == found
    ).float().mean() > 0.8  # the 40 ids without a token are fused in one and left alone in the other


def test_other_tokenizers_are_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="differ in 1 tokens, for example 'bin'"):
        share_vocabulary(SIZE, [SIZE], tokenizer(), [tokenizer(extra=("bin",))])
    assert share_vocabulary(SIZE, [SIZE], tokenizer(), [tokenizer()]).strong_ids is None


@torch.no_grad()
def test_ends_of_text_are_united() -> None:
    model = WeakToStrong(llama(0, eos_token_id=5), [(llama(1, eos_token_id=[0, 7]), llama(2))])
    assert sorted(model.generation_config.eos_token_id) == [0, 5, 7]


@torch.no_grad()
@pytest.mark.parametrize(("place", "name"), [(0, "strong model"), (1, "expert 0"), (2, "anchor 0")])
def test_a_model_that_returns_no_numbers_is_named(place: int, name: str) -> None:
    models = [llama(0), llama(1), llama(2)]
    models[place].lm_head.weight[4] = torch.nan
    with pytest.raises(WeightgenError, match=f"the {name} returned logits that are no numbers"):
        WeakToStrong(models[0], [(models[1], models[2])])(torch.tensor([[3, 5]]))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_fused_in_float32(dtype: torch.dtype) -> None:
    model = WeakToStrong(llama(0).to(dtype), [(llama(1).to(dtype), llama(2).to(dtype))])
    out = model(torch.tensor([[3, 5, 9]]))
    assert out.logits.dtype == torch.float32
    assert torch.isfinite(out.logits).all()


def test_wrong_arguments() -> None:
    strong, expert, anchor = llama(0), llama(1), llama(2)
    for experts, message in (
        ([], "list of experts is empty"),
        ([expert], "is no pair"),
        ([(expert, None)], "no anchor"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            WeakToStrong(strong, experts)
        assert error.value.remedy
    with pytest.raises(UsageError, match=r"alpha = 50\.0"):
        WeakToStrong(strong, [(expert, anchor)], rule="static", settings={"alpha": 50.0})
    with pytest.raises(UsageError, match="no prompt for 'weak'"):
        WeakToStrong(strong, [(expert, anchor)], prompts={"weak": [3]})
    with pytest.raises(UsageError, match="strong model was given as a loaded model"):
        WeakToStrong(strong, [(expert, anchor)]).save_pretrained("nowhere")
    with pytest.raises(UsageError, match="cache is a DynamicCache"):
        WeakToStrong(strong, [(expert, anchor)])(
            torch.tensor([[3]]), past_key_values=strong(torch.tensor([[3]]), use_cache=True).past_key_values
        )


def test_wrong_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadArtefact, match="is no causal language model"):
        WeakToStrong(str(tmp_path / "empty"), [(llama(1), llama(2))])
    with pytest.raises(BadArtefact, match=r"the strong model .* there is no such folder"):
        estimate(tmp_path / "lost", [(tmp_path / "empty", tmp_path / "empty")])
    with pytest.raises(BadArtefact, match="holds no fusion"):
        WeakToStrong.from_pretrained(tmp_path / "empty")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers for it
def test_an_adapter_for_another_base(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], base_model_name_or_path="org/wide")
    get_peft_model(llama(2, width=32), config).save_pretrained(tmp_path / "adapter")
    settings = tmp_path / "adapter" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "org/wide"}))
    with pytest.raises(
        UsageError, match=r"size mismatch, .*q_proj.* is \[2, 32\] in the adapter and \[2, 16\] on the anchor"
    ) as error:
        WeakToStrong(llama(0), [(str(tmp_path / "adapter"), llama(2))])
    assert "org/wide" in error.value.remedy


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers for it
def test_an_adapter_for_another_base_of_the_same_shapes(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base, copy, other = (tmp_path / name for name in ("base", "copy", "other"))
    llama(2).save_pretrained(base)
    llama(2).bfloat16().save_pretrained(copy)
    llama(3).save_pretrained(other)
    config = LoraConfig(r=2, target_modules=["q_proj"])
    get_peft_model(LlamaForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    settings = tmp_path / "adapter" / "adapter_config.json"
    assert json.loads(settings.read_text())["base_model_name_or_path"] == str(base)
    WeakToStrong(llama(0), [(str(tmp_path / "adapter"), str(copy))])  # the same model, elsewhere and rounded
    with pytest.raises(
        UsageError, match=r"was trained on .*base, whose model.layers.1.* is not that of .*other"
    ) as error:
        WeakToStrong(llama(0), [(str(tmp_path / "adapter"), str(other))])
    assert error.value.remedy.endswith(str(base))
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "org/elsewhere"}))
    with pytest.warns(UserWarning, match=r"was trained on org/elsewhere and the anchor is .*other"):
        WeakToStrong(llama(0), [(str(tmp_path / "adapter"), str(other))])


def test_free_memory_counts_what_the_kernel_can_give_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    table = tmp_path / "meminfo"
    table.write_text("MemTotal:  4000000 kB\nMemFree:  1000 kB\nMemAvailable:  2000000 kB\n")
    assert available(table) == pytest.approx(2.048)
    assert available(tmp_path / "none") > 0


def test_memory_is_estimated_before_loading_and_running_out_is_explained(tmp_path: Path) -> None:
    strong, small = save(llama(0, 32), tmp_path / "strong"), save(llama(1), tmp_path / "small")
    sizes = estimate(strong, [(small, small)], tokens=10, rows=2)
    assert sizes["strong"] == pytest.approx(4 * sum(p.numel() for p in llama(0, 32).parameters()) / 1e9)
    assert sizes["total"] == pytest.approx(sum(v for k, v in sizes.items() if k != "total"))
    # keys and values, 2 layers, 2 heads, float32, 10 tokens, 2 rows; heads are 8 and 4 wide
    assert sizes["caches"] == pytest.approx(2 * 2 * 2 * (8 + 4) * 4 * 10 * 2 / 1e9)
    with pytest.raises(WeightgenError, match="needs about 1000000000"):
        check_memory({"strong": 1e9, "total": 1e9})
    with pytest.raises(WeightgenError, match="most of it is caches") as long:
        check_memory({"strong": 1.0, "caches": 1e9, "total": 1e9 + 1})
    assert "shorter texts" in long.value.remedy
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("not enough memory: 5")):
        with pytest.raises(WeightgenError, match="out of memory while loading") as found, explain_memory("loading"):
            raise error
        assert "doctor fusion" in found.value.remedy
