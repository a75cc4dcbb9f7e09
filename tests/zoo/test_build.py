"""Building zoos: networks do not depend on their neighbours, and an interrupted build ends like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo.build
from tests.fixtures import RECIPE, TINY_RECIPE
from zoo.build import build, load_recipe
from zoo.build.sources import load_source
from zoo.build.vectorised import Sampled, TrainingConfig, accuracies, initialise, train_many, train_stages
from zoo.errors import UsageError
from zoo.networks import logits
from zoo.seeds import seed_of
from zoo.split import check_splits
from zoo.tasks import TEST, TRAIN, VAL, TaskData
from zoo.zoo import Zoo

MLP = {"family": "mlp", "sizes": [6, 5, 3], "activation": "tanh"}
FEW = (*TINY_RECIPE, "training.epochs=1", "members_per_task=1")
Stacked = dict[str, Tensor]


def data(seed: int, n: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    return x, x[:, :3].argmax(1)


def train(which: list[int], sizes: dict[int, int] | None = None, **config: Any) -> Stacked:
    sets = [data(i, (sizes or {}).get(i, 50)) for i in which]
    settings = TrainingConfig(**{"epochs": 3, "batch_size": 16, **config})
    return train_many(MLP, [x for x, _ in sets], [y for _, y in sets], which, settings, steps=20)


def test_a_network_is_the_same_alone_and_beside_any_others() -> None:
    sizes = {4: 37, 5: 200}
    together = train([3, 4, 5], sizes)
    for i, seed in enumerate((3, 4, 5)):
        alone = train([seed], sizes)
        for name, value in together.items():
            torch.testing.assert_close(value[i], alone[name][0], rtol=1e-5, atol=1e-6)
    reordered = train([5, 3], sizes)
    for name, value in together.items():
        torch.testing.assert_close(value[[2, 0]], reordered[name], rtol=1e-5, atol=1e-6)


def test_seeds_make_different_networks_and_the_same_seed_the_same() -> None:
    x, y = data(0)
    config = TrainingConfig(epochs=2, batch_size=16)
    one, two, again = (train_many(MLP, [x], [y], [seed], config) for seed in (1, 2, 1))
    assert all(not one[name].equal(two[name]) for name in one)
    assert all(one[name].equal(again[name]) for name in one)


def test_training_learns_and_does_not_touch_the_random_state() -> None:
    x, y = data(0, 400)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    config = TrainingConfig(epochs=20, batch_size=32, lr=2e-2)
    trained = train_many(MLP, [x, x], [y, y], [1, 2], config)
    assert torch.random.get_rng_state().equal(before)
    scores = accuracies(MLP, trained, [x, x], [y, y])
    assert (scores > 0.9).all()
    one = {name: value[1] for name, value in trained.items()}
    assert (logits(MLP, one, x).argmax(1) == y).float().mean().item() == pytest.approx(scores[1].item())


def test_a_diverging_neighbour_harms_nobody() -> None:
    x, y = data(1)
    config = TrainingConfig(epochs=1, batch_size=16)
    both = train_many(MLP, [x, x * torch.inf], [y, y], [1, 2], config, steps=5)
    alone = train_many(MLP, [x], [y], [1], config, steps=5)
    assert not torch.isfinite(both["layers.0.weight"][1]).all()
    torch.testing.assert_close(both["layers.0.weight"][0], alone["layers.0.weight"][0], rtol=1e-5, atol=1e-6)


def test_each_network_can_have_settings_of_its_own() -> None:
    (x, y), config = data(0), TrainingConfig(epochs=1, batch_size=16)
    rates = torch.tensor([1e-2, 1e-4, 1e-2])
    arguments = [x, x, x], [y, y, y], [1, 1, 1], config
    mixed = train_many(MLP, *arguments, steps=20, sampled=Sampled(rates, torch.tensor([0.3, 0.3, 0.0])))
    uniform = train_many(MLP, *arguments[:3], config.model_copy(update={"weight_decay": 0.3}), steps=20)
    for name, value in mixed.items():
        torch.testing.assert_close(value[0], uniform[name][0])
        assert not value[1].allclose(value[0], atol=1e-3)
        assert not value[2].equal(value[0])


def test_networks_can_start_from_a_given_one_and_be_seen_on_the_way() -> None:
    (x, y), config = data(0), TrainingConfig(epochs=1, batch_size=16, lr=1e-4, weight_decay=0)
    initial = {name: value[0] for name, value in initialise(MLP, [9]).items()}
    stages = dict(train_stages(MLP, [x, x], [y, y], [1, 2], config, total=6, keep=[2, 4], initial=initial))
    assert list(stages) == [2, 4, 6]
    for name, value in stages[6].items():
        torch.testing.assert_close(value, initial[name].expand_as(value), rtol=0, atol=1e-3)
        assert not value.equal(stages[2][name])


def test_networks_can_see_the_same_batches() -> None:
    (x, y), config = data(0), TrainingConfig(epochs=1, batch_size=16)
    trained = [
        dict(train_stages(MLP, [x] * n, [y] * n, [1, 2][:n], config, total=9, common_order=order))[9]
        for n, order in ((2, 5), (1, 5), (1, 6))
    ]
    for together, alone, other in zip(*(state.values() for state in trained), strict=True):
        torch.testing.assert_close(together[0], alone[0], rtol=1e-5, atol=1e-6)
        assert not other[0].allclose(alone[0], atol=1e-3)


def test_bytes_are_scaled() -> None:
    x, y = torch.randint(256, (60, 6), dtype=torch.uint8), torch.arange(60) % 3
    config = TrainingConfig(epochs=2, batch_size=16)
    trained = [train_many(MLP, [values], [y], [1], config) for values in (x, x / 255)]
    assert all(trained[0][name].equal(value) for name, value in trained[1].items())
    assert accuracies(MLP, trained[0], [x], [y]).equal(accuracies(MLP, trained[0], [x / 255], [y]))


def test_seeds_depend_on_every_part() -> None:
    seeds = {seed_of(*parts) for parts in ((1, "a"), (1, "b"), (2, "a"), ("1a",), ("1", "a", ""), (1, "a", 0))}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, "a") == seed_of("1", "a")


# data sources


def test_examples_are_split_once_and_in_equal_shares() -> None:
    source = load_source("sklearn-digits", 0.15, 0.25, 7)
    assert len(source.x) == 1797
    assert source.x[0].numel() == 64
    assert 0 <= source.x.min() < source.x.max() == 1
    for part, share in ((TRAIN, 0.6), (VAL, 0.15), (TEST, 0.25)):
        for c in range(10):
            found = (source.part[source.y == c] == part).float().mean().item()
            assert found == pytest.approx(share, abs=0.01), "every class has its share of every part"
    assert source.part.equal(load_source("sklearn-digits", 0.15, 0.25, 7).part)
    assert not source.part.equal(load_source("sklearn-digits", 0.15, 0.25, 8).part)


def test_unknown_sources_and_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'mnist'.*sklearn-digits"):
        load_source("mnist", 0.1, 0.1, 0)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("recipe: nothing\n")
    with pytest.raises(UsageError, match=r"'nothing'.*class_subsets"):
        load_recipe(recipe)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks.classes=11", "has 10 classes"),
        ("tasks.held_out=60", "cannot hold out"),
        ("tasks.heldout=6", "held_out"),
        ("data.test=0.9", "data"),
        ("training.lr=-1", r"training\.lr"),
    ],
)
def test_bad_recipes_leave_no_zoo(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(RECIPE, tmp_path / "zoo", [*FEW, override])
    assert not (tmp_path / "zoo").exists()


# building


def test_a_built_zoo_holds_out_whole_tasks_and_keeps_everything(tiny_zoo: Path) -> None:
    with Zoo.open(tiny_zoo) as built:
        records = built.records()
        assert len(records) == len({record.lineage for record in records}) == len({r.blob for r in records}) == 90
        check_splits(records)
        tasks = {task.name: task for task in built.tasks()}
        assert [len(built.tasks(split)) for split in ("train", "val", "test")] == [39, 3, 3]
        assert all(record.task and tasks[record.task].split == record.split for record in records)
        assert built.verify() == []
        assert built.failures() == {}
        images = built.dataset("sklearn-digits")
        record = records[11]
        task = tasks[record.task or ""]
        x, y = TaskData.select(images, task.classes).part(VAL)
        weights = built.weights(record)
        accuracy = (logits(weights.layout.config["architecture"], weights.tensors, x).argmax(1) == y).float().mean()
        assert record.metrics["val_accuracy"] == pytest.approx(accuracy.item(), abs=1e-5)
        assert set(record.metrics) == {"train_accuracy", "val_accuracy"}, "test images are not for building"


def test_an_interrupted_build_ends_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo.build, "GROUP", 16)
    whole = build(RECIPE, tmp_path / "whole", FEW)
    assert (whole.added, whole.skipped, whole.failed, whole.total) == (45, 0, 0, 45)

    calls: list[tuple[str, int, int]] = []

    def stop(stage: str, done: int, total: int) -> None:
        calls.append((stage, done, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(RECIPE, tmp_path / "stopped", FEW, stop)
    assert calls == [("train networks", 16, 45)]
    with Zoo.open(tmp_path / "stopped") as stopped:
        assert len(stopped) == 16
        assert stopped.verify() == []
    rest = build(RECIPE, tmp_path / "stopped", FEW)
    assert (rest.added, rest.skipped, rest.failed, rest.total) == (29, 16, 0, 45)
    with Zoo.open(tmp_path / "whole") as one, Zoo.open(tmp_path / "stopped") as two:
        assert [record.id for record in one] == [record.id for record in two]
        assert [record.metrics for record in one] == [record.metrics for record in two]
    nothing = build(RECIPE, tmp_path / "stopped", FEW)
    assert (nothing.added, nothing.skipped) == (0, 45)


def test_a_build_that_dies_before_its_first_network_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for method in ("put_dataset", "put_tasks", "put_meta"):
        with monkeypatch.context() as patch:
            patch.setattr(Zoo, method, stop)
            with pytest.raises(KeyboardInterrupt):
                build(RECIPE, tmp_path / "zoo", FEW)
    assert build(RECIPE, tmp_path / "zoo", FEW).added == 45


def test_other_settings_on_the_same_folder_are_refused(tiny_zoo: Path) -> None:
    with Zoo.open(tiny_zoo) as built:
        before = [record.id for record in built]
    for override in ("training.epochs=5", "seed=1", "members_per_task=3"):
        with pytest.raises(UsageError, match="another recipe or other settings"):
            build(RECIPE, tiny_zoo, [*TINY_RECIPE, override])
    with Zoo.open(tiny_zoo) as built:
        assert [record.id for record in built] == before


def test_networks_that_diverge_are_recorded_as_failures(tmp_path: Path) -> None:
    report = build(RECIPE, tmp_path / "zoo", [*FEW, "training.lr=1e30", "training.weight_decay=1e9"])
    assert report.failed == 45
    assert (report.added, report.total) == (0, 0)
    with Zoo.open(tmp_path / "zoo") as built:
        failures = built.failures()
    assert len(failures) == 45
    assert all("diverged" in reason for reason in failures.values())
    again = build(RECIPE, tmp_path / "zoo", [*FEW, "training.lr=1e30", "training.weight_decay=1e9"])
    assert again.failed == 45, "a rerun must not hide what failed"


def test_a_recipe_may_train_several_shapes_on_every_task(tmp_path: Path) -> None:
    shapes = ("network.hidden=[[3], [3, 2]]", "tasks.held_out=1", "tasks.validation=1", "tasks.classes=9")
    build(RECIPE, tmp_path / "zoo", [*FEW, *shapes])
    with Zoo.open(tmp_path / "zoo") as zoo:
        records = zoo.records()
        check_splits(records, whole_tasks=True)
        sizes = {tuple(record.layout.config["architecture"]["sizes"]) for record in records}
        assert sizes == {(64, 3, 9), (64, 3, 2, 9)}
        assert len(records) == 20
        assert {record.lineage.split("/")[-2] for record in records if record.lineage} == {"3", "3-2"}
    again = build(RECIPE, tmp_path / "zoo", [*FEW, *shapes])
    assert (again.added, again.skipped) == (0, 20)
