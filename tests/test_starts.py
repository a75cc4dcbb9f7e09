"""Generators that write changes of the best trained network of the nearest task."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fixtures import tiny_config
from weightgen.checkpoint import load_generator
from weightgen.generate_jobs import generate
from weightgen.generators.head import FittedHead
from weightgen.generators.igpg import IGPG
from weightgen.generators.latent import LatentGenerator
from weightgen.generators.problem import TokenSet
from weightgen.generators.starts import Starts
from weightgen.subjects.images import ImageSubject
from weightgen.train import train_generator
from weightgen.training_data import TrainingData
from zoo import kinds
from zoo.architectures import family
from zoo.datasets import Examples
from zoo.errors import UsageError
from zoo.kinds.dense import layout_of
from zoo.networks import architecture_of, logits_many
from zoo.tokens import Tokenizer
from zoo.types import Layout, TensorSpec
from zoo.zoo import Zoo

SETTINGS = ("start=task", "rename_classes=false", "codec.zero_start=true", "behaviour.alignment_weight=0.1")


def layout(size: int) -> Layout:
    return Layout("dense", None, (TensorSpec("a", (size,), "F32", 0, "weight"),), {})


def tokenizer(width: int) -> Tokenizer:
    return Tokenizer(width, ("weight",), {"weight": 0})


def test_the_best_networks_of_each_task_are_kept_and_found() -> None:
    values, rng = torch.arange(10.0).view(5, 1, 2), torch.Generator().manual_seed(0)
    sets = TokenSet(values, layout(2), torch.tensor([7, -3, 7, 7, -3]), torch.tensor([0.1, 0.5, 0.9, 0.2, 0.6]))
    starts = Starts([layout(3), layout(2)], tokenizer(2))
    starts.take([sets])
    assert len(starts.known(layout(3))[0]) == 0
    assert len(starts.known(layout(4))[0]) == 0
    own = starts.own(layout(2), torch.tensor([7, -3, 7]), rng)
    assert torch.equal(own, values[[2, 4, 2]])
    conditions = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    nearest = starts.nearest(layout(2), conditions, lambda known, _: torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert torch.equal(nearest, values[[2, 4, 2]])  # those of task -3 come first
    loaded = Starts([layout(3), layout(2)], tokenizer(2))
    loaded.load_state_dict(starts.state_dict())
    assert torch.equal(loaded.own(layout(2), torch.tensor([7]), rng), values[[2]])
    several = Starts([layout(2)], tokenizer(2), keep=2)
    several.take([sets])
    known, tasks = several.known(layout(2))
    assert torch.equal(known, values[[4, 1, 2, 3]])
    assert tasks.tolist() == [-3, -3, 7, 7]
    drawn = several.own(layout(2), torch.full((50,), 7), rng)
    assert {float(one[0, 0]) for one in drawn} == {4.0, 6.0}


def test_bodies_serve_tasks_of_other_classes_and_the_best_on_examples_held_back_is_chosen() -> None:
    def made(classes: int) -> Layout:
        return layout_of({"family": "mlp", "sizes": [2, 3, classes], "activation": "relu"})

    few, many = made(2), made(3)
    roles = tuple(dict.fromkeys(spec.role for spec in few.tensors))
    words = Tokenizer(4, roles, dict.fromkeys(roles, 0))
    rng = torch.Generator().manual_seed(0)
    blind = {spec.name: torch.zeros(1, *spec.shape) for spec in few.tensors}
    names = [spec.name for spec in few.tensors]
    seeing = {**blind, names[0]: torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]])}
    values = torch.cat([words.values(one, few) for one in (blind, seeing)])
    sets = [TokenSet(values, few, torch.tensor([0, 1]), torch.zeros(2))]
    alone, starts = Starts([few], words), Starts([few], words, bodies=True)
    alone.take(sets)
    starts.take(sets)
    assert len(alone.known(many)[0]) == 0
    moved = words.tensors(starts.known(many)[0], many)
    outputs = {name for name, _ in family(architecture_of(many)).outputs(architecture_of(many)).axes}
    for name, value in moved.items():
        assert torch.equal(
            value, torch.zeros_like(value) if name in outputs else torch.cat([blind[name], seeing[name]])
        )
    deeper = layout_of({"family": "mlp", "sizes": [2, 3, 3, 2], "activation": "relu"})
    assert len(alone.known(deeper)[0]) == 0
    grown = words.tensors(starts.known(deeper)[0], deeper)
    assert torch.equal(grown["layers.0.weight"], torch.cat([blind[names[0]], seeing[names[0]]]))
    assert torch.equal(grown["layers.1.weight"], torch.eye(3).expand(2, -1, -1))
    other = layout_of({"family": "mlp", "sizes": [2, 3, 2], "activation": "tanh"})
    assert len(alone.known(other)[0]) == 0
    middles = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0]])
    x = middles[None, :, None] + torch.randn(2, 3, 6, 2, generator=rng)
    head, examples = FittedHead(), Examples(x, torch.ones(2, 3, 6, dtype=torch.bool))
    assert torch.equal(starts.fitting(many, examples, head), starts.known(many)[0][[1, 1]])
    same = Examples(x[:1].repeat(3, 1, 1, 1), examples.mask[:1].repeat(3, 1, 1))
    assert torch.equal(starts.fitting(many, same, head), starts.known(many)[0][[1, 1, 1]])
    losses = head.held_back(architecture_of(many), moved, examples)
    assert losses[0] == pytest.approx(math.log(3), abs=1e-4)  # nothing is seen
    assert losses[1] < 0.5
    one = head.held_back(architecture_of(many), moved, Examples(x[:, :, :1], examples.mask[:, :, :1]))
    assert torch.isfinite(one).all()


def test_what_is_held_back_is_not_fitted_to() -> None:
    """Labels of noise are learned by heart, not predicted."""
    made = layout_of({"family": "mlp", "sizes": [8, 16, 2], "activation": "relu"})
    rng = torch.Generator().manual_seed(0)
    tensors = {spec.name: torch.randn(1, *spec.shape, generator=rng) for spec in made.tensors}
    examples = Examples(torch.randn(1, 2, 10, 8, generator=rng), torch.ones(1, 2, 10, dtype=torch.bool))
    head, architecture = FittedHead(), architecture_of(made)
    x, y = examples.flat()
    with torch.no_grad():
        logits = logits_many(architecture, head(architecture, tensors, examples), x[None])[0]
    assert torch.nn.functional.cross_entropy(logits, y) < 0.5
    assert head.held_back(architecture, tensors, examples) > 0.6


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
    layout = group.form.layout
    known, scores = generator.starts.known(layout)[0], group.train.scores()
    assert len(known) == len(group.train.tasks)
    best = max(range(len(scores)), key=lambda i: (group.train.task_of[i] == 0, scores[i]))
    assert (known - group.train.values[best]).abs().amax((1, 2)).min() == 0
    assert isinstance(group.subject, ImageSubject)
    condition = group.subject.condition(torch.arange(4), 3, torch.Generator().manual_seed(0))
    written = generator.write(condition, layout, torch.Generator().manual_seed(0))
    apart = (written[:, None] - known).abs().amax((2, 3))
    assert apart.min(1).values.max() < 1e-6
    assert condition.examples is not None
    architecture, tensors = architecture_of(layout), generator.problem.tokenizer.tensors(known, layout)
    for i in range(4):
        x, y = condition.examples.flat(i)
        logits = logits_many(architecture, tensors, x.expand(len(known), *x.shape))
        losses = torch.nn.functional.cross_entropy(logits.mT, y.expand(len(known), -1), reduction="none").mean(1)
        assert apart[i].argmin() == losses.argmin()
    encoded = generator.conditioner(condition)
    asked = generator.embed_condition(condition)
    start = generator.start(condition.without(["examples"]), encoded, layout)  # as for a condition of words
    assert start is not None
    similar = asked @ generator.embed_weights(known, layout).T
    assert torch.equal(start, known[similar.argmax(1)])


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
    known, _ = generator.starts.known(group.form.layout)
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
    starts, numbers = Starts([layout(1)], tokenizer(1)), torch.tensor([5, 6, 9])
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


IGPG_SETTINGS = ("start=task", "rename_classes=false", "prior.word_size=0.001", "stages.prior.steps=0")


def test_words_change_the_start_that_does_best_on_the_examples(tiny_zoo: Path, tmp_path: Path) -> None:
    config = tiny_config("igpg", *IGPG_SETTINGS, "stages.behaviour.steps=1")
    with Zoo.open(tiny_zoo) as zoo:
        train_generator(config, zoo, tmp_path / "made")
        data = TrainingData(zoo, config)
    generator = load_generator(tmp_path / "made")
    assert isinstance(generator, IGPG)
    assert generator.starts is not None
    (group,) = data.groups
    layout = group.form.layout
    known, _ = generator.starts.known(layout)
    assert isinstance(group.subject, ImageSubject)
    condition = group.subject.condition(torch.arange(4), 3, torch.Generator().manual_seed(0))
    assert condition.examples is not None
    best = generator.starts.fitting(layout, condition.examples, None)
    written = generator.write(condition, layout, torch.Generator().manual_seed(0))
    apart = (written[:, None] - known).abs().amax((2, 3))
    assert torch.equal(known[apart.argmin(1)], best)
    assert 0 < apart.min(1).values.max() < 0.05
    given = generator.frame(layout).position[:, 0] == 0
    filled = generator.fill(condition, layout, written + 1, given, torch.Generator().manual_seed(0))
    assert torch.equal(filled[:, given], (written + 1)[:, given])
    assert torch.isfinite(generator.score(written, condition, layout)).all()
    with pytest.raises(UsageError, match="labelled examples"):
        generator.start(condition.without(["examples"]), layout)


def test_igpg_learns_changes_of_the_own_start(tiny_zoo: Path, tmp_path: Path) -> None:
    with Zoo.open(tiny_zoo) as zoo:
        history = train_generator(tiny_config("igpg", *IGPG_SETTINGS), zoo, tmp_path / "made")
    assert history["stages"]["behaviour"]["val_accuracy"] > 0.7


@pytest.mark.parametrize(
    ("override", "message"), [("rename_classes=true", "rename_classes"), ("conditioner.parts=[labels]", "examples")]
)
def test_igpg_refuses_settings_without_a_network_to_start_at(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_config("igpg", *IGPG_SETTINGS, override)


LEARNED = ("start=learned", "head=fitted")


def test_of_all_networks_the_best_are_learned() -> None:
    """And those of another depth are made of them, so that both learn."""
    made = layout_of({"family": "mlp", "sizes": [2, 3, 2], "activation": "relu"})
    roles = tuple(dict.fromkeys(spec.role for spec in made.tensors))
    words = Tokenizer(4, roles, dict.fromkeys(roles, 0))
    starts = Starts([made], words, 2, bodies=True, way="learned")
    assert len(starts.known(made)[0]) == 0
    values = torch.randn(3, len(words.template(made)[1]), 4, generator=torch.Generator().manual_seed(0))
    values *= words.template(made)[0]
    starts.take([TokenSet(values, made, torch.tensor([0, 0, 1]), torch.tensor([0.7, 0.9, 0.8]))])
    known, _ = starts.known(made)
    assert torch.equal(known, values[[1, 2]])
    deeper = layout_of({"family": "mlp", "sizes": [2, 3, 3, 2], "activation": "relu"})
    starts.known(deeper)[0].square().sum().backward()
    (moved,) = starts.moved
    assert moved.grad is not None
    with torch.no_grad():
        moved -= 0.1 * moved.grad
    loaded = Starts([made], words, 2, bodies=True, way="learned")
    loaded.load_state_dict(starts.state_dict())
    assert torch.equal(loaded.known(made)[0], starts.known(made)[0])
    assert not torch.equal(loaded.known(made)[0], known)


@pytest.mark.parametrize(
    ("name", "settings"), [("d2nwg", ()), ("igpg", ("prior.word_size=0.02", "stages.prior.steps=0"))]
)
def test_a_generator_learns_starts(name: str, settings: tuple[str, ...], tiny_zoo: Path, tmp_path: Path) -> None:
    config = tiny_config(name, *LEARNED, *settings, "starts=2", "stages.behaviour.steps=40")
    with Zoo.open(tiny_zoo) as zoo:
        history = train_generator(config, zoo, tmp_path / "made")
    generator = load_generator(tmp_path / "made")
    assert isinstance(generator, IGPG | LatentGenerator)
    assert generator.starts is not None
    (moved,) = generator.starts.moved
    assert moved.abs().amax((1, 2)).max() > 0.001
    assert history["stages"]["behaviour"]["val_accuracy"] > 0.8
    deeper = layout_of({"family": "mlp", "sizes": [64, 4, 4, 2], "activation": "tanh"})
    with Zoo.open(tiny_zoo) as zoo:
        (group,) = TrainingData(zoo, config).groups
    assert isinstance(group.subject, ImageSubject)
    condition = group.subject.condition(torch.arange(4), 3, torch.Generator().manual_seed(0))
    assert torch.isfinite(generator.write(condition, deeper, torch.Generator().manual_seed(0))).all()
    other = layout_of({"family": "mlp", "sizes": [64, 4, 2], "activation": "relu"})
    with pytest.raises(UsageError, match="can be brought into, the shape"):
        generator.write(condition, other, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["d2nwg", "igpg"])
@pytest.mark.parametrize(
    ("override", "message"), [("head=written", "set head to fitted"), ("conditioner.parts=[labels]", "examples")]
)
def test_starts_are_learned_only_where_examples_choose_them(name: str, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_config(name, *LEARNED, override)


@pytest.mark.parametrize(("name", "settings"), [("d2nwg", ("start=other",)), ("igpg", IGPG_SETTINGS)])
def test_networks_for_more_classes_than_the_zoo_has(
    name: str, settings: tuple[str, ...], tiny_zoo: Path, tmp_path: Path
) -> None:
    """Bodies of networks of two digits, with output layers fitted to three."""
    config = tiny_config(name, *settings, "head=fitted", "rename_classes=false")
    with Zoo.open(tiny_zoo) as zoo:
        train_generator(config, zoo, tmp_path / "made")
        data = next(zoo.dataset(task.dataset) for task in zoo.tasks())
    rows = torch.cat([(data["y"] == c).nonzero().flatten()[:20] for c in range(3)])
    np.savez(tmp_path / "three.npz", x=data["x"][rows].numpy(), y=data["y"][rows].numpy())
    generate(tmp_path / "made", tmp_path / "three.npz", tmp_path / "out")
    found = kinds.read(tmp_path / "out" / "network-000.safetensors").weights
    architecture = {"family": "mlp", "sizes": [64, 4, 3], "activation": "tanh"}
    assert {spec.name: spec.shape for spec in found.layout.tensors} == {
        spec.name: spec.shape for spec in layout_of(architecture).tensors
    }
    tensors = {name: value[None] for name, value in found.tensors.items()}
    right = logits_many(architecture, tensors, data["x"][rows][None].float())[0].argmax(-1) == data["y"][rows]
    assert right.float().mean() > 0.7
    with Zoo.open(tiny_zoo) as zoo:
        train_generator(tiny_config(name), zoo, tmp_path / "written")
    with pytest.raises(UsageError, match="labels go up to 2"):
        generate(tmp_path / "written", tmp_path / "three.npz", tmp_path / "none")
