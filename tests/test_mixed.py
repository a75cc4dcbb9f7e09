"""Tasks made at random from the images of others, and networks that are trained further before they are judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fixtures import tiny_config
from weightgen.generators import Generator, generator_class
from weightgen.generators.further import trained_further
from weightgen.mix import MixConfig, look, thicker, thinner, turned
from weightgen.subjects.images import ImageQueries, ImageSubject
from weightgen.subjects.mixed import MixedTasks
from weightgen.train import train_generator
from weightgen.training_data import TrainingData
from zoo.datasets import ExampleBank
from zoo.errors import UsageError
from zoo.types import Task
from zoo.zoo import Zoo

ARCHITECTURE = {"family": "mlp", "input": [64], "hidden": [4], "classes": 2, "activation": "relu"}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def subject(classes: int, *shape: int, first: int = 0) -> ImageSubject:
    """A set: images of class ``c`` are filled with the value ``first + c``, but for a bright upper left corner."""
    y = torch.arange(classes).repeat_interleave(4)
    x = (y + first).to(torch.uint8).view(-1, *[1] * len(shape)).repeat(1, *shape)
    x[..., 0, 0] = 200
    data = {"x": x, "y": y, "part": torch.zeros_like(y)}
    task = Task("all", "", "set", tuple(range(classes)), tuple(str(c) for c in range(classes)), "train")
    return ImageSubject(ARCHITECTURE, ExampleBank(data, [task], 0), [task])


def values(x: Tensor) -> Tensor:
    """The class that an image of ``subject`` was filled with: its middle."""
    return (x[..., 4, 4] * 255).round()


PLAIN = MixConfig(share=1, one_set=0, turn=0, blend=0, change=0)


def test_a_task_has_distinct_classes_of_all_sets_and_its_queries_agree_with_its_condition() -> None:
    pool = [subject(3, 8, 8), subject(3, 8, 8, first=100)]
    tasks = MixedTasks(pool[0], pool, PLAIN)
    condition, queries = tasks.draw(20, 2, 12, seeded())
    assert condition.examples is not None
    given = values(condition.examples.x)
    assert given.shape == (20, 3, 2)
    assert condition.examples.mask.all()
    assert given[..., 0].equal(given[..., 1]), "examples of one class"
    assert all(len(set(row)) == 3 for row in given[..., 0].tolist())
    assert values(queries.x).equal(given[..., 0].gather(1, queries.y))
    mixed = [len({value >= 100 for value in row}) for row in given[..., 0].tolist()]
    assert max(mixed) == 2, "classes of both sets in one task"
    assert len({tuple(row) for row in given[..., 0].tolist()}) > 10, "tasks and orders differ"
    again = tasks.draw(20, 2, 12, seeded())[1]
    assert again.x.equal(queries.x)


def test_all_classes_of_one_set() -> None:
    pool = [subject(3, 8, 8), subject(4, 8, 8, first=100)]
    condition, _ = MixedTasks(pool[0], pool, PLAIN.model_copy(update={"one_set": 1.0})).draw(20, 1, 1, seeded())
    assert condition.examples is not None
    rows = (values(condition.examples.x)[..., 0] >= 100).tolist()
    assert {tuple(row) for row in rows} == {(False,) * 3, (True,) * 3}


def test_turned_and_blended_classes() -> None:
    pool = [subject(3, 8, 8)]
    condition, queries = MixedTasks(pool[0], pool, PLAIN.model_copy(update={"turn": 1.0})).draw(30, 2, 4, seeded())
    assert condition.examples is not None
    bright = condition.examples.x[..., (0, 0, -1, -1), (0, -1, 0, -1)] > 0.5
    assert bright.sum(-1).eq(1).all()
    assert bright[:, :, 0].equal(bright[:, :, 1]), "all images of a class lie the same way"
    assert len(bright.flatten(0, 2).unique(dim=0)) == 4
    corner = queries.x[..., (0, 0, -1, -1), (0, -1, 0, -1)] > 0.5
    assert corner.equal(bright[:, :, 0].gather(1, queries.y[..., None].expand(-1, -1, 4)))
    both = MixedTasks(pool[0], pool, PLAIN.model_copy(update={"blend": 1.0})).draw(30, 1, 1, seeded())[0]
    assert both.examples is not None
    assert values(both.examples.x).float().mean() > 1.2, "the larger of two values; alone the mean is 1"


@pytest.mark.parametrize("wanted", [(8, 8), (1, 8, 8), (3, 8, 8)])
def test_images_take_the_size_and_the_channels_that_are_wanted(wanted: tuple[int, ...]) -> None:
    own = subject(2, *wanted)
    pool = [own, subject(2, 3, 12, 12), subject(2, 6, 6)]
    condition, queries = MixedTasks(own, pool, MixConfig(change=0.5)).draw(10, 2, 5, seeded())
    assert condition.examples is not None
    assert condition.examples.x.shape == (10, 2, 2, *wanted)
    assert queries.x.shape == (10, 5, *wanted)
    assert queries.x.min() >= 0
    assert queries.x.max() <= 1


def test_what_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(UsageError, match="are too few"):
        MixedTasks(subject(4, 8, 8), [subject(3, 8, 8)], PLAIN)
    flat = subject(2, 2, 8, 8)
    with pytest.raises(UsageError, match="no images"):
        MixedTasks(flat, [flat], PLAIN)


def test_changes_of_images() -> None:
    x = torch.rand(2, 1, 5, 5)
    assert len({tuple(turned(x, way).flatten().tolist()) for way in range(8)}) == 8
    assert turned(x, 0).equal(x)
    assert (thicker(x) >= x).all()
    assert (thinner(x) <= x).all()
    assert look(1, 0.0, seeded())(x).equal(x)
    looks = [look(3, 1.0, seeded(seed))(x) for seed in range(5)]
    assert all(one.shape == (2, 3, 5, 5) and one.min() >= 0 and one.max() <= 1 for one in looks)
    assert len({one.sum().item() for one in looks}) == 5


@pytest.fixture(scope="module")
def zoo(tiny_zoo: Path) -> Iterator[Zoo]:
    with Zoo.open(tiny_zoo) as opened:
        yield opened


def made(zoo: Zoo, *overrides: str) -> tuple[Generator, TrainingData]:
    config = tiny_config("d2nwg", *overrides)
    data = TrainingData(zoo, config)
    torch.manual_seed(0)
    generator = generator_class("d2nwg")(config, data.problem)
    generator.prepare("codec", data.token_sets())
    return generator, data


def test_made_tasks_come_without_networks_in_their_share_of_the_steps(zoo: Zoo) -> None:
    generator, data = made(zoo, "behaviour={queries: 8, mix: {share: 0.5}}")
    behaviour = generator.stages()[-1]
    batches = [data.batch(behaviour, step) for step in range(40)]
    share = sum(not len(batch.values) for batch in batches) / len(batches)
    assert 0.25 < share < 0.75
    for batch in batches[:6]:
        loss = behaviour.loss(batch)
        assert set(loss.parts) == ({"task", "method", "reconstruction"} if len(batch.values) else {"made"})
        assert loss.total.isfinite()
        assert batch.condition is not None
        assert len(batch.condition) == behaviour.config.batch_size
    assert all(len(data.batch(generator.stages()[2], step).values) for step in range(6)), "other stages have none"


def test_training_with_made_tasks_and_in_bfloat16_starts_again_where_it_stopped(tiny_zoo: Path, tmp_path: Path) -> None:
    config = tiny_config("d2nwg", "precision=bfloat16", "behaviour={queries: 8, mix: {share: 0.5}}")
    with Zoo.open(tiny_zoo) as zoo:
        history = train_generator(config, zoo, tmp_path / "one")
        assert (
            train_generator(config, zoo, tmp_path / "two")["stages"]["behaviour"]["log"]
            == (history["stages"]["behaviour"]["log"])
        )


def test_adapters_cannot_be_mixed(adapter_zoo: Path, text_encoder: Path) -> None:
    labels = "conditioner={parts: [labels], intra_depth: 1, inter_depth: 1, heads: 2, max_classes: 4}"
    config = tiny_config("d2nwg", f"text_encoder={text_encoder}", labels, "behaviour={mix: {share: 1}}")
    with Zoo.open(adapter_zoo) as adapters:
        data = TrainingData(adapters, config)
    behaviour = generator_class("d2nwg")(config, data.problem).stages()[-1]
    with pytest.raises(UsageError, match="from images only"):
        data.batch(behaviour, 0)


# Trained further


def test_networks_are_trained_each_on_its_own_examples(zoo: Zoo) -> None:
    _, data = made(zoo)
    group = data.groups[0]
    tensors = data.problem.tokenizer.tensors(group.train.values[:3], group.form.layout)
    tensors = {name: value.requires_grad_() for name, value in tensors.items()}
    queries = group.subject.queries(group.train.task_of[:3], 24, seeded())
    *practice, rest = queries.split([8, 8, 8])
    assert isinstance(rest, ImageQueries)
    assert isinstance(queries, ImageQueries)
    assert torch.cat([part.x for part in (*practice, rest) if isinstance(part, ImageQueries)], 1).equal(queries.x)
    moved = trained_further(tensors, practice * 10, 0.01)
    with torch.no_grad():
        before, after = (torch.stack([one.loss(state) for one in practice]).mean(0) for state in (tensors, moved))
    assert (after < before).all()
    second = [
        ImageQueries(one.architecture, one.x[1:2], one.y[1:2]) for one in practice if isinstance(one, ImageQueries)
    ]
    alone = trained_further({name: value[1:2] for name, value in tensors.items()}, second * 10, 0.01)
    for name, value in alone.items():
        torch.testing.assert_close(value, moved[name][1:2], rtol=1e-3, atol=1e-4)
    name = next(iter(tensors))
    (gradient,) = torch.autograd.grad(moved[name].sum(), tensors[name])
    assert gradient.eq(1).all(), "first order: the derivative is 1"


def test_a_share_of_the_steps_judges_trained_networks(zoo: Zoo) -> None:
    plain, _ = made(zoo, "behaviour={queries: 8}")
    further, more = made(zoo, "behaviour={queries: 8, further: {share: 1, steps: 3, batch_size: 4, lr: 0.05}}")
    further.load_state_dict(plain.state_dict())
    assert further.stages()[-1].queries == 8 + 3 * 4
    batch = more.batch(further.stages()[-1], 0)
    assert batch.queries is not None
    ahead = further.stages()[-1].loss(batch).parts["task"]
    as_written = plain.stages()[-1].loss(replace(batch, queries=batch.queries.split([12, 8])[1])).parts["task"]
    assert ahead < as_written
