"""Twins: equal weights are recognised whatever gauge, order of hidden units or order of names they come in."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import torch

from tests.zoo.samples import CONFIG, adapter, factors, same
from zoo import kinds
from zoo.architectures import family
from zoo.catalog import row_digest
from zoo.errors import BadArtefact, UsageError
from zoo.kinds import dense, lora
from zoo.migrations import MIGRATIONS
from zoo.networks import logits
from zoo.query import MetricCondition
from zoo.symmetry import scramble
from zoo.twins import DESCRIPTION, SYMMETRY, TENSORS, Twin, sketch
from zoo.types import Weights
from zoo.unit_order import in_order
from zoo.zoo import Zoo

MLP = {"family": "mlp", "sizes": [5, 7, 6, 3], "activation": "tanh"}


@pytest.fixture
def zoo(tmp_path: Path):
    with Zoo.open(tmp_path / "zoo", create=True) as opened:
        yield opened


def network(seed: int, architecture: dict = MLP) -> Weights:
    torch.manual_seed(seed)
    return dense.from_state_dict(family(architecture).build(architecture).state_dict(), architecture=architecture)


def scrambled(weights: Weights, seed: int, architecture: dict = MLP) -> Weights:
    groups = family(architecture).groups(architecture)
    state = scramble(weights.tensors, groups, torch.Generator().manual_seed(seed))
    return dense.from_state_dict(state, architecture=architecture)


def regauged(seed: int, gauge: torch.Tensor, **config: object) -> Weights:
    tensors = factors(seed)
    for a, b in lora.pairs(tensors):
        tensors[a], tensors[b] = torch.linalg.inv(gauge) @ tensors[a], tensors[b] @ gauge
    return lora.from_state_dict(tensors, {**CONFIG, **config})


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_hidden_units_have_one_order(activation: str) -> None:
    architecture = {**MLP, "activation": activation}
    weights = network(0, architecture)
    one = kinds.canonical(weights)
    x = torch.randn(4, 5)
    torch.testing.assert_close(logits(architecture, one.tensors, x), logits(architecture, weights.tensors, x))
    assert same(dict(kinds.canonical(one).tensors), dict(one.tensors))
    for seed in range(5):
        assert same(dict(kinds.canonical(scrambled(weights, seed, architecture)).tensors), dict(one.tensors))
    assert not same(dict(kinds.canonical(network(1, architecture)).tensors), dict(one.tensors))


def test_dead_and_equal_units_have_an_order() -> None:
    state = {name: torch.zeros_like(value) for name, value in network(0).tensors.items()}
    found = in_order(state, family(MLP).groups(MLP))
    assert same(found, state)


@pytest.mark.parametrize(
    "architecture",
    [
        {"family": "none"},
        {"family": ["x"]},
        {**MLP, "sizes": [5, 8, 6, 3]},
        {**MLP, "sizes": [5, 7]},
        {"sizes": 1},
    ],
)
def test_networks_of_unknown_or_wrong_architecture_stay(architecture: dict) -> None:
    weights = dense.from_state_dict(dict(network(0).tensors), architecture=architecture)
    assert kinds.canonical(weights) is weights
    assert sketch(weights) is None


def test_twins_are_found_in_the_zoo(zoo: Zoo) -> None:
    gauge = torch.tensor([[2.0, 1.0], [0.0, 0.5]])
    first = [zoo.add(weights)[0] for weights in (network(0), adapter(0), network(1), adapter(1))]
    reordered = dense.from_state_dict(dict(reversed(network(1).tensors.items())), architecture=MLP)
    again = [
        zoo.add(w)[0] for w in (scrambled(network(0), 3), regauged(0, gauge), adapter(1, task_type="X"), reordered)
    ]
    assert [zoo.twin(record) for record in first] == [None] * 4
    expected = [
        Twin(again[0].id, first[0].id, SYMMETRY),
        Twin(again[1].id, first[1].id, SYMMETRY),
        Twin(again[2].id, first[3].id, TENSORS),
        Twin(again[3].id, first[2].id, SYMMETRY),
    ]
    assert [zoo.twin(record) for record in again] == expected
    assert zoo.twins() == expected
    zoo.set_splits({record.id: "train" for record in first})
    assert zoo.twins() == expected
    third = zoo.add(scrambled(network(0), 4))[0]
    assert zoo.twins()[-1] == Twin(third.id, first[0].id, SYMMETRY)
    assert zoo.verify() == []


def test_what_changes_the_function_makes_no_twin(zoo: Zoo) -> None:
    gauge = torch.eye(2) * 2
    zoo.add(adapter(0))
    for config in ({"lora_alpha": 5}, {"use_rslora": True}, {"base_model_name_or_path": "org/other"}):
        found = zoo.twin(zoo.add(regauged(0, gauge, **config))[0])
        assert found is None or found.how == DESCRIPTION
    slightly = {name: tensor * (1 + 1e-4 * ("lora_A" in name)) for name, tensor in factors(0).items()}
    assert zoo.twin(zoo.add(lora.from_state_dict(slightly, CONFIG))[0]) is None
    same_norm = factors(0)
    for name in same_norm:
        same_norm[name] = same_norm[name].flip(1) if "lora_A" in name else same_norm[name]
    assert sketch(lora.from_state_dict(same_norm, CONFIG)) is not None
    assert zoo.twin(zoo.add(lora.from_state_dict(same_norm, CONFIG))[0]) is None
    assert zoo.twin(zoo.add(regauged(0, gauge, peft_version="9", target_modules=["a"]))[0]) is not None
    assert len(zoo.twins()) == 1


def test_twins_with_nearly_equal_singular_values() -> None:
    u, v = torch.linalg.qr(torch.randn(6, 2))[0], torch.linalg.qr(torch.randn(6, 2))[0]
    a, b = v.T.contiguous(), u * torch.tensor([1.0, 1.0 + 1e-6])
    turn = torch.linalg.qr(torch.randn(2, 2))[0]
    one, two = (
        lora.from_state_dict({"m.query.lora_A.weight": x, "m.query.lora_B.weight": y}, CONFIG)
        for x, y in ((a, b), (turn.T @ a, b @ turn))
    )
    assert kinds.get("lora").same_function(one, two)


def test_a_zoo_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    with Zoo.open(tmp_path / "zoo", create=True) as zoo:
        records = [zoo.add(w, task="t")[0] for w in (adapter(0), regauged(0, torch.eye(2) * 2))]
    database = sqlite3.connect(tmp_path / "zoo/catalog.sqlite")
    rows = database.execute("SELECT * FROM records").fetchall()
    columns = [row[1] for row in database.execute("PRAGMA table_info(records)")]
    layouts = database.execute("SELECT * FROM layouts").fetchall()
    for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        database.execute(f"DROP TABLE {name}")
    for statement in MIGRATIONS[0]:
        database.execute(statement)
    old = columns[:14]
    database.executemany(f"INSERT INTO layouts VALUES ({', '.join('?' * 5)})", layouts)
    for row in rows:
        values = tuple(row[columns.index(name)] for name in old)
        database.execute(
            f"INSERT INTO records VALUES ({', '.join('?' * 15)})", (*values, row_digest("records", values))
        )
    database.execute("PRAGMA user_version = 1")
    database.commit()
    database.close()
    with Zoo.open(tmp_path / "zoo") as zoo:
        assert zoo.verify() == []
        assert [r.id for r in zoo] == sorted(r.id for r in records)
        assert zoo.twins() == [Twin(records[1].id, records[0].id, SYMMETRY)]
        record, _ = zoo.add(adapter(5), dataset="d", revision="r")
        assert (zoo.get(record.id).dataset, zoo.get(record.id).revision) == ("d", "r")
        assert zoo.records(dataset="d") == [record]
        assert zoo.verify() == []
    database = sqlite3.connect(tmp_path / "zoo/catalog.sqlite")
    for column, value in (("dataset", None), ("revision", "x"), ("twin_number", 1.0)):
        (before,) = database.execute(f"SELECT {column} FROM records WHERE id = ?", (record.id,)).fetchone()
        database.execute(f"UPDATE records SET {column} = ? WHERE id = ?", (value, record.id))
        database.commit()
        with Zoo.open(tmp_path / "zoo") as zoo:
            assert zoo.verify() == [f"catalogue: row {record.id!r} of records is damaged"]
        database.execute(f"UPDATE records SET {column} = ? WHERE id = ?", (before, record.id))
        database.commit()
    database.close()


def test_conditions_on_metrics(zoo: Zoo) -> None:
    for seed, metrics in enumerate(({"acc": 0.5}, {"acc": 0.9, "loss": 1}, {"loss": 0.1})):
        zoo.add(adapter(seed), lineage=str(seed), metrics=metrics)
    for conditions, expected in (
        (["acc>=0.5"], "01"),
        (["acc > .5"], "1"),
        (["loss<1"], "2"),
        (["acc!=0.5", "loss<=1e0"], "1"),
        (["acc=0.9"], "1"),
        (["acc==0.9"], "1"),
        (["other>0"], ""),
        ([], "012"),
    ):
        assert "".join(str(r.lineage) for r in zoo.records(metrics=conditions)) == expected
    for text in ("acc", "acc>", ">1", "acc>x", "acc>nan", "a>1>2", ""):
        with pytest.raises(UsageError, match="is no condition on a metric"):
            MetricCondition.parse(text)


def test_damaged_weights_are_named_when_twins_are_compared(zoo: Zoo) -> None:
    record = zoo.add(adapter(0))[0]
    other = zoo.add(regauged(0, torch.eye(2) * 2))[0]
    zoo.store.path(record.blob).unlink()
    with pytest.raises(BadArtefact, match="is missing"):
        zoo.twin(other)
