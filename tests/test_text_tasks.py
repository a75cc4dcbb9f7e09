"""Adapters of text tasks: new tasks out of known ones, the strength of what is written, and IGPG on adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
import torch

from tests.fixtures import CONFIGS, TINY_MODEL
from tests.text_world import with_peft
from weightgen import jobs
from weightgen.generators import GeneratorConfig, generator_class
from weightgen.results import AdapterResult
from weightgen.subjects.texts import NO_LABEL, TextQueries, TextSubject
from weightgen.train import load_train_config, train_generator
from weightgen.training_data import TrainingData
from zoo.zoo import Zoo


def igpg_config(encoder: Path, *overrides: str) -> GeneratorConfig:
    stages = [f"stages.{stage}={{steps: 3, batch_size: 4}}" for stage in ("prior", "behaviour")]
    parts = "conditioner={parts: [description, labels, texts], heads: 2, intra_depth: 1, inter_depth: 1}"
    small = [part for part in TINY_MODEL["igpg"] if not part.startswith("conditioner")]
    given = ["token_width=16", "shots=3", f"text_encoder={encoder}", parts, *stages, *small, *overrides]
    return load_train_config(CONFIGS / "igpg-lora.yaml", given)


@pytest.fixture(scope="module")
def data(adapter_zoo: Path, text_encoder: Path) -> TrainingData:
    with Zoo.open(adapter_zoo) as zoo:
        return TrainingData(zoo, igpg_config(text_encoder))


def test_some_labels_make_a_new_task(data: TrainingData) -> None:
    subject = cast(TextSubject, data.groups[0].subject)
    rng = torch.Generator().manual_seed(0)
    tasks, sizes = torch.tensor([0, 1] * 6), set()
    order = subject.some_labels(tasks, rng)
    condition = subject.condition(tasks, 64, rng, order)
    queries = cast(TextQueries, subject.queries(tasks, 16, rng, order))
    for i, task in enumerate(tasks.tolist()):
        one, row = subject.data[task], order[i]
        here = row[row != NO_LABEL].tolist()
        assert len(set(here)) == len(here) >= 2
        sizes.add(len(here))
        assert condition.words[i].labels == tuple(one.text.labels[k] for k in here)
        known = {one.text.texts[k] for k in range(len(one.text.texts)) if int(one.y[k]) in here}
        assert set(condition.words[i].texts) == known
        assert sorted(map(list, queries.labels[i])) == sorted(list(one.labels[k]) for k in here)
        for tokens, y in zip(queries.texts[i], queries.y[i].tolist(), strict=True):
            assert one.labels[int(one.y[list(one.tokens).index(tokens)])] == queries.labels[i][y]
    assert len(sizes) > 1


def test_only_the_behavioural_stage_draws_some_labels(data: TrainingData, text_encoder: Path) -> None:
    torch.manual_seed(0)
    prior, behaviour = generator_class("igpg")(data.config, data.problem).stages()

    def counts(data: TrainingData) -> set[int]:
        conditions = [data.batch(behaviour, step).condition for step in range(6)]
        return {len(task.labels) for one in conditions if one is not None for task in one.words}

    whole = data.batch(prior, 0).condition
    assert whole is not None
    assert {len(task.labels) for task in whole.words} == {4}
    assert counts(data) > {4}
    every = object.__new__(TrainingData)
    every.__dict__ |= {**data.__dict__, "config": igpg_config(text_encoder, "some_labels=false")}
    assert counts(every) == {4}


def test_strength_scales_the_update(data: TrainingData, text_encoder: Path) -> None:
    condition = data.held[0].support.condition(torch.tensor([0]), 3, torch.Generator().manual_seed(0))
    found = {}
    for strength in (1.0, 0.5):
        config = igpg_config(text_encoder, f"strength={strength}")
        torch.manual_seed(0)
        generator = generator_class("igpg")(config, data.problem)
        generator.prepare("prior", data.token_sets())
        found[strength] = generator.eval().networks(condition, data.held[0].form.layout, 0)
    for name, value in found[1.0].items():
        assert value.abs().max() > 0
        torch.testing.assert_close(found[0.5][name], value * (0.5 if "lora_B" in name else 1.0))


def test_igpg_writes_an_adapter_from_a_sentence(adapter_zoo: Path, text_encoder: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    with Zoo.open(adapter_zoo) as zoo:
        train_generator(igpg_config(text_encoder), zoo, tmp_path / "generator")
    adapters = {}
    for seed in (1, 1, 2):
        out = tmp_path / "adapter"
        result = jobs.generate(
            tmp_path / "generator", out=out, description="Which animal?", labels=["a", "b"], seed=seed
        )
        assert isinstance(result, AdapterResult)
        found = (out / "adapter_model.safetensors").read_bytes()
        assert adapters.setdefault(seed, found) == found
    assert adapters[1] != adapters[2]
    model = with_peft(AutoModel.from_pretrained(text_encoder), tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "weightgen.json").read_text())["generated"]["generator"] == "igpg"
    assert sum("lora_B" in name for name, _ in model.named_parameters()) == 4
