"""Conditions of several parts: any subset will do, a class has one token, and what is masked does not exist."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fixtures import tiny_config
from weightgen.conditioners.joint import ConditionEncoder, ConditionerConfig
from weightgen.generators import generator_class
from weightgen.training_data import TrainingData
from weightgen.types import Condition, Vectors
from zoo.datasets import Examples
from zoo.errors import UsageError
from zoo.zoo import Zoo

PARTS = ["examples", "labels", "description", "texts", "architecture"]


def vectors(count: int, b: int = 2) -> Vectors:
    return Vectors(torch.randn(b, count, 6), torch.ones(b, count, dtype=torch.bool))


@pytest.fixture
def full() -> Condition:
    examples = Examples(torch.randn(2, 3, 4, 5), torch.ones(2, 3, 4, dtype=torch.bool))
    return Condition(examples, vectors(1), vectors(3), vectors(7), vectors(1))


@pytest.fixture
def encoder() -> ConditionEncoder:
    torch.manual_seed(0)
    config = ConditionerConfig(parts=PARTS, heads=2, max_classes=6)  # pyright: ignore[reportArgumentType]
    return ConditionEncoder(config, [(5,)], 6, 16).eval()


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_classes_come_first_and_have_one_token_each(full: Condition, encoder: ConditionEncoder) -> None:
    for known, classes, tokens in (
        (full, 3, 3 + 1 + 7 + 1),
        (full.without(["examples"]), 3, 3 + 1 + 7 + 1),
        (full.without(["labels"]), 3, 3 + 1 + 7 + 1),
        (full.without(["labels", "examples"]), 0, 1 + 7 + 1),
        (Condition(texts=full.texts), 0, 7),
    ):
        found = encoder(known)
        assert found.classes == classes
        assert found.tokens.shape == (2, tokens, 16)
        assert found.mask.all()


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_an_influence_and_none_is_needed(part: str, full: Condition, encoder: ConditionEncoder) -> None:
    with torch.no_grad():
        without = encoder(full.without([part])).pooled()
        assert torch.isfinite(without).all()
        assert not close(without, encoder(full).pooled())


def test_masked_texts_do_not_exist(full: Condition, encoder: ConditionEncoder) -> None:
    assert full.texts is not None
    mask = torch.cat([full.texts.mask, torch.zeros(2, 4).bool()], 1)
    padded = Vectors(torch.cat([full.texts.x, 9 * torch.randn(2, 4, 6)], 1), mask)
    with torch.no_grad():
        one, other = encoder(full), encoder(Condition(full.examples, full.description, full.labels, padded))
        assert close(encoder(full.without(["architecture"])).pooled(), other.pooled())
    assert one.tokens.shape[1] != other.tokens.shape[1]


def test_unlabelled_texts_have_no_order(full: Condition, encoder: ConditionEncoder) -> None:
    assert full.texts is not None
    order = torch.randperm(7)
    turned = Vectors(full.texts.x[:, order], full.texts.mask)
    with torch.no_grad():
        a, b = (encoder(Condition(full.examples, texts=texts)).pooled() for texts in (full.texts, turned))
    assert close(a, b)


def test_parts_are_dropped_at_random_but_never_all(full: Condition, encoder: ConditionEncoder) -> None:
    with torch.no_grad():
        sizes = {encoder(full, torch.Generator().manual_seed(i)).tokens.shape[1] for i in range(40)}
        assert len(sizes) > 3
        assert min(sizes) > 0
        again = [encoder(full, torch.Generator().manual_seed(3)).tokens for _ in range(2)]
    assert again[0].equal(again[1])


def test_nothing_known_and_no_encoder_are_errors(encoder: ConditionEncoder) -> None:
    with pytest.raises(UsageError, match="got none of it"):
        encoder(Condition())
    config = ConditionerConfig(parts=["texts"])
    with pytest.raises(UsageError, match="text_encoder"):
        ConditionEncoder(config, [], 0, 16)


def test_networks_are_learned_from_words_and_examples(tiny_zoo: Path, text_encoder: Path) -> None:
    parts = "conditioner={parts: [examples, labels, description, architecture], heads: 2, max_classes: 4}"
    with Zoo.open(tiny_zoo) as zoo:
        data = TrainingData(zoo, tiny_config("d2nwg", f"text_encoder={text_encoder}", parts))
    torch.manual_seed(0)
    model = generator_class("d2nwg")(data.config, data.problem)
    for stage in model.stages():
        model.prepare(stage.name, data.token_sets())
        batch = data.batch(stage, 0)
        if stage.condition:
            assert batch.condition is not None
            assert set(batch.condition.parts()) == {"examples", "labels", "description", "architecture"}
        assert torch.isfinite(stage.loss(batch).total)
    held = data.held[0]
    known = held.support.condition(torch.tensor([0, 1]), 3, torch.Generator().manual_seed(0))
    for some in (known, known.without(["examples"]), known.without(["labels", "description", "architecture"])):
        written = model.write(some, held.form.layout, torch.Generator().manual_seed(0))
        assert written.shape[0] == 2
        assert torch.isfinite(written).all()
