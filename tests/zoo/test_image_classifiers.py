"""Zoos of small convolutional networks: sampled settings, checkpoints, groups, several data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zoo.build import build, load_recipe
from zoo.build.holdout import HoldoutConfig, assign
from zoo.build.registry import make_recipe
from zoo.config import dump_config
from zoo.datasets import bank_of
from zoo.errors import UsageError
from zoo.networks import logits
from zoo.split import check_splits
from zoo.tasks import VAL, TaskData
from zoo.zoo import Zoo

CONFIGS = Path(__file__).parent.parent.parent / "configs"
RECIPE = CONFIGS / "cnn-images.yaml"
TINY = (
    "network={channels: [4, 3], kernel: [3, 2], pool: [2, 1], hidden: [6], activation: tanh}",
    "members_per_task=3",
    "training={epochs: 8, batch_size: 16}",
    "sampled.lr=[0.01, 0.05]",
    "keep_epochs=[1]",
    "group=2",
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides for two small data sets: bright corners in grey, and in colour."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, shape, classes in (("grey", (10, 10), 3), ("colour", (10, 10, 3), 2)):
        y = np.arange(240) % classes
        x = rng.integers(0, 90, (240, *shape), dtype=np.uint8)
        for i, label in enumerate(y):
            x[i, :4, 3 * label : 3 * label + 3] += 140
        arrays = {"train_x": x[:200], "train_y": y[:200], "test_x": x[200:], "test_y": y[200:]}
        np.savez(folder / f"{name}.npz", **arrays)
    return (*TINY, f"data={{sources: [{folder}], size: 8}}", "tasks={validation: [grey]}")


@pytest.fixture(scope="module")
def built(recipe: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "zoo"
    report = build(RECIPE, path, recipe)
    assert (report.added, report.failed, report.total) == (6, 0, 12)
    return path


def test_members_differ_in_start_and_settings_and_keep_checkpoints(built: Path) -> None:
    with Zoo.open(built) as zoo:
        records = zoo.records(task="grey")
        check_splits(zoo.records())
        assert len({record.blob for record in zoo}) == 12
        assert sorted((r.lineage, r.metrics["epoch"]) for r in records) == [
            (f"grey/seed{k}", epoch) for k in range(3) for epoch in (1.0, 8.0)
        ]
        rates = {record.lineage: record.metrics["lr"] for record in zoo}
        assert len(set(rates.values())) == 6
        assert all(0.01 <= rate <= 0.05 for rate in rates.values())
        assert {(r.split, r.dataset) for r in zoo} == {("val", "grey"), ("train", "colour")}
        assert max(r.metrics["val_accuracy"] for r in records) > 0.6
        assert zoo.failures() == {}


def test_images_are_stored_as_bytes_and_metrics_can_be_measured_again(built: Path) -> None:
    with Zoo.open(built) as zoo:
        for name, shape in (("grey", (240, 8, 8)), ("colour", (240, 3, 8, 8))):
            stored = zoo.dataset(name)
            assert (str(stored["x"].dtype), tuple(stored["x"].shape)) == ("torch.uint8", shape)
            record = zoo.records(task=name)[3]
            x, y = TaskData.select(stored, zoo.task(name).classes).part(VAL)
            weights = zoo.weights(record)
            found = logits(weights.layout.config["architecture"], weights.tensors, x).argmax(1)
            assert (found == y).float().mean().item() == pytest.approx(record.metrics["val_accuracy"], abs=1e-6)
            bank = bank_of(zoo, [zoo.task(name)], VAL)
            assert bank.all(0)[0].max() <= 1


def test_an_interrupted_build_ends_like_any_other(built: Path, recipe: tuple[str, ...], tmp_path: Path) -> None:
    def stop(_: str, done: int, total: int) -> None:
        assert total == 6
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(RECIPE, tmp_path / "zoo", recipe, stop)
    rest = build(RECIPE, tmp_path / "zoo", recipe)
    assert (rest.added, rest.skipped) == (3, 3)
    with Zoo.open(built) as one, Zoo.open(tmp_path / "zoo") as two:
        assert [(r.id, r.metrics) for r in one] == [(r.id, r.metrics) for r in two]


def test_groups_stay_within_a_data_set(recipe: tuple[str, ...]) -> None:
    plan = make_recipe(dump_config(load_recipe(RECIPE, recipe)))
    assert [[lineage for lineage, _ in group] for group in plan.groups(100)] == [
        ["colour/seed0", "colour/seed1"],
        ["colour/seed2"],
        ["grey/seed0", "grey/seed1"],
        ["grey/seed2"],
    ]


def test_the_published_sizes_come_out() -> None:
    plan = make_recipe(
        dump_config(load_recipe(CONFIGS / "cnn-digits.yaml", ["members_per_task=1", "training.epochs=1"]))
    )
    (member,) = plan.train(plan.members())
    assert member.weights is not None
    assert member.weights.layout.numel == 2464


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampled.lr=[0.1, 0.01]", r"sampled\.lr"),
        ("keep_epochs=[9]", "after epoch 8"),
        ("data.sources=[nothing.npz]", "unknown data set"),
        ("data.size=3", "3 x 3 do not fit"),
        ("tasks.held_out=[mnist]", "'mnist' is no task"),
        ("tasks.held_out=2", "cannot hold out"),
        ("network.kernel=[3]", "kernel"),
    ],
)
def test_bad_recipes_leave_no_zoo(recipe: tuple[str, ...], tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(RECIPE, tmp_path / "zoo", [*recipe, override])
    assert not (tmp_path / "zoo").exists()


def test_holding_out_by_name_and_number() -> None:
    names = [f"t{i}" for i in range(10)]
    splits = assign(names, HoldoutConfig(held_out=["t3"], validation=2), 0)
    assert splits["t3"] == "test"
    assert sorted(splits.values()) == ["test", *["train"] * 7, "val", "val"]
    with pytest.raises(UsageError, match="held out twice"):
        assign(names, HoldoutConfig(held_out=["t3"], validation=["t3"]), 0)
