"""Saved results of every form become tables, and the pages say what the files say and nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from weightgen import cli, jobs
from weightgen.leaderboard.markdown import groups, ranked
from weightgen.leaderboard.read import read_results
from zoo.errors import BadArtefact, UsageError


def write(folder: Path, name: str, content: Any) -> None:
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for task, best in (("a", 0.9), ("b", 0.7)):
        rows = [{"method": "one <b>", "shots": shots, "seed": 0, "macro_f1": best} for shots in (4, 16)]
        rows += [{"method": "two", "shots": 4, "seed": seed, "macro_f1": 0.5 + 0.1 * seed} for seed in (0, 1)]
        write(folder, f"compare/run-{task}", {"task": task, "rows": rows})
    card = {"oracle": {"name": "oracle", "mean": 0.98, "interval": [0.97, 0.99]}, "base": {"mean": 0.5}}
    write(folder, "cards/card-0", {"rows": card, "verdict": {"sentence": "The oracle wins."}})
    write(folder, "words/study", {"rows": {"base": {"t1": [0.5, 0.6], "t2": [0.7, 0.8]}, "ours": {"t1": [0.9, 0.9]}}})
    write(folder, "recall", {"recall_at_1": {"by weights": 0.875, "by words": 0.5}})
    candidates = [
        {"name": "base", "macro_f1": 0.4, "interval": [0.3, 0.5]},
        {"name": "atlas", "macro_f1": None, "interval": None},
        {"name": "retrieved-1", "macro_f1": 0.6, "interval": [0.5, 0.7]},
    ]
    write(folder, "solved/solve", {"candidates": candidates, "verdict": {"sentence": "Take the retrieved one."}})
    write(folder, "solved/other-run", {"rows": [{"name": "base", "mean": 0.1}, {"name": "ours", "mean": 0.2}]})
    write(folder, "other", {"speed": 3})
    curves = {"a": {"ours": {"0": [0.9, 0.7], "1": [1.0]}, "scratch": {"0": [0.1]}}, "b": {"ours": {"0": [0.4]}}}
    write(folder, "images/seen-0", {"curves": curves})
    return folder


def test_curves_are_tables_by_epoch_that_say_where_tasks_are_fewer(results: Path, tmp_path: Path) -> None:
    (table,) = {section.name: section for section in read_results(results)}["images"].tables
    found = {(entry.method, entry.group): round(entry.mean, 6) for entry in table.entries}
    assert found == {("ours", "epoch 0"): 0.6, ("ours", "epoch 1"): 1.0, ("scratch", "epoch 0"): 0.1}
    jobs.leaderboard(results, tmp_path / "out")
    assert "| ours | 60.0 | 100.0 (of 1) | 2 |" in (tmp_path / "out" / "results.md").read_text()
    assert "(of 1)" in (tmp_path / "out" / "index.html").read_text()


def test_every_form_is_read_and_averaged_over_tasks_and_seeds_only(results: Path) -> None:
    sections = {section.name: section for section in read_results(results)}
    assert {name: len(section.tables) for name, section in sections.items()} == {
        **{"cards": 1, "compare": 1, "images": 1, "recall": 1, "solved": 2, "words": 1},
        "other": 0,
    }
    (table,) = sections["compare"].tables
    assert groups(table) == ["shots 4", "shots 16"]
    found = {(entry.method, entry.group): (round(entry.mean, 6), entry.tasks) for entry in table.entries}
    assert found == {
        ("one <b>", "shots 4"): (0.8, 2),
        ("one <b>", "shots 16"): (0.8, 2),
        ("two", "shots 4"): (0.55, 2),
    }
    assert [name for name, _ in ranked(table)] == ["one <b>", "two"]
    words = {entry.method: entry.mean for entry in sections["words"].tables[0].entries}
    assert words == {"base": pytest.approx(0.6), "ours": 0.9}
    other, solved = sections["solved"].tables
    assert (other.title, solved.title) == ("other-run", "solve")
    assert {entry.method: entry.spread for entry in solved.entries} == {
        "base": pytest.approx(0.1),
        "retrieved-1": pytest.approx(0.1),
    }


class Page(HTMLParser):
    """Tags that are opened and closed, and what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outside += [str(v) for k, v in attrs if k in ("src", "href") and not str(v).startswith("#")]
        if tag not in ("meta", "line", "rect", "circle", "i"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "rect", "circle", "i"):
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(results: Path, tmp_path: Path) -> None:
    result = jobs.leaderboard(results, tmp_path / "out")
    text = result.page.read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.outside == []
    assert "one &lt;b&gt;" in text
    assert "<b>" not in text
    assert "Take the retrieved one." in text
    assert "Without a comparison of methods: other." in text
    assert re.search(r'class="best" data-value="0.800000">80.0<', text)
    assert result.files == 9
    assert "9 files" in result.summary()


def test_sections_of_the_markdown_page_are_replaced_and_others_stay(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    jobs.leaderboard(results, out)
    page = (out / "results.md").read_text() + "\nwritten by hand\n"
    assert "| one <b> | 80.0 | 80.0 | 2 |" in page
    (out / "results.md").write_text(page)
    write(results, "recall", {"recall_at_1": {"by weights": 0.25, "by words": 0.5}})
    jobs.leaderboard(results, out)
    again = (out / "results.md").read_text()
    assert "written by hand" in again
    assert "| by weights | 25.0 | 1 |" in again
    assert "87.5" not in again
    assert again.count("<!-- leaderboard recall: start -->") == 1


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no saved results"):
        jobs.leaderboard(tmp_path, tmp_path / "out")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(BadArtefact, match="no JSON"):
        jobs.leaderboard(tmp_path, tmp_path / "out")
    with pytest.raises(SystemExit) as stop:
        cli.main(["leaderboard", str(tmp_path), "--out", str(tmp_path / "out")])
    assert stop.value.code == 3


def test_earlier_results_are_left_out(tmp_path: Path) -> None:
    for folder, share in ((tmp_path, 0.5), (tmp_path / "earlier", 0.1)):
        write(folder, "recall", {"recall_at_1": {"by words": share, "by weights": 0.2}})
    (section,) = read_results(tmp_path)
    assert section.files == 1
    (table,) = section.tables
    assert "0.5" in repr(table)
    assert "0.1" not in repr(table)


def test_curves_of_another_form_are_passed_over(tmp_path: Path) -> None:
    recall = {"by words": 0.5, "by weights": 0.2}
    write(tmp_path, "training", {"curves": {"one": [[0, 0.5], [10, 0.6]]}, "recall_at_1": recall})
    (section,) = read_results(tmp_path)
    assert len(section.tables) == 1


def test_the_results_of_this_project_are_read() -> None:
    docs = Path(__file__).parent.parent / "docs" / "results"
    assert sum(len(section.tables) for section in read_results(docs)) >= 10


def test_draws_and_tasks_of_one_study_are_one_table(tmp_path: Path) -> None:
    for draw, task, share in ((1, "a", 0.2), (2, "a", 0.4), (1, "b", 0.6)):
        rows = [{"way": way, "shots": 4, "macro_f1": share} for way in ("one", "two")]
        content = {"task": task, "seed": draw, "rows": rows}
        write(tmp_path / "study", f"test-{draw}-{task}", content)
    (section,) = read_results(tmp_path)
    (table,) = section.tables
    assert table.title == "test"
    assert [sorted(entry.values.values()) for entry in table.entries] == [[0.2, 0.4, 0.6]] * 2
