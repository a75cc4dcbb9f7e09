"""Adapters as exact changes: what PEFT computes is the reference, what is not linear is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.compose_parents import Small, adapter, by_peft, changes, error
from weightgen.compose import compose, load, save
from zoo.errors import UsageError
from zoo.kinds import lora
from zoo.types import Weights

SETTINGS = {
    "plain": {"target_modules": ["first", "head"], "r": 2, "lora_alpha": 6},
    "rank stabilised": {"target_modules": ["first"], "r": 4, "lora_alpha": 3, "use_rslora": True},
    "convolutions": {"target_modules": ["conv", "point"], "r": 2, "lora_alpha": 5},
    "embedding": {"target_modules": ["table", "first"], "r": 3, "lora_alpha": 3},
    "patterns": {
        "target_modules": ["first", "head", "conv"],
        "r": 2,
        "lora_alpha": 4,
        "rank_pattern": {"head": 1, "conv": 3},
        "alpha_pattern": {"first": 7},
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_changes_are_those_of_peft(name: str, tmp_path: Path) -> None:
    weights, wanted = by_peft(tmp_path / "adapter", 1, **SETTINGS[name])
    found = changes(weights)
    assert found.keys() == wanted.keys()
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in wanted.items()}
    assert error(found, wanted) < 1e-6


def test_what_is_written_is_loaded_by_peft_and_adds_the_sum(tmp_path: Path) -> None:
    from peft import PeftModel

    parents, wanted = [], {}
    for seed, (name, weight) in enumerate((("patterns", 0.5), ("rank stabilised", -1.0), ("embedding", 2.0))):
        one, change = by_peft(tmp_path / name, seed, **SETTINGS[name])
        parents.append((one, weight))
        for tensor, value in change.items():
            wanted[tensor] = wanted.get(tensor, 0) + weight * value
    mixed = compose([one for one, _ in parents], "linear", weights=[weight for _, weight in parents])
    save(mixed, tmp_path / "mixed")
    torch.manual_seed(0)
    small = Small()
    before = {name: value.detach().clone() for name, value in small.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(small, str(tmp_path / "mixed")).merge_and_unload()  # type: ignore[operator]
    found = {name: value.detach() - before[name] for name, value in merged.named_parameters()}
    assert error(found, wanted) < 1e-5
    assert error(changes(load(tmp_path / "mixed")), wanted) < 1e-6
    receipt = json.loads((tmp_path / "mixed" / "weightgen.json").read_text())
    assert [parent["weight"] for parent in receipt["composed"]["parents"]] == [0.5, -1.0, 2.0]
    assert receipt["composed"]["relative_error_of"].keys() == wanted.keys()


def test_weights_of_gpt2_have_inputs_first() -> None:
    plain, turned = changes(adapter(0)), changes(adapter(0, fan_in_fan_out=True))
    for name, value in plain.items():
        assert torch.equal(value.T, turned[name])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "bias inside its factors"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "repeated layers"),
        ({"trainable_token_indices": [1]}, "token vectors"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base itself"),
        ({"alpha_pattern": {r"layer\.[01].*": 3}}, "regular expression"),
    ],
)
def test_what_is_not_linear_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        compose([adapter(0), adapter(1, **config)], names=["good", "bad"])
    assert "bad" in caught.value.cause
    assert caught.value.remedy


def test_other_methods_of_peft_and_mixed_kinds_are_refused() -> None:
    from tests.compose_parents import network
    from zoo.kinds import peft

    loha = peft.from_state_dict({"base_model.model.q.hada_w1_a": torch.ones(2, 2)}, {"peft_type": "LOHA"})
    with pytest.raises(UsageError, match="'LOHA', not LoRA"):
        compose([loha])
    with pytest.raises(UsageError, match="not LoRA"):
        compose([adapter(0), network(0)])
    with pytest.raises(UsageError, match="the others are networks"):
        compose([network(0), adapter(0)])


def test_one_module_of_two_names_and_two_revisions_are_refused() -> None:
    with pytest.raises(UsageError, match=r"call a module 'layer\.0\.q\.weight' and 'model\.layer\.0\.q\.weight'"):
        compose([adapter(0, modules=("layer.0.q",)), adapter(1, modules=("model.layer.0.q",))])
    with pytest.raises(UsageError, match="the revision"):
        compose([adapter(0, revision="a"), adapter(1, revision="b")])


def with_head(seed: int, value: float, name: str = "base_model.model.head.weight") -> Weights:
    one = adapter(seed, modules_to_save=["head"])
    tensors = {**one.tensors, name: torch.full((2, 2), value)}
    return lora.from_state_dict(tensors, one.layout.config["peft"])


def test_whole_modules_are_kept_mixed_or_refused() -> None:
    name = "base_model.model.head.weight"
    same = compose([with_head(0, 1.0), with_head(1, 1.0)], "ties")
    assert same.weights.tensors[name].eq(1).all()
    mean = compose([with_head(0, 1.0), with_head(1, 4.0)], "linear", weights=[0.25, 0.75])
    assert mean.weights.tensors[name].eq(3.25).all()
    with pytest.raises(UsageError, match="the weights add up to 2"):
        compose([with_head(0, 1.0), with_head(1, 4.0)], "linear", weights=[1, 1])
    with pytest.raises(UsageError, match="this method cannot mix them"):
        compose([with_head(0, 1.0), with_head(1, 4.0)], "ties")
    with pytest.raises(UsageError, match="different whole modules"):
        compose([with_head(0, 1.0), adapter(1)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0]}, "1 weights for 2 parents"),
        ({"weights": [1.0, float("nan")]}, "the weights are"),
        ({"rank": 0}, "rank 0"),
        ({"names": ["one"]}, "2 parents and 1 names"),
        ({"settings": {"densty": 0.5}, "method": "ties"}, "unknown key 'densty'"),
        ({"method": "aligned_mean"}, "takes networks"),
        ({"base": adapter(0)}, "cannot be used"),
    ],
)
def test_arguments_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compose([adapter(0), adapter(1)], **options)
    with pytest.raises(UsageError, match="0 parents"):
        compose([])


def test_targets_stay_short_where_the_parents_agree() -> None:
    agreed = compose([adapter(0), adapter(1)]).weights.layout.config["peft"]
    assert agreed["target_modules"] == ["q"]
    assert agreed["lora_alpha"] == agreed["r"] == 4
    united = compose([adapter(0), adapter(1, modules=("layer.1.q",))]).weights.layout.config["peft"]
    assert united["target_modules"] == ["layer.0.q", "layer.1.q"]
