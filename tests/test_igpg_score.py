"""Scores of the networks of a zoo, and the command that lists what stands out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.fixtures import tiny_config
from weightgen import cli
from weightgen.checkpoint import read_history
from weightgen.score import compare, score_zoo
from weightgen.train import train_generator
from zoo.errors import UsageError
from zoo.zoo import Zoo


@pytest.fixture(scope="module")
def writer(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("writer") / "igpg"
    with Zoo.open(tiny_zoo) as zoo:
        train_generator(tiny_config("igpg", "stages.behaviour.steps=0"), zoo, path)
    return path


def test_every_network_is_scored(tiny_zoo: Path, writer: Path) -> None:
    with Zoo.open(tiny_zoo) as zoo:
        scored, again = score_zoo(writer, zoo), score_zoo(writer, zoo)
        assert sorted(one.id for one in scored) == sorted(record.id for record in zoo.records())
    assert scored == again
    assert all(0 < one.bits < 4.5 for one in scored), "hardly trained: about the 4 bits of 16 words"
    assert len({one.bits for one in scored}) > len(scored) / 2


def test_what_costs_far_more_than_its_like_stands_out() -> None:
    bits = torch.cat([torch.linspace(3, 3.2, 20), torch.tensor([4.0, 2.0])])
    stands = [one.stands_out for one in compare([str(i) for i in range(22)], bits)]
    assert stands == [*[False] * 20, True, False]


def test_what_is_usual_is_measured_on_validation_networks(tiny_zoo: Path, writer: Path) -> None:
    limits = read_history(writer)["usual_bits"]
    with Zoo.open(tiny_zoo) as zoo:
        scored = {one.id: one for one in score_zoo(writer, zoo)}
        assert {zoo.records()[0].layout.fingerprint} == limits.keys()
        assert {one.limit for one in scored.values()} == set(limits.values())
        known = [scored[record.id].bits for record in zoo.records(split="val")]
    limit = next(iter(limits.values()))
    assert min(known) < limit < max(known) + 0.5
    bits = torch.tensor([3.0, 3.1, 3.2, 9.0])
    assert [one.stands_out for one in compare(list("abcd"), bits, 3.15)] == [False, False, True, True]


def test_verify_lists_them(tiny_zoo: Path, writer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra in (["--json"], []):
        with pytest.raises(SystemExit) as stop:
            cli.main(["zoo", "verify", "--zoo", str(tiny_zoo), "--score", str(writer), *extra])
        assert stop.value.code == 0
    document, _, text = capsys.readouterr().out.partition("\n")
    found = json.loads(document)
    assert (found["ok"], found["scored"], found["records"]) == (True, 90, 90)
    assert f"90 scored, {len(found['outliers'])} stand out" in text


def test_a_generator_without_likelihoods_is_refused(tiny_zoo: Path, tiny_generator: Path) -> None:
    with Zoo.open(tiny_zoo) as zoo, pytest.raises(UsageError, match=r"d2nwg.*knows no likelihoods"):
        score_zoo(tiny_generator, zoo)
