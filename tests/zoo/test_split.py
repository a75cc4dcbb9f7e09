"""Splits hold out whole tasks, depend on nothing but names and seed, and never separate relatives."""

from __future__ import annotations

from collections import Counter

import pytest

from zoo.errors import BadArtefact, UsageError
from zoo.split import check_splits, split_tasks
from zoo.types import Layout, Record

NAMES = [f"task {i}" for i in range(40)]
LAYOUT = Layout("dense", None, ())


def record(**values: str | None) -> Record:
    """A record of its own task, lineage and blob, except where given."""
    number = str(next(COUNTER))
    defaults = {"id": number, "blob": "b" + number, "task": "t" + number, "lineage": "l" + number, "split": "train"}
    return Record(layout=LAYOUT, **{**defaults, **values})  # pyright: ignore[reportArgumentType]


COUNTER = iter(range(1_000_000))


@pytest.mark.parametrize(("test", "val"), [(0, 0), (1, 0), (5, 3), (20, 19)])
def test_sizes_are_as_asked_and_every_task_has_one_split(test: int, val: int) -> None:
    splits = split_tasks(NAMES, test=test, val=val, seed=1)
    assert set(splits) == set(NAMES)
    found = Counter(splits.values())
    assert (found["test"], found["val"], found["train"]) == (test, val, 40 - test - val)


def test_order_of_names_does_not_matter_and_the_seed_does() -> None:
    splits = split_tasks(NAMES, test=10, val=5, seed=1)
    assert split_tasks(NAMES[::-1], test=10, val=5, seed=1) == splits
    others = [split_tasks(NAMES, test=10, val=5, seed=seed) for seed in range(2, 12)]
    assert all(other != splits for other in others)
    drawn = Counter(name for other in others for name, split in other.items() if split == "test")
    assert len(drawn) > 25, "every task must have a chance to be held out"


@pytest.mark.parametrize(("test", "val"), [(40, 0), (20, 20), (-1, 1), (41, -5)])
def test_impossible_sizes_are_refused(test: int, val: int) -> None:
    with pytest.raises(UsageError, match="cannot hold out"):
        split_tasks(NAMES, test=test, val=val, seed=0)


def test_repeated_names_are_refused() -> None:
    with pytest.raises(UsageError, match="not distinct"):
        split_tasks(["a", "b", "a"], test=1, val=0, seed=0)


@pytest.mark.parametrize("what", ["task", "lineage", "blob"])
@pytest.mark.parametrize("splits", [("train", "test"), ("val", "train"), ("test", "val")])
def test_relatives_that_cross_splits_are_found(what: str, splits: tuple[str, str]) -> None:
    relatives = [record(**{what: "same", "split": split}) for split in splits]
    strangers = [record(split=split) for split in ("train", "val", "test")]
    for order in ([*strangers, *relatives], [relatives[1], *strangers, relatives[0]]):
        with pytest.raises(BadArtefact, match=f"{what} 'same' occurs in the splits"):
            check_splits(order)


@pytest.mark.parametrize("what", ["task", "lineage", "blob"])
def test_relatives_in_one_split_or_in_none_are_fine(what: str) -> None:
    for splits in (("val", "val"), (None, "test"), (None, None)):
        check_splits(record(**{what: "same", "split": split}) for split in splits)


def test_unknown_origin_makes_no_relatives() -> None:
    check_splits((record(task="same", split=split) for split in ("train", "val")), whole_tasks=False)
    check_splits(record(task=None, lineage=None, split=split) for split in ("train", "val", "test"))
