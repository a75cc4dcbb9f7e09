"""Adapters of every method: PEFT loads what a zoo gives back and computes the same logits."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.zoo.samples import same, write_adapter
from zoo import kinds
from zoo.errors import BadArtefact
from zoo.kinds import peft as kind
from zoo.zoo import Zoo

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft
    import transformers

ATTENTION = ["q_proj", "v_proj"]
BLOCKS = peft.BdLoraConfig(target_modules_bd_a=["q_proj"], target_modules_bd_b=["v_proj"], nblocks=2)
METHODS: dict[str, Callable[[], peft.PeftConfig]] = {
    "ia3": lambda: peft.IA3Config(target_modules=[*ATTENTION, "down_proj"], feedforward_modules=["down_proj"]),
    "loha": lambda: peft.LoHaConfig(r=2, target_modules=ATTENTION),
    "lokr": lambda: peft.LoKrConfig(r=2, target_modules=ATTENTION, decompose_both=True),
    "adalora": lambda: peft.AdaLoraConfig(
        target_r=2, init_r=3, total_step=9, tinit=1, tfinal=1, target_modules=ATTENTION
    ),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"]),
    "oft": lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=ATTENTION),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=ATTENTION),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=10, target_modules=ATTENTION),
    "ln_tuning": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "p_tuning": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
    "hra": lambda: peft.HRAConfig(r=2, target_modules=ATTENTION),
    "vblora": lambda: peft.VBLoRAConfig(r=2, num_vectors=8, vector_length=8, topk=2, target_modules=ATTENTION),
    "shira": lambda: peft.ShiraConfig(r=1, target_modules=ATTENTION),
    "trainable_tokens": lambda: peft.TrainableTokensConfig(token_indices=[1, 5], target_modules=["embed_tokens"]),
    "lora_saved_head": lambda: peft.LoraConfig(r=2, target_modules=ATTENTION, modules_to_save=["lm_head"]),
    "lora_bias": lambda: peft.LoraConfig(r=2, target_modules=ATTENTION, lora_bias=True, bias="lora_only"),
    "lora_tokens": lambda: peft.LoraConfig(r=2, target_modules=ATTENTION, trainable_token_indices=[1, 2]),
    "lora_embedding": lambda: peft.LoraConfig(r=2, target_modules=["embed_tokens", "lm_head"]),
    "lora_parameter": lambda: peft.LoraConfig(r=2, target_modules=[], target_parameters=["q_proj.weight"]),
    "lora_blocks": lambda: peft.LoraConfig(r=4, target_modules=ATTENTION, use_bdlora=BLOCKS),
    "lora_dora": lambda: peft.LoraConfig(r=2, target_modules=ATTENTION, use_dora=True, alpha_pattern={"v_proj": 9}),
}


def tiny_llama() -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2, "attention_bias": True}
    config = transformers.LlamaConfig(**sizes, **heads, tie_word_embeddings=False)
    return transformers.LlamaForCausalLM(config).eval()


def adapted(method: str) -> peft.PeftModel:
    model = peft.get_peft_model(tiny_llama(), METHODS[method]())  # pyright: ignore[reportArgumentType]
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                scale = 0.05 if "oft" in name or "hra" in name else 0.3
                parameter += scale * torch.randn(parameter.shape, generator=random)
    return model.eval()  # pyright: ignore[reportReturnType]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(8)[None]).logits[:, -8:]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
def test_peft_loads_what_is_given_back(tmp_path: Path, method: str) -> None:
    model = adapted(method)
    expected = logits(model)
    assert not torch.allclose(expected, logits(tiny_llama()), atol=1e-3)
    old = method in ("ia3", "prompt", "lora_saved_head")
    model.save_pretrained(tmp_path / "in", safe_serialization=not old)
    found = kinds.read(tmp_path / "in")
    assert found.weights.layout.kind == ("lora" if method.startswith("lora_") else "peft")
    with Zoo.open(tmp_path / "zoo", create=True) as zoo:
        record, _ = zoo.add(found.weights, extra_files=found.extra_files)
        zoo.export(record.id, tmp_path / "out")
    again = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path / "out").eval()
    assert torch.equal(logits(again), expected)
    names = ["adapter_config.json", "README.md"] + ([] if old else ["adapter_model.safetensors"])
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "method", "expected"),
    [
        ("base_model.model.layer.0.q.ia3_l", "IA3", ("base_model.model.layer.0.q", "ia3_l")),
        ("m.q.hada_w1_a", "LOHA", ("m.q", "hada_w1_a")),
        ("m.q.lora_E", "ADALORA", ("m.q", "lora_E")),
        ("m.q.ranknum", "ADALORA", ("m.q", "ranknum")),
        ("m.q.oft_R.weight", "OFT", ("m.q", "oft_R")),
        ("base_model.vera_A", "VERA", ("base_model", "vera_A")),
        ("m.q.vera_lambda_b", "VERA", ("m.q", "vera_lambda_b")),
        ("m.norm.weight", "LN_TUNING", ("m.norm", "weight")),
        ("prompt_embeddings", "PROMPT_TUNING", ("", "prompt_embeddings")),
        ("m.q.newest_core.bias", "NEWEST", ("m.q", "newest_core_bias")),
        ("m.q.score.weight", "NEWEST", ("m.q.score", "weight")),
    ],
)
def test_names_say_module_and_role(name: str, method: str, expected: tuple[str, str]) -> None:
    assert kind.split_name(name, method) == expected


def test_methods_of_the_future_are_kept(tmp_path: Path) -> None:
    tensors = {f"base_model.model.{i}.q.newest_core": torch.randn(2, 3).half() for i in (0, 10, 2)}
    tensors["counts"] = torch.tensor([3], dtype=torch.int32)
    folder = write_adapter(tmp_path / "in", tensors, peft_type="NEWEST", depth={"a": [1, None]})
    found = kinds.read(folder)
    layers = {spec.name: spec.layer for spec in found.weights.layout.tensors if spec.role == "newest_core"}
    assert sorted(layers, key=lambda name: layers[name]) == list(tensors)[0:1] + list(tensors)[2:0:-1]
    assert found.weights.layout.base_model == "org/base"
    assert found.weights.layout.config["peft"]["depth"] == {"a": [1, None]}
    (tmp_path / "out").mkdir()
    kinds.get("peft").write(found.weights, tmp_path / "out", found.extra_files)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    changed = kind.from_state_dict(tensors, {"peft_type": "NEWEST"})
    assert same(dict(kinds.canonical(changed).tensors), tensors)


@pytest.mark.parametrize("config", [{"peft_type": None}, {"peft_type": ["LORA"]}, {"peft_type": ""}])
def test_folders_without_a_method_are_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(BadArtefact, match="not the name of a method"):
        kinds.read(write_adapter(tmp_path / "a", **config))


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", peft_type="IA3")
    (folder / "adapter_config.json").write_text(json.dumps([1]))
    with pytest.raises(BadArtefact, match="is not a JSON object"):
        kinds.read(folder)
    (folder / "adapter_config.json").write_bytes(b"\x00" * (1 << 21))
    with pytest.raises(BadArtefact, match="too large"):
        kinds.read(folder)
