"""What a generator learns from: training networks and training images, never the test split."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures import tiny_config
from weightgen.checkpoint import read_history
from weightgen.generators import GeneratorConfig, generator_class
from weightgen.training_data import TrainingData
from zoo import datasets
from zoo.errors import BadArtefact
from zoo.kinds.dense import from_state_dict
from zoo.tokens import Tokenizer
from zoo.zoo import Zoo

STAGES = ("codec", "alignment", "diffusion", "behaviour")


@pytest.fixture
def zoo(tiny_zoo: Path) -> Iterator[Zoo]:
    with Zoo.open(tiny_zoo) as opened:
        yield opened


@pytest.fixture
def config() -> GeneratorConfig:
    return tiny_config()


def test_the_test_split_is_never_read(zoo: Zoo, config: GeneratorConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    splits: list[str | None] = []
    parts: list[Tensor] = []
    load, init = Zoo.weights, datasets.ExampleBank.__init__

    def weights(self: Zoo, record: Any, **options: Any) -> Any:
        splits.append(record.split)
        return load(self, record, **options)

    def bank(self: Any, dataset: Any, tasks: Any, part: int, **options: Any) -> None:
        init(self, dataset, tasks, part, **options)
        assert all(task.split in ("train", "val") for task in tasks)
        assert part in (0, 1), "test images are for the last measurement"
        parts.append(self.x)

    monkeypatch.setattr(Zoo, "weights", weights)
    monkeypatch.setattr(datasets.ExampleBank, "__init__", bank)
    data = TrainingData(zoo, config)
    assert set(splits) == {"train", "val"}
    assert parts
    images = zoo.dataset("sklearn-digits")
    hidden = {row.numpy().tobytes() for row in images["x"][images["part"] == 2]}
    shown = {row.numpy().tobytes() for x in parts for row in x}
    doubles = {row.numpy().tobytes() for row in images["x"][images["part"] != 2]} & hidden
    assert not (shown & hidden) - doubles
    held_out = {task.name for task in zoo.tasks("test")} | {task.name for task in zoo.tasks("val")}
    assert not held_out & {task.name for task in data.groups[0].train.tasks}


def test_the_history_names_no_held_out_task(zoo: Zoo, tiny_generator: Path) -> None:
    history = read_history(tiny_generator)
    assert set(history["train_tasks"]) == {task.name for task in zoo.tasks("train")}
    assert set(history["val_tasks"]) == {task.name for task in zoo.tasks("val")}
    text = json.dumps(history)
    assert not [task.name for task in zoo.tasks("test") if task.name in text]
    assert list(history["stages"]) == list(STAGES)
    for stage in history["stages"].values():
        assert 0 <= stage["val_accuracy"] <= 1
        assert stage["log"][0]["step"] == 0


def test_statistics_and_reference_come_from_training_networks(zoo: Zoo, config: GeneratorConfig) -> None:
    data = TrainingData(zoo, config)
    train_split = datasets.load_members(zoo, "train")
    reference = datasets.reference_of(train_split)
    assert data.problem.forms[0].reference is not None
    assert all(data.problem.forms[0].reference[name].equal(value) for name, value in reference.items())
    assert data.problem.tokenizer == Tokenizer.fit(train_split.aligned(reference).weights(), config.token_width)


def test_batches_depend_on_seed_stage_and_step_alone(zoo: Zoo, config: GeneratorConfig) -> None:
    data, again = TrainingData(zoo, config), TrainingData(zoo, config)
    stages = generator_class(config.generator)(config, data.problem).stages()
    seen: set[bytes] = set()
    for stage in stages:
        for step in (0, 1, 7):
            torch.manual_seed(step)
            one, two = data.batch(stage, step), again.batch(stage, step)
            assert one.seed == two.seed
            assert one.values.equal(two.values)
            assert one.task.equal(two.task)
            seen.add(one.values.numpy().tobytes())
            if one.condition and one.condition.examples and two.condition and two.condition.examples:
                assert one.condition.examples.x.equal(two.condition.examples.x)
            if one.queries and two.queries:
                assert one.queries.x.equal(two.queries.x)
    assert len(seen) == len(stages) * 3
    other = TrainingData(zoo, tiny_config("d2nwg", "seed=1"))
    assert not other.batch(stages[0], 0).values.equal(data.batch(stages[0], 0).values)


def test_zoos_that_cannot_be_learned_from_are_refused(tiny_zoo: Path, config: GeneratorConfig, tmp_path: Path) -> None:
    with Zoo.open(tiny_zoo) as source, Zoo.open(tmp_path / "zoo", create=True) as target:
        with pytest.raises(BadArtefact, match="no networks in the split 'train'"):
            TrainingData(target, config)
        target.put_dataset("sklearn-digits", source.dataset("sklearn-digits"), description="")
        target.put_tasks(source.tasks())
        records = {split: source.records(split=split)[0] for split in ("train", "val")}
        for split, record in records.items():
            target.add(source.weights(record), task=record.task, split=split)
        TrainingData(target, config)
        stranger = source.records(split="train")[3]
        target.add(source.weights(stranger), split="train")
        with pytest.raises(BadArtefact, match="names no task"):
            TrainingData(target, config)
        target.add(source.weights(stranger), task=records["val"].task, split="train")
    with Zoo.open(tmp_path / "crossed", create=True) as target:
        for split in ("train", "val"):
            target.add(from_state_dict({"a.weight": torch.randn(2, 2)}), task="same", split=split)
        with pytest.raises(BadArtefact, match="occurs in the splits"):
            TrainingData(target, config)
