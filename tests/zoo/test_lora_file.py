"""LoRA files without configuration: the names of four tools, the gauge, and the same bytes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.zoo.samples import same
from zoo import kinds
from zoo.collect import collect
from zoo.errors import BadArtefact
from zoo.kinds import lora_file
from zoo.zoo import Zoo

STYLES = {
    "kohya": ("lora_unet_down_blocks_{}_attn1_to_q", ".lora_down.weight", ".lora_up.weight", ".alpha"),
    "diffusers_old": ("unet.down_blocks.{}.attn1.processor.to_q_lora", ".down.weight", ".up.weight", None),
    "diffusers": ("unet.down_blocks.{}.attn1.to_q.lora", ".down.weight", ".up.weight", ".alpha"),
    "text_encoder": ("text_encoder.layers.{}.q_proj.lora_linear_layer", ".down.weight", ".up.weight", None),
    "peft": ("transformer.blocks.{}.attn.to_q", ".lora_A.weight", ".lora_B.weight", None),
}


def factors(style: str, layers: int = 2) -> dict[str, torch.Tensor]:
    """Factors of rank 2, a convolution among them, in the order of a training script."""
    stem, down, up, alpha = STYLES[style]
    tensors = {}
    for layer in range(layers):
        name = stem.format(layer)
        if alpha:
            tensors[name + alpha] = torch.tensor(1.5)
        tensors[name + down] = torch.randn(2, 6)
        tensors[name + up] = torch.randn(5, 2)
    conv = stem.format(layers)
    tensors[conv + down] = torch.randn(2, 3, 3, 3)
    tensors[conv + up] = torch.randn(4, 2, 1, 1)
    return tensors


@pytest.mark.parametrize("style", STYLES)
def test_files_are_understood_and_come_back_byte_for_byte(tmp_path: Path, style: str) -> None:
    path = tmp_path / f"{style}.safetensors"
    tensors = factors(style)
    save_file({n: t.half() for n, t in tensors.items()}, path, {"ss_base_model_version": "sd_v1", "note": "é"})
    with Zoo.open(tmp_path / "zoo", create=True) as zoo:
        (collected,) = collect([path], zoo)
        assert (collected.status, collected.kind) == ("added", "lora_file")
        record = zoo.get(str(collected.id))
        zoo.export(record.id, tmp_path / "out")
    assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert record.layout.base_model == "sd_v1"
    roles = {spec.name: (spec.layer, spec.role) for spec in record.layout.tensors}
    stem, down, up, alpha = STYLES[style]
    for layer in range(3):
        assert roles[stem.format(layer) + down] == (layer, "lora_A")
        assert roles[stem.format(layer) + up] == (layer, "lora_B")
    assert alpha is None or roles[stem.format(0) + alpha] == (0, "alpha")


@pytest.mark.parametrize("style", STYLES)
def test_twins_in_another_gauge_have_one_canonical_form(style: str) -> None:
    weights = lora_file.from_state_dict(factors(style))
    found = lora_file.pairs(weights.tensors)
    assert len(found) == 3
    twin = dict(weights.tensors)
    gauge = torch.tensor([[2.0, 1.0], [0.0, 0.5]])
    for a, b in found:
        twin[a] = torch.einsum("rs,s...->r...", torch.linalg.inv(gauge), twin[a])
        twin[b] = torch.einsum("os...,sr->or...", twin[b], gauge)
    other = lora_file.from_state_dict(twin)
    one, two = kinds.canonical(weights), kinds.canonical(other)
    for name in one.tensors:
        torch.testing.assert_close(one.tensors[name], two.tensors[name], rtol=1e-4, atol=1e-5)
    for a, b in found:
        new, old = (t.tensors[b].flatten(1) @ t.tensors[a].flatten(1) for t in (one, weights))
        torch.testing.assert_close(new, old, rtol=1e-5, atol=1e-5)
    kind = kinds.get("lora_file")
    assert kind.invariant(weights) == pytest.approx(kind.invariant(other), rel=1e-6)
    assert kind.same_function(weights, other)
    twin[found[0][0]] = twin[found[0][0]] * 1.001
    assert not kind.same_function(weights, lora_file.from_state_dict(twin))


def test_what_belongs_to_factors_stays() -> None:
    tensors = factors("kohya", 1)
    tensors["lora_unet_a.lora_down.weight"] = torch.randn(2, 3, 1, 1)
    tensors["lora_unet_a.lora_mid.weight"] = torch.randn(2, 2, 3, 3)
    tensors["lora_unet_a.lora_up.weight"] = torch.randn(4, 2, 1, 1)
    tensors["lora_unet_a.dora_scale"] = torch.ones(4, 1)
    tensors["lora_unet_norm.diff"] = torch.ones(4)
    weights = lora_file.from_state_dict(tensors)
    roles = {spec.name: spec.role for spec in weights.layout.tensors}
    assert roles["lora_unet_a.lora_mid.weight"] == "lora_mid"
    assert roles["lora_unet_a.dora_scale"] == "dora_scale"
    assert roles["lora_unet_norm.diff"] == "diff"
    kept = {n: t for n, t in kinds.canonical(weights).tensors.items() if "lora_unet_a" in n or "norm" in n}
    assert same(kept, {n: tensors[n] for n in kept})


def test_networks_with_some_factors_are_whole_networks(tmp_path: Path) -> None:
    state = {f"layers.{i}.weight": torch.ones(2) for i in range(9)}
    save_file(
        {**state, "q.lora_A.weight": torch.ones(1, 2), "q.lora_B.weight": torch.ones(2, 1)}, tmp_path / "a.safetensors"
    )
    assert kinds.read(tmp_path / "a.safetensors").weights.layout.kind == "dense"
    torch.save(state, tmp_path / "lora.pt")
    torch.save(factors("kohya"), tmp_path / "my-lora.bin")
    assert kinds.read(tmp_path / "lora.pt").weights.layout.kind == "dense"
    found = kinds.read(tmp_path / "my-lora.bin")
    assert found.weights.layout.kind == "lora_file"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x.lora_A.weight": torch.ones(2, 3)}, "has no partner lora_B"),
        ({"x.lora_A.weight": torch.ones(2, 3), "x.lora_B.weight": torch.ones(3, 4)}, "do not multiply"),
        ({"x.lora_A.weight": torch.ones(2, 3), "x.lora_down.weight": torch.ones(2, 3)}, "same module and role"),
    ],
)
def test_factors_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, torch.Tensor], message: str) -> None:
    save_file({**factors("peft"), **change}, tmp_path / "a.safetensors")
    with pytest.raises(BadArtefact, match=message):
        kinds.read(tmp_path / "a.safetensors")
