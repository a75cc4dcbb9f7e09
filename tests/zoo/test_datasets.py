"""Members and examples: right labels, right part, no leaks between train, validation and test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.zoo.samples import adapter
from zoo.datasets import ExampleBank, Examples, bank_of, load_groups, load_members, reference_of
from zoo.errors import BadArtefact, UsageError
from zoo.kinds.dense import from_state_dict
from zoo.networks import architecture_of, logits_many
from zoo.tasks import TaskData
from zoo.types import Task
from zoo.zoo import Zoo

TASKS = [Task(f"t{i}", "", "data", c, tuple(map(str, c)), "train") for i, c in enumerate([(0, 3), (4, 1), (2, 4)])]


def dataset(seed: int = 0, n: int = 400) -> dict[str, Tensor]:
    """Every input is unique and says its own class, part and number, so that a leak is seen in the value."""
    generator = torch.Generator().manual_seed(seed)
    y, part = torch.randint(5, (n,), generator=generator), torch.randint(3, (n,), generator=generator)
    return {"x": torch.stack([y.float(), part.float(), 1.0 + torch.arange(n)], 1), "y": y, "part": part}


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("shots", [1, 4, 10_000])
def test_support_is_distinct_and_of_the_right_class_and_part(shots: int, part: int) -> None:
    bank = ExampleBank(dataset(), TASKS, part)
    tasks = torch.tensor([2, 0, 1, 0, 2])
    support = bank.support(tasks, shots, random())
    for row, task in enumerate(tasks.tolist()):
        for c, label in enumerate(TASKS[task].classes):
            x = support.x[row, c][support.mask[row, c]]
            available = int(((dataset()["y"] == label) & (dataset()["part"] == part)).sum())
            assert len(x) == min(shots, available)
            assert len(x[:, 2].unique()) == len(x), "an example was drawn twice"
            assert (x[:, 0] == label).all()
            assert (x[:, 1] == part).all()
            assert (support.x[row, c][~support.mask[row, c]] == 0).all()


@pytest.mark.parametrize("part", [0, 1, 2])
def test_queries_have_the_label_of_their_class_in_the_task(part: int) -> None:
    x, y = ExampleBank(dataset(), TASKS, part).queries(torch.tensor([1, 0, 2]), 200, random())
    classes = torch.tensor([TASKS[i].classes for i in (1, 0, 2)])
    assert x[..., 0].equal(classes.gather(1, y).float())
    assert (x[..., 1] == part).all()
    assert all(0.35 < row.float().mean() < 0.65 for row in y), "classes are drawn alike"
    assert len(x[0, :, 2].unique()) > 30, "examples of a class are drawn alike"


@pytest.mark.parametrize("part", [0, 1, 2])
def test_all_examples_of_a_task_are_those_of_its_selection(part: int) -> None:
    data = dataset()
    bank = ExampleBank(data, TASKS, part)
    for i, task in enumerate(TASKS):
        x, y = bank.all(i)
        expected_x, expected_y = TaskData.select(data, task.classes).part(part)
        order = expected_x[:, 2].argsort()
        assert x[x[:, 2].argsort()].equal(expected_x[order])
        assert y[x[:, 2].argsort()].equal(expected_y[order])


def test_renamed_classes_keep_examples_and_labels_together() -> None:
    bank, tasks = ExampleBank(dataset(), TASKS, 0), torch.tensor([0, 1, 1, 2])
    order = torch.tensor([[1, 0], [0, 1], [1, 0], [1, 0]])
    classes = bank.classes[tasks].gather(1, order)
    support = bank.support(tasks, 3, random(), order)
    assert (support.x[..., 0] == classes[..., None]).all()
    x, y = bank.queries(tasks, 40, random(), order)
    assert x[..., 0].equal(classes.gather(1, y).float())
    same = torch.arange(2).expand(4, -1)
    assert bank.support(tasks, 3, random(), same).x.equal(bank.support(tasks, 3, random()).x)


def test_identity_is_that_of_classes_in_order() -> None:
    bank, tasks = ExampleBank(dataset(), [*TASKS, TASKS[0]], 0), torch.tensor([0, 1, 2, 3])
    plain = bank.identity(tasks).tolist()
    assert plain[0] == plain[3]
    assert len(set(plain)) == 3
    swapped = bank.identity(tasks, torch.tensor([[1, 0]] * 4)).tolist()
    assert not set(swapped) & set(plain)


def test_halves_share_nothing_and_miss_nothing() -> None:
    whole, first, second = (ExampleBank(dataset(), TASKS, 1, half=half).all(1)[0] for half in (None, 0, 1))
    numbers = [set(x[:, 2].tolist()) for x in (whole, first, second)]
    assert not numbers[1] & numbers[2]
    assert numbers[1] | numbers[2] == numbers[0]


def test_draws_depend_on_the_generator_alone() -> None:
    bank = ExampleBank(dataset(), TASKS, 0)
    tasks = torch.tensor([0, 1])
    first = bank.support(tasks, 5, random(1))
    torch.manual_seed(99)
    assert bank.support(tasks, 5, random(1)).x.equal(first.x)
    assert not bank.support(tasks, 5, random(2)).x.equal(first.x)


def test_a_class_without_examples_is_refused() -> None:
    for missing in (0, 4):  # also the last class, of which the part knows nothing at all
        data = dataset()
        data["part"][data["y"] == missing] = 0
        with pytest.raises(UsageError, match="no example in this part"):
            ExampleBank(data, TASKS, 1)
    data["part"][:] = 0
    with pytest.raises(UsageError, match="no example in this part"):
        ExampleBank(data, TASKS, 1)


def test_tasks_of_several_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="different numbers of classes"):
        ExampleBank(dataset(), [*TASKS, Task("t", "", "data", (0, 1, 2), ("0", "1", "2"), "train")], 0)


def test_selection_counts_the_classes_of_the_task() -> None:
    chosen = TaskData.select(dataset(), (4, 1))
    assert chosen.x[:, 0].equal(torch.tensor([4.0, 1.0])[chosen.y])
    assert len(chosen.x) == int(((dataset()["y"] == 4) | (dataset()["y"] == 1)).sum())


def test_grouped_examples_come_back_as_the_list() -> None:
    y = torch.tensor([1, 0, 2, 1, 1, 2])
    x = torch.randn(6, 2, 3)
    examples = Examples.group(x, y)
    assert examples.x.shape == (1, 3, 3, 2, 3)
    assert examples.mask[0].sum(1).tolist() == [1, 3, 2]
    flat_x, flat_y = examples.flat()
    order = y.argsort(stable=True)
    assert flat_x.equal(x[order])
    assert flat_y.equal(y[order])
    assert Examples.group(x, y, 3).x.equal(examples.x)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 2], None, "class 1 of 3 has no example"),
        ([0, 1], 3, "class 2 of 3 has no example"),
        ([0, 3], 2, r"must be 0 .. 1, got 0 .. 3"),
        ([-1, 0], None, r"must be 0 .. 0, got -1 .. 0"),
        ([], None, "no examples"),
    ],
)
def test_labels_that_make_no_task_are_refused(labels: list[int], classes: int | None, message: str) -> None:
    y = torch.tensor(labels, dtype=torch.int64)
    with pytest.raises(UsageError, match=message):
        Examples.group(torch.randn(len(labels), 4), y, classes)


# members


def test_members_are_the_networks_of_the_split(tiny_zoo: Path) -> None:
    with Zoo.open(tiny_zoo) as zoo:
        for split, count in (("train", 78), ("val", 6), ("test", 6)):
            members = load_members(zoo, split)
            assert len(members) == count
            assert {record.split for record in members.records} == {split}
            for i, weights in enumerate(members.weights()):
                stored = zoo.weights(members.records[i])
                assert weights.layout == stored.layout
                assert all(weights.tensors[name].equal(value) for name, value in stored.tensors.items())


def test_aligned_members_compute_the_same(tiny_zoo: Path) -> None:
    with Zoo.open(tiny_zoo) as zoo:
        members = load_members(zoo, "val")
        reference = reference_of(load_members(zoo, "train"))
    aligned = members.aligned(reference)
    x = torch.randn(1, 10, 64).expand(len(members), -1, -1)
    architecture = architecture_of(members.layout)
    before, after = (logits_many(architecture, m.tensors, x) for m in (members, aligned))
    torch.testing.assert_close(after, before)
    name = "layers.0.weight"
    spread = [(m.tensors[name] - reference[name]).square().mean().item() for m in (members, aligned)]
    assert spread[1] < spread[0]


def test_a_zoo_that_cannot_be_stacked_is_refused(tmp_path: Path) -> None:
    with Zoo.open(tmp_path / "zoo", create=True) as zoo:
        with pytest.raises(BadArtefact, match="no networks in the split 'train'"):
            load_members(zoo, "train")
        for size in (2, 3):
            zoo.add(from_state_dict({"a.weight": torch.randn(size, size)}), split="train")
        with pytest.raises(BadArtefact, match="holds 2 layouts"):
            load_members(zoo, "train")


def test_the_order_in_which_an_adapter_lists_its_modules_is_no_layout(tmp_path: Path) -> None:
    listed, turned = {"target_modules": ["query", "value"]}, {"target_modules": ["value", "query"]}
    with Zoo.open(tmp_path / "zoo", create=True) as zoo:
        for seed, (split, config) in enumerate(
            (("train", listed), ("train", turned), ("val", turned), ("val", {**turned, "lora_alpha": 99}))
        ):
            zoo.add(adapter(seed, **config), split=split, task=str(seed))
        (train,), val = load_groups(zoo, "train"), load_groups(zoo, "val")
    assert len(train) == 2
    assert [len(one) for one in val] == [1, 1], "another scale is another function"
    assert train.layout.fingerprint in {one.layout.fingerprint for one in val}
    for i, record in enumerate(train.records):
        wanted = adapter(int(record.task or -1)).tensors
        assert all(value.equal(wanted[name]) for name, value in train.one(i).items())


def test_tasks_of_several_data_sets_share_a_bank(tmp_path: Path) -> None:
    def data(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"x": x, "y": y, "part": torch.zeros(len(y), dtype=torch.long)}

    with Zoo.open(tmp_path / "zoo", create=True) as zoo:
        y = torch.arange(6) % 3
        for name, value in (("a", 10.0), ("b", 20.0)):
            zoo.put_dataset(name, data(value + y[:, None].float(), y), description="")
        zoo.put_dataset("c", data(torch.zeros(2, 5), torch.arange(2)), description="")
        tasks = [
            Task(f"{name}{classes}", "", name, classes, ("first", "second"), "train")
            for name, classes in (("b", (2, 0)), ("a", (0, 1)), ("a", (2, 0)))
        ]
        bank = bank_of(zoo, tasks, 0)
        for number, wanted in enumerate(([22.0, 20.0], [10.0, 11.0], [12.0, 10.0])):
            x, labels = bank.all(number)
            assert x[labels == 0].unique().tolist() == wanted[:1]
            assert x[labels == 1].unique().tolist() == wanted[1:]
        assert len(set(bank.identity(torch.arange(3)).tolist())) == 3, "equal labels of two data sets are two tasks"
        with pytest.raises(BadArtefact, match="a, c have examples of different forms"):
            bank_of(zoo, [tasks[1], Task("c", "", "c", (0, 1), ("0", "1"), "train")], 0)
        with pytest.raises(BadArtefact, match="no tasks"):
            bank_of(zoo, [], 0)


def test_images_are_kept_as_bytes_and_drawn_as_fractions() -> None:
    floats = dataset()
    floats["x"] = floats["x"] * 3 % 256
    bank = ExampleBank({**floats, "x": floats["x"].to(torch.uint8)}, TASKS, 0)
    wanted = ExampleBank({**floats, "x": floats["x"] / 255}, TASKS, 0)
    assert bank.x.dtype == torch.uint8
    tasks = torch.tensor([0, 2])
    assert bank.support(tasks, 3, random()).x.equal(wanted.support(tasks, 3, random()).x)
    assert bank.queries(tasks, 9, random())[0].equal(wanted.queries(tasks, 9, random())[0])
    assert bank.all(1)[0].equal(wanted.all(1)[0])
    view = TaskData.select({**floats, "x": floats["x"].to(torch.uint8)}, TASKS[0].classes)
    assert view.stored(1)[0].dtype == torch.uint8
    assert view.part(1)[0].equal(view.stored(1)[0].float() / 255)
