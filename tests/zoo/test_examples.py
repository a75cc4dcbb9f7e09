"""The file of examples: validation images of the right classes, or a clear error and no file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.build.examples import main
from zoo.zoo import Zoo


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_examples_are_validation_images_of_the_task(tiny_zoo: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "examples.npz"
    assert main(["--zoo", str(tiny_zoo), "--split", "test", "--out", str(out)]) == 0
    arrays = read(out)
    with Zoo.open(tiny_zoo) as zoo:
        task, images = zoo.tasks("test")[0], zoo.dataset("sklearn-digits")
    assert arrays["classes"].tolist() == list(task.class_names)
    assert sorted(arrays["y"].tolist()) == [0] * 10 + [1] * 10
    assert arrays["y"].tolist() != sorted(arrays["y"].tolist()), "mixed"
    chosen = [
        images["x"].eq(example).flatten(1).all(1).nonzero().flatten() for example in torch.from_numpy(arrays["x"])
    ]
    for rows, label in zip(chosen, arrays["y"].tolist(), strict=True):
        assert any(int(images["part"][row]) == 1 for row in rows)
        assert {int(images["y"][row]) for row in rows} == {task.classes[label]}
    assert len({int(rows[0]) for rows in chosen}) == 20, "distinct"
    assert [path.name for path in out.parent.iterdir()] == ["examples.npz"]


def test_task_shots_and_seed(tiny_zoo: Path, tmp_path: Path) -> None:
    with Zoo.open(tiny_zoo) as zoo:
        task = zoo.tasks("val")[2]
    files = [tmp_path / f"{name}.npz" for name in "abc"]
    for path, seed in zip(files, "334", strict=True):
        words = ["--zoo", str(tiny_zoo), "--split", "val", "--task", task.name, "--shots", "4", "--seed", seed]
        assert main([*words, "--out", str(path)]) == 0
    a, b, c = map(read, files)
    assert a["classes"].tolist() == list(task.class_names)
    assert len(a["y"]) == 8
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["x"], c["x"])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--task", "sklearn-digits/9-8"], 2, "no task of the split 'test' is named 'sklearn-digits/9-8'"),
        (["--shots", "0"], 2, "cannot draw 0 examples"),
        (["--shots", "1000"], 2, "validation images, not 1000"),
        (["--out", "examples.csv"], 2, "ends in .npz"),
        (["--out", "a-file/examples.npz"], 2, "cannot write"),
        (["--zoo", "nothing"], 3, "does not exist"),
    ],
)
def test_errors_leave_no_file(
    tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    assert main(["--zoo", str(tiny_zoo), "--out", "examples.npz", *words]) == code
    output = capsys.readouterr()
    assert message in output.err
    assert "remedy: " in output.err
    assert not output.out
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


def test_tasks_of_another_split_are_not_taken(tiny_zoo: Path, tmp_path: Path) -> None:
    with Zoo.open(tiny_zoo) as zoo:
        name = zoo.tasks("train")[0].name
    assert main(["--zoo", str(tiny_zoo), "--task", name, "--out", str(tmp_path / "e.npz")]) == 2


def test_the_command_line(tiny_zoo: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zoo.build.examples", "--zoo", str(tiny_zoo), "--shots", "2"]
    done = subprocess.run([*command, "--out", str(tmp_path / "e.npz")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "wrote 4 examples" in done.stderr
    refused = subprocess.run(
        [*command, "--split", "all", "--out", "e.npz"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
