"""LoRA adapters: the gauge, the checks, and PEFT loading what is written back."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from tests.zoo.samples import CONFIG, adapter, factors, same, write_adapter
from zoo import kinds
from zoo.errors import BadArtefact, UsageError
from zoo.kinds import lora
from zoo.lora_gauge import canonical_factors, scaling
from zoo.zoo import Zoo

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft
    import transformers


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize(("rank", "inner", "outer"), [(1, 5, 7), (4, 9, 6), (6, 4, 8), (5, 8, 3)])
def test_gauge_is_unique_exact_and_idempotent(rank: int, inner: int, outer: int) -> None:
    a, b = torch.randn(3, rank, inner, dtype=torch.float64), torch.randn(3, outer, rank, dtype=torch.float64)
    g = torch.randn(3, rank, rank, dtype=torch.float64) + 3 * torch.eye(rank, dtype=torch.float64)
    new_a, new_b = canonical_factors(a, b)
    assert new_a.shape == a.shape
    assert new_b.shape == b.shape
    assert distance(new_b @ new_a, b @ a) < 1e-6
    for other in (canonical_factors(torch.linalg.solve(g, a), b @ g), canonical_factors(new_a, new_b)):
        assert distance(other[0], new_a) < 1e-6
        assert distance(other[1], new_b) < 1e-6
    torch.testing.assert_close(new_a.norm(dim=-1), new_b.norm(dim=-2))


def test_gauge_of_untrained_and_deficient_factors() -> None:
    a, b = torch.randn(3, 6), torch.zeros(5, 3)
    assert [factor.abs().max().item() for factor in canonical_factors(a, b)] == [0.0, 0.0]
    b[:, 0] = 1.0
    new_a, new_b = canonical_factors(a, b)
    torch.testing.assert_close((new_b @ new_a).float(), b @ a)
    assert new_a[1:].abs().max() == 0


def test_scaling() -> None:
    assert scaling(4, 8) == 2
    assert scaling(4, 8, rslora=True) == 4


def test_canonical_adapters_of_one_update_are_equal() -> None:
    weights = adapter()
    twin = dict(weights.tensors)
    for name_a, name_b in lora.pairs(twin):
        g = torch.tensor([[2.0, 1.0], [0.0, 0.5]])
        twin[name_a], twin[name_b] = torch.linalg.inv(g) @ twin[name_a], twin[name_b] @ g
    one = kinds.canonical(weights)
    two = kinds.canonical(lora.from_state_dict(twin, CONFIG))
    assert one.layout == weights.layout
    for name in one.tensors:
        torch.testing.assert_close(one.tensors[name], two.tensors[name], rtol=1e-4, atol=1e-5)
    again = kinds.canonical(one)
    for name in one.tensors:
        torch.testing.assert_close(one.tensors[name], again.tensors[name], rtol=1e-5, atol=1e-6)


def test_canonical_of_half_precision_convolutions_and_variants() -> None:
    half = lora.from_state_dict({n: t.to(torch.bfloat16) for n, t in factors().items()}, CONFIG)
    assert {spec.dtype for spec in kinds.canonical(half).layout.tensors} == {"F32"}
    prefix = "base_model.model.conv."
    conv = {prefix + "lora_A.weight": torch.randn(2, 3, 3, 3), prefix + "lora_B.weight": torch.randn(5, 2, 1, 1)}
    new = kinds.canonical(lora.from_state_dict(conv, CONFIG)).tensors
    a, b = (new[name].flatten(1) for name in conv)
    old_a, old_b = (conv[name].flatten(1) for name in conv)
    torch.testing.assert_close(b @ a, old_b @ old_a)
    special = adapter(use_qalora=True)
    assert kinds.canonical(special) is special


def test_roles_layers_and_base_model() -> None:
    names = [f"base_model.model.layer.{i}.query.lora_{f}.weight" for i in (0, 1, 10, 2) for f in "AB"]
    tensors = dict.fromkeys(names, torch.ones(2, 2))
    tensors["base_model.model.score.weight"] = torch.ones(3)
    layout = lora.layout(dict(sorted(tensors.items())), CONFIG)
    assert layout.base_model == "org/base"
    layers = [(spec.name.split(".")[3], spec.layer) for spec in layout.tensors if spec.role == "lora_A"]
    assert layers == [("0", 0), ("1", 1), ("10", 3), ("2", 2)]
    assert layout.tensors[-1].role == "weight"
    assert lora.split_name("m.q.lora_B.bias") == ("m.q", "lora_B_bias")
    assert lora.split_name("m.e.lora_embedding_A") == ("m.e", "lora_embedding_A")
    assert lora.split_name("m.q.lora_magnitude_vector") == ("m.q", "lora_magnitude_vector")


@pytest.mark.parametrize(
    ("config", "drop", "message"),
    [
        ({"peft_type": "IA3"}, None, "type 'IA3' is not LoRA"),
        ({"peft_type": None}, None, "type None is not LoRA"),
        ({"r": 3}, None, r"has rank 2, its configuration says \{3\}"),
        ({"r": "2"}, None, "not positive whole numbers"),
        ({"rank_pattern": {"layer.0.query": 5}}, None, r"layer.0.query' has rank 2, its configuration says \{5\}"),
        ({"rank_pattern": [1]}, None, "not a map"),
        ({"base_model_name_or_path": 7}, None, "not a name"),
        ({}, "lora_B", "has lora_A without its partner"),
        ({}, "lora_", "no LoRA factors"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(config: dict, drop: str | None, message: str) -> None:
    tensors = {name: tensor for name, tensor in factors().items() if drop is None or drop not in name}
    with pytest.raises(BadArtefact, match=message):
        lora.from_state_dict(tensors, {**CONFIG, **config})


def test_rank_patterns() -> None:
    config = {"r": 4, "rank_pattern": {"layer.0.query": 2}}
    assert lora.expected_ranks("model.layer.0.query", config) == {2}
    assert lora.expected_ranks("model.layer.10.query", config) == {4}
    assert lora.expected_ranks("any", {"r": 4, "rank_pattern": {"(a+)+$": 2}}) == {2, 4}


def test_folders_that_are_not_adapters_are_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(BadArtefact, match=r"but none of adapter_model\.safetensors"):
        kinds.read(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(BadArtefact, match="is not valid JSON"):
        kinds.read(folder)
    with pytest.raises(BadArtefact, match="is not a known kind of weights"):
        kinds.read(tmp_path)
    with pytest.raises(UsageError, match="unknown kind of weights 'none'"):
        kinds.get("none")


def tiny_bert(**config: object) -> tuple[transformers.BertModel, peft.PeftModel]:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=16, max_position_embeddings=16))  # pyright: ignore[reportArgumentType]
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], **config}
    adapted = peft.get_peft_model(base, peft.LoraConfig(**settings)).eval()  # pyright: ignore[reportArgumentType]
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    fresh = transformers.BertModel(base.config)
    fresh.load_state_dict(state)
    return fresh.eval(), adapted  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(
    "config",
    [{}, {"use_rslora": True, "rank_pattern": {"layer.0.attention.self.query": 2}}, {"use_dora": True}],
    ids=["plain", "patterns", "dora"],
)
@pytest.mark.parametrize("canonical", [False, True])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_loads_what_is_exported(tmp_path: Path, config: dict, canonical: bool) -> None:
    fresh, adapted = tiny_bert(**config)
    adapted.save_pretrained(tmp_path / "in")
    found = kinds.read(tmp_path / "in")
    weights = kinds.canonical(found.weights) if canonical else found.weights
    with Zoo.open(tmp_path / "zoo", create=True) as zoo:
        record, _ = zoo.add(weights, extra_files=found.extra_files)
        zoo.export(record.id, tmp_path / "out")
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected = adapted(input_ids=ids).last_hidden_state
        got = peft.PeftModel.from_pretrained(fresh, tmp_path / "out").eval()(input_ids=ids).last_hidden_state
    if canonical:
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(got, expected)
        for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


def test_old_bin_adapters(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(factors(), folder / "adapter_model.bin")
    found = kinds.read(folder)
    assert same(dict(found.weights.tensors), factors())
    (tmp_path / "out").mkdir()
    kinds.get("lora").write(found.weights, tmp_path / "out", found.extra_files)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((tmp_path / "out/adapter_config.json").read_text()) == CONFIG
