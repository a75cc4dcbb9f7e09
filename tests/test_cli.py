"""The command line as scripts see it: exit codes, one JSON document on stdout, errors that say what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from weightgen import __version__, cli, jobs
from weightgen.results import JobResult
from zoo.errors import BadArtefact, MissingExtra, NetworkError, UsageError

TRAIN = ["train", "config.yaml", "--zoo", "zoo", "--out", "out"]
EVALUATE = ["evaluate", "--generator", "g", "--zoo", "z", "--out", "o"]


@dataclass(frozen=True)
class Done(JobResult):
    """A result with a path, a number that JSON does not know, and whatever the job was called with."""

    arguments: Any = None
    folder: Path = Path("somewhere")
    loss: float = float("nan")

    def summary(self) -> str:
        return "all done"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; returns exit code, stdout and stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, output.out, output.err

    return call


def replace_job(monkeypatch: pytest.MonkeyPatch, name: str, job: Callable[..., JobResult]) -> None:
    monkeypatch.setattr(jobs, name, job, raising=False)


def fail_with(error: BaseException) -> Callable[..., JobResult]:
    def job(**_: Any) -> JobResult:
        raise error

    return job


def test_version_and_help(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("--version") == (0, f"weightgen {__version__}\n", "")
    code, out, err = run("zoo", "--help")
    assert code == 0
    assert err == ""
    assert all(name in out for name in ("build", "collect", "ls", "show", "verify", "export"))


def test_json_is_the_only_thing_on_stdout(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def job(**arguments: Any) -> JobResult:
        print("chatter of a library")
        arguments.pop("progress")("fit", 1, 2)
        return Done({key: str(value) for key, value in arguments.items()})

    replace_job(monkeypatch, "train", job)
    code, out, err = run(*TRAIN, "--set", "a=1", "--set", "b=2", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["loss"] is None
    assert document["folder"] == "somewhere"
    assert document["arguments"]["overrides"] == "['a=1', 'b=2']"
    assert "chatter of a library" in err
    assert "fit: 1/2" in err


def test_people_get_the_summary(run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    replace_job(monkeypatch, "train", lambda **_: Done())
    assert run(*TRAIN) == (0, "all done\n", "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("key 'a' is unknown", "write 'b'"), 2),
        (BadArtefact("file x is damaged", "collect it again"), 3),
        (MissingExtra("ray is not installed", "pip install 'weightgen[ray]'"), 4),
        (NetworkError("no answer", "try later"), 5),
    ],
)
def test_expected_errors(
    run: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    error: UsageError,
    code: int,
) -> None:
    replace_job(monkeypatch, "train", fail_with(error))
    printed = f"error: {error.cause}\nremedy: {error.remedy}\n"
    assert run(*TRAIN) == (code, "", printed)
    found, out, err = run(*TRAIN, "--json")
    assert (found, err) == (code, printed)
    assert json.loads(out) == {"error": {"cause": error.cause, "remedy": error.remedy, "exit_code": code}}


def test_ctrl_c_says_that_a_rerun_continues(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_job(monkeypatch, "train", fail_with(KeyboardInterrupt()))
    code, out, err = run(*TRAIN, "--json")
    assert code == 130
    assert json.loads(out)["error"]["exit_code"] == 130
    assert "run the same command again" in err


def test_unexpected_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_job(monkeypatch, "train", fail_with(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(TRAIN)


@pytest.mark.parametrize(
    "arguments",
    [
        ["zoo", "ls"],
        ["zoo", "list", "--zoo", "z"],
        ["train", "config.yaml", "--nothing"],
        ["generate", "--generator", "g", "--data", "d", "--out", "o", "--n", "none"],
        ["generate", "--generator", "g", "--data", "d", "--out", "o", "--n", "0"],
        [*EVALUATE, "--seeds", "1,1"],
        [*EVALUATE, "--seeds", "one"],
        [*EVALUATE, "--seeds", ""],
    ],
)
def test_usage_errors(run: Callable[..., tuple[int, str, str]], arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "remedy: " in err
    code, out, _ = run(*arguments, "--json")
    assert code == 2
    assert json.loads(out)["error"]["exit_code"] == 2


def test_seeds_and_candidates_reach_the_job(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_job(monkeypatch, "evaluate", lambda **arguments: Done([arguments["seeds"], arguments["candidates"]]))
    _, out, _ = run(*EVALUATE, "--seeds", "3,5", "--candidates", "4", "--json")
    assert json.loads(out)["arguments"] == [[3, 5], 4]
