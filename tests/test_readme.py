"""Every command and every Python block of the README does what it says, on a tiny zoo."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from tests.fixtures import RECIPE, TINY_RECIPE, tiny_config
from weightgen import cli, kit
from weightgen.train import train_generator
from zoo.build import examples, load_recipe
from zoo.config import dump_config
from zoo.zoo import Zoo

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def run(command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "weightgen":
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 0, command
    else:
        assert [program, *arguments[:2]] == ["python", "-m", "zoo.build.examples"], command
        assert examples.main(arguments[2:]) == 0


@pytest.fixture
def tiny_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose configs have the names of the real ones and a fraction of their size."""
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "digits.yaml").write_text(yaml.safe_dump(dump_config(load_recipe(RECIPE, TINY_RECIPE))))
    (configs / "d2nwg-digits.yaml").write_text(yaml.safe_dump(dump_config(tiny_config())))
    monkeypatch.chdir(tmp_path)
    tiny = {path.stem: path for path in configs.iterdir()}
    monkeypatch.setattr("zoo.config.shipped_configs", lambda: tiny)
    return tmp_path


def test_the_commands_and_the_blocks_that_use_their_output(tiny_place: Path) -> None:
    commands, _, weights = blocks("sh")
    for command in commands.strip().splitlines():
        run(command)
    python = blocks("python")
    assert len(python) == 2
    names: dict[str, object] = {}
    exec(python[1], names)
    assert type(names["network"]).__name__ == "_Perceptron"

    collect, export = weights.strip().splitlines()
    run(collect.replace("path/to/checkpoints", "runs/networks").replace(" path/to/adapter", ""))
    with Zoo.open("my-zoo") as zoo:
        first = zoo.records()[0].id
    run(export.replace("ID", first))
    assert list(Path("out-folder").glob("*.safetensors"))


def test_an_adapter_from_a_sentence(
    tiny_place: Path, adapter_zoo: Path, text_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tiny_place / "kit"
    with Zoo.open(adapter_zoo) as zoo:
        train_generator(tiny_config("prototype", f"text_encoder={text_encoder}"), zoo, shipped / kit.DEFAULT)
    shutil.copy(kit.adapters_archive(), shipped)
    monkeypatch.setattr(kit, "FOLDER", shipped)
    for command in blocks("sh")[1].strip().splitlines():
        run(command)
    assert Path("runs/adapter/adapter_model.safetensors").is_file()


def test_the_three_lines_of_python(tiny_place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(blocks("python")[0], {})
    assert "accuracy on 3 held-out tasks, 3 seeds" in capsys.readouterr().out


def test_the_first_screen_names_both_commands_and_the_measured_table() -> None:
    first = "\n".join(README.splitlines()[:45])
    assert "bash scripts/quickstart.sh" in first
    assert "bash scripts/test.sh" in first
    assert re.search(r"\| \*\*networks written by the generator.*\*\* \| \*\*\d\d\.\d ± \d\.\d\*\* \|", first)
    assert re.search(r"\| trained in full on the task \| \d\d\.\d", first)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    if not target.startswith("https://"):
        assert (Path(__file__).parent.parent / target).exists(), target
