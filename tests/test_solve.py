"""The portfolio: one budget, honest folds, the simplest within noise, and a result that loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

from tests.fixtures import tiny_config
from weightgen import cli, jobs
from weightgen.solve import learn
from weightgen.solve.budget import Budget, Meter
from weightgen.solve.candidates import BASE
from weightgen.solve.given import given_to_solve
from weightgen.solve.journal import Journal
from weightgen.solve.judge import Judge
from weightgen.train import train_generator
from zoo.errors import UsageError
from zoo.zoo import Zoo

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # among libraries


@pytest.fixture(scope="module")
def world(adapter_zoo: Path, text_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A zoo and a generator for the small encoder, and training that is over soon."""
    zoo = tmp_path_factory.mktemp("solve") / "zoo"
    shutil.copytree(adapter_zoo, zoo)
    generator = zoo.with_name("prototype")
    with Zoo.open(zoo) as opened:
        train_generator(tiny_config("prototype", f"text_encoder={text_encoder}"), opened, generator)
    return {"base": str(text_encoder), "encoder": str(text_encoder), "zoo": zoo, "generators": [generator]}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn, "STEPS", ((1 << 30, 4),))
    monkeypatch.setattr(learn, "ATLAS_STEPS", 2)
    monkeypatch.setattr(learn, "EVALUATIONS", 4)


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "solve.json").read_text())


@pytest.fixture(scope="module")
def solved(
    world: dict[str, Any], text_tasks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("solved") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn, "STEPS", ((1 << 30, 4),))
        patch.setattr(learn, "ATLAS_STEPS", 2)
        patch.setattr(learn, "EVALUATIONS", 4)
        return out, jobs.solve(task=text_tasks["actions"], use_labels=4, out=out, budget="500steps", **world)


def test_the_folder_holds_an_adapter_that_peft_loads_a_card_and_every_candidate(
    solved: tuple[Path, Any], text_encoder: Path
) -> None:
    out, result = solved
    PeftModel.from_pretrained(AutoModel.from_pretrained(text_encoder), str(out))
    report = result_of(out)
    assert report == result.report
    rows = {row["name"]: row for row in report["candidates"]}
    wanted = {"base", "retrieved-1", "mean-near", "sum-near", "generated-prototype", "trained", "atlas", "lorahub"}
    assert wanted <= rows.keys()
    assert {row["way"] for row in rows.values()} >= {"base", "static", "finetuned", "generated_texts"}
    assert "finetuned-generated-prototype-static" in rows  # what the track record of fine-tuning was measured from
    assert [row["fate"] for row in rows.values()].count("chosen") == 1
    assert rows["base"]["examples"] == 16
    assert all(row["examples"] in (0, 4, 8, 16) for row in rows.values())
    assert rows[report["verdict"]["choice"]]["examples"] == 16
    assert report["controls"]["always the most frequent label"] == pytest.approx(0.1)
    assert 0 < report["cost"]["steps"] <= 500
    card = (out / "README.md").read_text()
    assert report["verdict"]["sentence"] in card
    assert all(name in card for name in rows)
    assert report["verdict"]["sentence"] in result.summary()


def test_a_budget_in_steps_gives_the_same_result_again_and_replaces_the_old_one(
    solved: tuple[Path, Any], world: dict[str, Any], text_tasks: dict[str, Path], tmp_path: Path
) -> None:
    first, again = solved[0], tmp_path / "out"
    for _ in range(2):
        jobs.solve(task=text_tasks["actions"], use_labels=4, out=again, budget="500steps", **world)
    name = "adapter_model.safetensors"
    assert (first / name).read_bytes() == (again / name).read_bytes()
    one, two = result_of(first), result_of(again)
    assert one["candidates"] == two["candidates"]
    assert one["cost"]["steps"] == two["cost"]["steps"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_search_leaves_nothing_half_written_and_goes_on(
    solved: tuple[Path, Any], world: dict[str, Any], text_tasks: dict[str, Path], tmp_path: Path
) -> None:
    out, stopped = tmp_path / "out", 0

    def stop(stage: str, done: int, total: int) -> None:
        nonlocal stopped
        if stage.startswith("judge on 8 ") and done == 3:
            stopped += 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.solve(task=text_tasks["actions"], use_labels=4, out=out, budget="500steps", progress=stop, **world)
    assert stopped == 1
    assert [path.name for path in tmp_path.iterdir()] == [".out.solve.json"]
    spent = json.loads((tmp_path / ".out.solve.json").read_text())["steps"]
    assert spent > 0
    jobs.solve(task=text_tasks["actions"], use_labels=4, out=out, budget="500steps", **world)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    there, uninterrupted = result_of(out), result_of(solved[0])
    assert there["candidates"] == uninterrupted["candidates"]
    assert any("interrupted" in note for note in there["notes"])
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (solved[0] / name).read_bytes()


def test_without_budget_the_base_is_returned_as_an_adapter_that_changes_nothing(
    world: dict[str, Any], text_tasks: dict[str, Path], tmp_path: Path
) -> None:
    result = jobs.solve(task=text_tasks["animals"], use_labels=2, out=tmp_path / "out", budget="1steps", **world)
    assert result.report["verdict"]["use_base"]
    fates = {row["fate"] for row in result.report["candidates"] if row["way"] != "base"}
    assert fates == {"the budget did not allow it", "not all that it is made of was judged"}
    assert "Use the base instead" in (tmp_path / "out" / "README.md").read_text()
    assert "nothing else was judged" in result.summary()
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(world["base"]), str(tmp_path / "out"))
    ups = [value for name, value in model.named_parameters() if "lora_B" in name]
    assert ups
    assert all(not value.any() for value in ups)


def test_looking_for_candidates_leaves_something_to_judge_them(
    world: dict[str, Any], text_tasks: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightgen.solve.budget.FINDING", -1.0)  # used up at once
    result = jobs.solve(task=text_tasks["animals"], use_labels=1, out=tmp_path / "out", budget="3steps", **world)
    assert not {row["way"] for row in result.report["candidates"]} & {"retrieved", "static", "generated"}
    left_out = [note for note in result.report["notes"] if "half of the budget" in note]
    assert {note.partition(" left out")[0].split()[0] for note in left_out} == {"retrieved", "the"}


def test_other_generators_join_with_two_draws_if_they_are_random(
    world: dict[str, Any], text_tasks: dict[str, Path], adapter_zoo: Path, text_encoder: Path, tmp_path: Path
) -> None:
    from tests.test_adapters import lora_config

    folders = [tmp_path / name for name in ("d2nwg", "mapper")]
    with Zoo.open(adapter_zoo) as zoo:
        for folder in folders:
            train_generator(lora_config(folder.name, text_encoder), zoo, folder)
    given = {**world, "generators": [*world["generators"], *folders]}
    result = jobs.solve(task=text_tasks["actions"], use_labels=1, out=tmp_path / "out", budget="60steps", **given)
    rows = {row["name"]: row for row in result.report["candidates"]}
    assert {"generated-d2nwg-0", "generated-d2nwg-1", "generated-mapper", "generated-prototype"} <= rows.keys()
    assert all(rows[name]["examples"] > 0 for name in ("generated-d2nwg-0", "generated-mapper"))


def write_record(path: Path, base: str, gains: dict[str, float]) -> Path:
    """A track record of six tasks on which every way gained the same."""
    ways = {way: {"0": {f"t{i}": 0.5 + gain for i in range(6)}} for way, gain in {"base": 0.0, **gains}.items()}
    path.write_text(json.dumps({"base_model": base, "about": "six made-up tasks", "ways": ways}))
    return path


def test_without_labels_the_track_record_chooses_and_the_card_says_so(
    world: dict[str, Any], text_tasks: dict[str, Path], tmp_path: Path
) -> None:
    record = write_record(tmp_path / "record.json", world["base"], {"mean_near": 0.1, "static": 0.1, "retrieved": -0.1})
    result = jobs.solve(task=text_tasks["actions"], out=tmp_path / "out", record=record, **world)
    verdict = result.report["verdict"]
    assert (verdict["choice"], verdict["basis"]) == ("mean-near", "track record")  # as good as static, and simpler
    assert "no labelled examples" in (tmp_path / "out" / "README.md").read_text()
    rows = {row["name"]: row for row in result.report["candidates"]}
    assert rows["sum-near"]["fate"] == "the track record does not know this way"
    assert rows["mean-near"]["macro_f1"] is None


def test_without_labels_and_without_a_record_nothing_is_known(
    world: dict[str, Any], text_tasks: dict[str, Path], tmp_path: Path
) -> None:
    result = jobs.solve(task=text_tasks["actions"], out=tmp_path / "out", **world)
    assert result.report["verdict"]["basis"] == "nothing"
    assert result.report["verdict"]["use_base"]


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"description": "Which animal is it?"}, "labels of the task are not known"),
        ({"task": "animals", "budget": "soon"}, "is no budget"),
        ({"task": "animals", "data": "colours"}, "both name a task file"),
        ({"task": "animals", "generators": ["tiny"]}, "writes networks"),
        ({"data": Path("some.npz")}, "base is for adapters"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: dict[str, Any],
    cause: str,
    world: dict[str, Any],
    text_tasks: dict[str, Path],
    tiny_generator: Path,
    tmp_path: Path,
) -> None:
    places: dict[str, Any] = {**text_tasks, "tiny": tiny_generator}
    for key in ("task", "data"):
        if key in arguments:
            arguments[key] = places.get(str(arguments[key]), arguments[key])
    if "generators" in arguments:
        arguments["generators"] = [tiny_generator]
    with pytest.raises(UsageError, match=cause):
        jobs.solve(out=tmp_path / "out", **{**world, **arguments})
    assert not (tmp_path / "out").exists()


def test_the_command_line_hands_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def job(*given: Any, **named: Any) -> Any:
        seen.append((given, named))
        raise UsageError("enough")

    monkeypatch.setattr(jobs, "solve", job)
    with pytest.raises(SystemExit) as stop:
        cli.main(["solve", "--description", "d", "--labels", "a, b", "--budget", "5steps", "--out", "o"])
    assert stop.value.code == 2
    (given, named) = seen[0]
    assert given == ("d", None, None, Path("o"), "5steps")
    assert named["labels"] == ("a", "b")


def test_labelled_files_are_used_with_their_labels_and_words_alone_of_tasks(text_tasks: dict[str, Path]) -> None:
    everything = given_to_solve(None, (), None, text_tasks["animals"], None, None, 0)
    assert len(everything.y) >= 30
    words = given_to_solve(None, (), text_tasks["animals"], None, None, None, 0)
    assert len(words.y) == 0
    assert words.text.texts == ()
    few = given_to_solve(None, (), text_tasks["animals"], None, None, 2, 0)
    assert few.text.texts == few.texts  # they serve as unlabelled texts too
    with pytest.raises(UsageError, match="2 labels are given, the examples have 4"):
        given_to_solve(None, ("one", "two"), None, text_tasks["animals"], None, None, 0)


def test_every_row_of_a_table_is_used(tmp_path: Path) -> None:
    table = tmp_path / "few.csv"
    rows = [f"text {number},{'yes' if number % 2 else 'no'}\n" for number in range(8)]
    table.write_text("text,label\n" + "".join(rows))
    assert given_to_solve(None, (), None, table, None, None, 0).y.bincount().tolist() == [4, 4]
    table.write_text("text,label,split\n" + "".join(row.strip() + ",train\n" for row in rows) + "other,no,test\n")
    assert "other" not in given_to_solve(None, (), None, table, None, None, 0).texts


def test_budgets_and_what_they_allow() -> None:
    assert Budget.parse("60s") == Budget(60, "seconds")
    assert Budget.parse("2m") == Budget(120, "seconds")
    assert Budget.parse("500steps") == Budget(500, "steps")
    meter = Meter(Budget(10, "steps"))
    with meter.paying(8):
        pass
    with pytest.raises(KeyboardInterrupt), meter.paying(1):
        raise KeyboardInterrupt
    assert meter.steps == 8
    assert meter.allows(2)
    assert not meter.allows(2.5)
    assert not Meter(Budget(60, "seconds"), seconds=59).allows(0)
    assert Meter(Budget(60, "seconds"), seconds=29).finds()
    assert not Meter(Budget(60, "seconds"), seconds=31).finds()


def test_a_damaged_journal_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    journal = Journal(path, "key", Budget(1, "steps"))
    journal.put(BASE.name, 0, torch.ones(2, 3))
    journal.save()
    found = Journal(path, "key", Budget(1, "steps")).get(BASE.name, 0)
    assert found is not None
    assert found.shape == (2, 3)
    assert Journal(path, "another", Budget(1, "steps")).get(BASE.name, 0) is None
    path.write_text(path.read_text()[:-5])
    assert not Journal(path, "key", Budget(1, "steps")).resumed


def test_what_did_worse_than_fine_tuning_elsewhere_is_not_begun(
    world: dict[str, Any], text_tasks: dict[str, Path], tmp_path: Path
) -> None:
    gains = {"finetuned": 0.3, "trained": 0.1, "atlas": 0.29, "retrieved": 0.1}
    record = write_record(tmp_path / "record.json", world["base"], gains)
    given = {"task": text_tasks["actions"], "use_labels": 2, "record": record, **world}
    result = jobs.solve(out=tmp_path / "out", budget="500steps", **given)
    fates = {row["name"]: row["fate"] for row in result.report["candidates"]}
    worse = "the track record says that fine-tuning is better"
    assert {name for name, fate in fates.items() if fate == worse} == {"trained", "atlas"}
    assert fates["lorahub"] != worse  # nothing is known about it
    poor = jobs.solve(out=tmp_path / "out", budget="16steps", **given)  # fine-tuning cannot be afforded, aTLAS can
    assert {row["fate"] for row in poor.report["candidates"]}.isdisjoint({worse})


def test_nothing_learns_where_the_base_is_right(
    world: dict[str, Any], text_tasks: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Judge, "right", lambda self, candidate: candidate is BASE)
    result = jobs.solve(task=text_tasks["actions"], use_labels=2, out=tmp_path / "out", budget="500steps", **world)
    learned = [row for row in result.report["candidates"] if row["learns_from_labels"]]
    assert {row["fate"] for row in learned} == {"the base answers every example rightly"}
