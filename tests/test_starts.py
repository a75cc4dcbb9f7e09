"""Generators that write changes of the best trained network of the nearest task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.fixtures import tiny_config
from weightgen.checkpoint import load_generator
from weightgen.generators.latent import LatentGenerator
from weightgen.generators.problem import TokenSet
from weightgen.generators.starts import Starts
from weightgen.subjects.images import ImageSubject
from weightgen.train import train_generator
from weightgen.training_data import TrainingData
from zoo.errors import UsageError
from zoo.types import Layout, TensorSpec
from zoo.zoo import Zoo

SETTINGS = ("start=task", "rename_classes=false", "codec.zero_start=true", "behaviour.alignment_weight=0.1")


def layout(size: int) -> Layout:
    return Layout("dense", None, (TensorSpec("a", (size,), "F32", 0, "weight"),), {})


def test_the_best_network_of_each_task_is_kept_and_found() -> None:
    values = torch.arange(10.0).view(5, 1, 2)
    sets = TokenSet(values, layout(2), torch.tensor([7, -3, 7, 7, -3]), torch.tensor([0.1, 0.5, 0.9, 0.2, 0.6]))
    starts = Starts([layout(3), layout(2)], 2)
    starts.take([sets])
    assert len(starts.of(layout(3))) == 0
    assert len(starts.of(layout(4))) == 0
    own = starts.own(layout(2), torch.tensor([7, -3, 7]))
    assert torch.equal(own, values[[2, 4, 2]])
    conditions = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    nearest = starts.nearest(layout(2), conditions, lambda known, _: torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert torch.equal(nearest, values[[2, 4, 2]])  # those of task -3 come first
    other = Starts([layout(3), layout(2)], 2)
    other.load_state_dict(starts.state_dict())
    assert torch.equal(other.own(layout(2), torch.tensor([7])), values[[2]])


@pytest.mark.parametrize("name", ["d2nwg", "mapper"])
def test_before_the_behavioural_stage_the_start_itself_is_written(name: str, tiny_zoo: Path, tmp_path: Path) -> None:
    config = tiny_config(name, *SETTINGS, "stages.codec.steps=0", "stages.behaviour.steps=0")
    with Zoo.open(tiny_zoo) as zoo:
        train_generator(config, zoo, tmp_path / "made")
        data = TrainingData(zoo, config)
    generator = load_generator(tmp_path / "made")
    assert isinstance(generator, LatentGenerator)
    assert generator.starts is not None
    (group,) = data.groups
    known, scores = generator.starts.of(group.form.layout), group.train.scores()
    assert len(known) == len(group.train.tasks)
    best = max(range(len(scores)), key=lambda i: (group.train.task_of[i] == 0, scores[i]))
    assert (known - group.train.values[best]).abs().amax((1, 2)).min() == 0
    assert isinstance(group.subject, ImageSubject)
    condition = group.subject.condition(torch.arange(4), 3, torch.Generator().manual_seed(0))
    written = generator.write(condition, group.form.layout, torch.Generator().manual_seed(0))
    apart = (written[:, None] - known).abs().amax((2, 3))
    assert apart.min(1).values.max() < 1e-6
    asked = generator.embed_condition(condition)
    similar = asked @ generator.embed_weights(known, group.form.layout).T
    assert torch.equal(apart.argmin(1), similar.argmax(1))


def test_the_behavioural_stage_changes_the_starts_and_keeps_the_space(tiny_zoo: Path, tmp_path: Path) -> None:
    config = tiny_config("d2nwg", *SETTINGS)
    with Zoo.open(tiny_zoo) as zoo:
        history = train_generator(config, zoo, tmp_path / "made")
        (group,) = TrainingData(zoo, config).groups
    row = history["stages"]["behaviour"]["log"][0]
    assert {"task", "method", "contrastive", "accuracy", "reconstruction"} <= row.keys()
    generator = load_generator(tmp_path / "made")
    assert isinstance(generator, LatentGenerator)
    assert generator.starts is not None
    assert isinstance(group.subject, ImageSubject)
    condition = group.subject.condition(torch.arange(2), 3, torch.Generator().manual_seed(0))
    values = generator.write(condition, group.form.layout, torch.Generator().manual_seed(0))
    known = generator.starts.of(group.form.layout)
    assert (values[:, None] - known).abs().amax((2, 3)).min() > 1e-6
    given = generator.frame(group.form.layout).position[:, 0] == 0
    filled = generator.fill(condition, group.form.layout, values + 1, given, torch.Generator().manual_seed(0))
    assert torch.equal(filled[:, given], (values + 1)[:, given])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rename_classes=true", "rename_classes"),
        ("behaviour.mix.share=0.5", "mix.share"),
        ("start=other", "set head to fitted"),
    ],
)
def test_settings_without_a_network_to_start_at_are_refused(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_config("d2nwg", *SETTINGS, override)


def test_starts_of_other_tasks_are_never_the_own() -> None:
    values = torch.arange(3.0).view(3, 1, 1)
    starts, numbers = Starts([layout(1)], 1), torch.tensor([5, 6, 9])
    starts.take([TokenSet(values, layout(1), numbers, torch.zeros(3))])
    task = numbers.repeat(100)
    found = starts.other(layout(1), task, 300, torch.Generator().manual_seed(0)).flatten()
    assert not (numbers[found.long()] == task).any()
    assert found.unique().numel() == 3
    free = starts.other(layout(1), None, 300, torch.Generator().manual_seed(0)).flatten()
    assert (numbers[free.long()] == task).any()
    starts.take([TokenSet(values[:1], layout(1), numbers[:1], torch.zeros(1))])
    assert (starts.other(layout(1), numbers[:1], 1, torch.Generator().manual_seed(0)) == 0).all()


def test_a_generator_learns_from_starts_of_other_tasks(tiny_zoo: Path, tmp_path: Path) -> None:
    settings = ("start=other", "head=fitted", "rename_classes=false", "behaviour.mix.share=0.5")
    config = tiny_config("d2nwg", *settings, "stages.behaviour.steps=12")
    with Zoo.open(tiny_zoo) as zoo:
        history = train_generator(config, zoo, tmp_path / "made")
    assert history["stages"]["behaviour"]["val_accuracy"] > 0.7  # fitted output layers alone do that
