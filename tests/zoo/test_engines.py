"""Engines: the same zoo wherever it is trained, failures that are recorded, processes that may die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import zoo.build
from tests.fixtures import RECIPE, TINY_RECIPE
from zoo.build import build, engines, load_recipe
from zoo.build.registry import Data, Member, MemberName, Recipe, make_recipe
from zoo.config import dump_config
from zoo.errors import MissingExtra, UsageError
from zoo.types import Task
from zoo.zoo import Zoo

FEW = (*TINY_RECIPE, "training.epochs=1", "members_per_task=1")


def content(path: Path) -> list[tuple[str, dict[str, float]]]:
    with Zoo.open(path) as built:
        assert built.verify() == []
        return [(record.id, dict(record.metrics)) for record in built]


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engines") / "inline"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo.build, "GROUP", 8)
        build(RECIPE, path, FEW)
    return path


def test_processes_make_the_same_zoo_and_one_may_die(
    inline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo.build, "GROUP", 8)
    monkeypatch.setattr(engines, "cores", lambda: 2)
    killed: list[int] = []

    def kill_one(_: str, done: int, total: int) -> None:
        assert total == 45
        if not killed:
            victim = multiprocessing.active_children()[0].pid
            assert victim is not None
            killed.append(victim)
            os.kill(victim, signal.SIGKILL)

    report = build(RECIPE, tmp_path / "zoo", FEW, kill_one, engine="local", workers=2)
    assert (report.added + report.failed, report.skipped) == (45, 0)
    assert 5 <= report.failed <= 8
    assert multiprocessing.active_children() == []
    with Zoo.open(tmp_path / "zoo") as built:
        assert len(built.failures()) == report.failed
        assert all("died (exit code -9)" in reason for reason in built.failures().values())
    again = build(RECIPE, tmp_path / "zoo", FEW, engine="local", workers=1)
    assert (again.added, again.skipped, again.failed) == (report.failed, report.added, 0)
    assert content(tmp_path / "zoo") == content(inline)
    with Zoo.open(tmp_path / "zoo") as built:
        assert built.failures() == {}, "what could be made after all is no failure"


ENDLESS = """
import multiprocessing, sys, threading, time
from pathlib import Path
from zoo.build import build

if __name__ == "__main__":  # workers import this file
    recipe, out, *settings = sys.argv[1:]
    options = {"engine": "local", "workers": 2}
    threading.Thread(target=build, args=(recipe, Path(out), settings), kwargs=options, daemon=True).start()
    while not (workers := multiprocessing.active_children()):
        time.sleep(0.05)
    time.sleep(3)  # into the training
    print(*(worker.pid for worker in workers), flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the state of processes as Linux tells it")
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    settings = [*TINY_RECIPE, "training.epochs=1000000", "members_per_task=1"]
    command = [sys.executable, str(script), str(RECIPE), str(tmp_path / "zoo"), *settings]
    env = os.environ | {"PYTHONPATH": str(Path(zoo.__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as started:
        assert started.stdout is not None
        workers = [int(pid) for pid in started.stdout.readline().split()]
        assert workers
        assert all(_runs(pid) for pid in workers)
        started.kill()
    deadline = time.monotonic() + 30
    while any(_runs(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers train on for nobody"
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_ray_makes_the_same_zoo(inline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(zoo.build, "GROUP", 8)
    report = build(RECIPE, tmp_path / "zoo", FEW, engine="ray", workers=2)
    assert (report.added, report.failed) == (45, 0)
    assert content(tmp_path / "zoo") == content(inline)


def test_ray_is_only_needed_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'weightgen\[ray\]'"):
        build(RECIPE, tmp_path / "zoo", FEW, engine="ray")


@pytest.mark.parametrize(
    ("engine", "workers", "message"),
    [("cloud", None, "inline, local, ray"), ("local", 0, "0 workers"), ("inline", 2, "--engine local")],
)
def test_wrong_engines_are_refused(tmp_path: Path, engine: str, workers: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(RECIPE, tmp_path / "zoo", FEW, engine=engine, workers=workers)
    assert not (tmp_path / "zoo").exists()


class Fragile(Recipe):
    """Cannot train the second member, and no group with it."""

    def datasets(self) -> Sequence[Data]:
        return []

    def tasks(self) -> Sequence[Task]:
        return [Task("t", "", "none", (0, 1), ("a", "b"), "train")]

    def members(self) -> Sequence[MemberName]:
        return [(f"t/{i}", "t") for i in range(3)]

    def train(self, members: Sequence[MemberName]) -> Iterator[Member]:
        if ("t/1", "t") in members:
            raise RuntimeError("out of memory")
        yield from (Member(lineage, self.tasks()[0], None, {}, "fine") for lineage, _ in members)


class Broken(Fragile):
    """A recipe that cannot be used at all."""

    def train(self, members: Sequence[MemberName]) -> Iterator[Member]:
        raise UsageError("the model is missing", "download it")


def test_one_member_that_fails_harms_nobody() -> None:
    plan = Fragile()
    trained = engines.attempt(plan, plan.members())
    assert [member.failure for member in trained] == ["fine", "RuntimeError: out of memory", "fine"]
    assert [len(group) for group in plan.groups(2)] == [2, 1]


def test_errors_and_members_survive_the_way_between_processes() -> None:
    with pytest.raises(UsageError, match=r"the model is missing\. download it"):
        engines.received(engines.work(Broken(), Broken().members()))
    plan = make_recipe(dump_config(load_recipe(RECIPE, FEW)))
    (sent,) = engines.attempt(plan, plan.members()[:1])
    (got,) = engines.received(engines.work(plan, plan.members()[:1]))
    assert (got.lineage, got.task, got.metrics) == (sent.lineage, sent.task, sent.metrics)
    assert got.weights is not None
    assert sent.weights is not None
    assert got.weights.layout == sent.weights.layout
    assert list(got.weights.tensors) == list(sent.weights.tensors)
    assert all(got.weights.tensors[name].equal(value) for name, value in sent.weights.tensors.items())
