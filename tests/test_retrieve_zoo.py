"""Retrieval from real small zoos: views, filters before ranking, updates, calibration by measuring, job and command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from weightgen import cli, jobs
from weightgen.retrieve import Filters, Index, Query
from weightgen.retrieve.measure import Judge, measure_pairs, query_of
from zoo.build.encoder import EncoderConfig, TextEncoder
from zoo.build.text_tasks import load_text_task
from zoo.errors import UsageError
from zoo.tasks import TRAIN, TaskData
from zoo.types import Weights
from zoo.zoo import Zoo


@pytest.fixture
def networks(tiny_zoo: Path, text_encoder: Path, tmp_path: Path) -> Index:
    """Index of networks that tell two digits apart."""
    return Index.open(tiny_zoo, tmp_path / "index", encoder=str(text_encoder))


@pytest.fixture
def adapters(adapter_zoo: Path, text_encoder: Path, tmp_path: Path) -> Index:
    """Index of six adapters of a small encoder."""
    return Index.open(adapter_zoo, tmp_path / "index", encoder=str(text_encoder))


def digits(index: Index, number: int = 0) -> tuple[str, tuple[torch.Tensor, torch.Tensor]]:
    task = index.zoo.tasks()[number]
    return task.name, TaskData.select(index.zoo.dataset(task.dataset), task.classes).part(TRAIN)


def test_examples_find_the_networks_of_their_task(networks: Index) -> None:
    for number in (0, 10, 20):
        name, (x, y) = digits(networks, number)
        found = networks.search(examples=(x[::2], y[::2]), k=2)
        assert [hit.record.task for hit in found.hits] == [name, name]
        assert found.views == ("examples", "classes")
        assert not found.calibrated
        assert "not calibrated" in found.about_scores


def test_weights_find_their_twin_and_filters_come_first(networks: Index) -> None:
    record = next(iter(networks.records.values()))
    weights = networks.zoo.weights(record)
    assert networks.search(weights=weights, k=1).hits[0].record.id == record.id
    others = Filters(without_ids=frozenset({record.id}))
    assert networks.search(weights=weights, k=90, filters=others).hits[0].record.id != record.id
    # all that pass are found, although 60 others are nearer than the last of them
    few = Filters(split="val")
    found = networks.search(weights=weights, k=90, filters=few)
    assert {hit.record.split for hit in found.hits} == {"val"}
    assert len(found.hits) == found.considered == len(networks.zoo.records(split="val"))
    nothing = networks.search(weights=weights, filters=Filters(license="no such licence"))
    assert nothing.use_base
    assert nothing.considered == 0


def test_only_what_changed_is_made_again(tiny_zoo: Path, tmp_path: Path) -> None:
    copy = tmp_path / "zoo"
    shutil.copytree(tiny_zoo, copy)
    index = Index.open(copy)
    first, second, *_ = index.records.values()
    weights = index.zoo.weights(first)
    index.rank(Query(weights=weights))
    assert sorted(path.suffix for path in (copy / "retrieve").iterdir()) == [".json", ".safetensors"]
    made: list[tuple[int, int]] = []
    again = Index.open(copy, progress=lambda stage, done, total: made.append((done, total)))
    again.rank(Query(weights=weights))
    assert made == []
    again.zoo.remove(second.id)
    again.refresh()
    assert second.id not in {one.id for one in again.rank(Query(weights=weights), k=100)}
    shifted = {name: 2 * value for name, value in weights.tensors.items()}
    new, _ = again.zoo.add(Weights(weights.layout, shifted), task="new", lineage="new")
    again.refresh()
    assert new.id in {one.id for one in again.rank(Query(weights=weights), k=100)}
    damaged = copy / "retrieve" / "weights.json"
    damaged.write_text("{}")
    third = Index.open(copy)
    assert {one.id for one in third.rank(Query(weights=weights), k=2)} == {first.id, new.id}
    assert "made again" in third.notes[0]
    third.rebuild()
    assert not list((copy / "retrieve").iterdir())
    assert third.zoo.verify() == []


def test_texts_descriptions_and_labels_find_adapters(adapters: Index, text_tasks: dict[str, Path]) -> None:
    for name, path in text_tasks.items():
        task = load_text_task(path, 0.15, 0)
        texts = tuple(task.select(TRAIN)[0][:30])
        for query in (Query(task.description), Query(labels=task.label_texts), Query(texts=texts)):
            assert adapters.records[adapters.rank(query, k=1)[0].id].task == name
        found = adapters.search(Query(task.description, task.label_texts, texts), k=1)
        assert found.views == ("description", "labels", "texts")
        assert found.hits[0].record.task == name
    record = next(iter(adapters.records.values()))
    kinds = adapters.search(architecture="LORA adapter of rank 2", k=6)
    assert len(kinds.hits) == 6
    weights = adapters.zoo.weights(record)
    assert adapters.rank(Query(weights=weights), k=1)[0].cosines["weights"] == pytest.approx(1, abs=1e-4)
    with pytest.raises(UsageError, match="nothing is known"):
        adapters.search()
    with pytest.raises(UsageError, match="no record"):
        adapters.search(examples=(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])))


def test_texts_are_compared_with_descriptions_where_no_texts_are_stored(
    adapter_zoo: Path, text_encoder: Path, tmp_path: Path
) -> None:
    with Zoo.open(adapter_zoo) as zoo, Zoo.open(tmp_path / "bare", create=True) as bare:
        for record in zoo.records():
            bare.add(zoo.weights(record), task=record.task, description=record.description, lineage=record.lineage)
        index = Index.open(bare, encoder=str(text_encoder))
        found = index.search(texts=("the cat runs", "a dog sleeps"), k=1)
    assert found.views == ("texts",)


def test_adapters_without_data_are_measured_on_task_files(
    adapter_zoo: Path, text_encoder: Path, text_tasks: dict[str, Path], tmp_path: Path
) -> None:
    with Zoo.open(adapter_zoo) as zoo, Zoo.open(tmp_path / "bare", create=True) as bare:
        for record in zoo.records():
            bare.add(zoo.weights(record), task=record.task, description=record.description)
        index = Index.open(bare, encoder=str(text_encoder))
        given = [load_text_task(path, 0.15, 0) for path in text_tasks.values()]
        judge = Judge(bare, encoder=TextEncoder(EncoderConfig(name=str(text_encoder))))
        pairs = measure_pairs(index, per_task=2, given=given, judge=judge)
        stored = Index.open(adapter_zoo, tmp_path / "index", encoder=str(text_encoder))
        known = measure_pairs(stored, per_task=2, judge=Judge(stored.zoo, encoder=judge.encoder))
    assert {pair.task for pair in pairs} == set(text_tasks)
    assert all(index.records[pair.record].task != pair.task for pair in pairs)
    assert all(pair.strengths.keys() == {"description", "texts"} for pair in pairs)
    gains = {(pair.task, pair.record): pair.gain for pair in pairs}
    both = [(gains[key], pair.gain) for pair in known if (key := (pair.task, pair.record)) in gains]
    assert both
    assert all(one == pytest.approx(other) for one, other in both)
    folder = str(tmp_path / "tasks")
    with pytest.raises(UsageError, match="no records a task"):
        jobs.retrieve(tmp_path / "bare", description="x", calibrate_on=[folder])


def test_measured_pairs_calibrate_scores_and_lead_to_abstention(networks: Index) -> None:
    judge = Judge(networks.zoo, most=40)
    with pytest.raises(KeyboardInterrupt):
        measure_pairs(networks, per_task=4, judge=judge, progress=_stop_at(12))
    kept = networks.pairs()
    assert len({pair.task for pair in kept}) == 12
    pairs = measure_pairs(networks, per_task=4, judge=judge)
    assert pairs[: len(kept)] == kept
    tests = {task.name for task in networks.zoo.tasks() if task.split == "test"}
    assert not tests & {pair.task for pair in pairs}
    for pair in pairs:
        assert pair.same == (networks.records[pair.record].task == pair.task)
    found = networks.search(query_of(networks.zoo, networks.zoo.tasks()[0], 1), k=90, min_score=0.0)
    assert found.calibrated == ("pairs of" in found.about_scores)
    if found.calibrated:
        assert all(0 <= hit.score <= 1 for hit in found.hits)
    strict = networks.search(query_of(networks.zoo, networks.zoo.tasks()[0], 1), min_score=1.1)
    assert strict.use_base
    assert strict.best_dropped is not None


def _stop_at(number: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "calibrate" and done == number:
            raise KeyboardInterrupt

    return progress


def test_adapters_are_judged_on_the_encoder_they_belong_to(adapters: Index) -> None:
    task = adapters.zoo.tasks()[0]
    record = next(r for r in adapters.records.values() if r.task == task.name)
    score = Judge(adapters.zoo).scorer(task, record.layout.base_model)
    assert score(record) == pytest.approx(record.metrics["val_accuracy"], abs=1e-6)
    assert score(None) == pytest.approx(record.metrics["base_val_accuracy"], abs=1e-6)


def test_the_shared_space_of_a_generator_is_a_view(tiny_zoo: Path, tiny_generator: Path, tmp_path: Path) -> None:
    index = Index.open(tiny_zoo, tmp_path / "index", generator=tiny_generator)
    _, (x, y) = digits(index)
    found = index.search(examples=(x, y), k=3)
    assert found.views == ("examples", "classes", "latent")
    assert set(found.hits[0].cosines) == {"examples", "classes", "latent"}
    record = next(iter(index.records.values()))
    near = index.rank(Query(weights=index.zoo.weights(record)), k=1)[0]
    assert near.id == record.id
    assert near.cosines["latent"] == pytest.approx(1, abs=1e-4)


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    return int(str(stop.value.code)), capsys.readouterr().out


def test_the_command(
    adapter_zoo: Path,
    text_encoder: Path,
    text_tasks: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = ("retrieve", "--zoo", str(adapter_zoo), "--encoder", str(text_encoder), "--index", str(tmp_path / "i"))
    code, out = run(*common, "--task", str(text_tasks["colours"]), "-k", "2", "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0
    assert [hit["task"] for hit in found["hits"]] == ["colours", "colours"]
    assert found["calibrated"] is False
    code, out = run(*common, "--description", "Which animal is it?", "--min-score", "2", capsys=capsys)
    assert "use the base: the best score is" in out
    ids = [hit["id"] for hit in found["hits"]]
    code, out = run(*common, "--weights", ids[0], "--json", capsys=capsys)
    assert ids[0] not in {hit["id"] for hit in json.loads(out)["hits"]}
    code, out = run(*common, "--description", "x", "--base", "another", capsys=capsys)
    assert "no record passes the filters" in out
    code, _ = run(*common, capsys=capsys)
    assert code == UsageError.exit_code


def test_the_job_takes_files(tiny_zoo: Path, tmp_path: Path) -> None:
    with Zoo.open(tiny_zoo) as zoo:
        task = zoo.tasks()[3]
        x, y = TaskData.select(zoo.dataset(task.dataset), task.classes).part(TRAIN)
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())
    result = jobs.retrieve(tiny_zoo, data=tmp_path / "data.npz", k=1, index=tmp_path / "index")
    assert result.found.hits[0].record.task == task.name
    assert task.name in result.summary()
