"""The project around the code: dependencies, scripts, documents and configs agree with each other."""

from __future__ import annotations

import importlib
import os
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from weightgen import __version__
from zoo.config import StrictConfig, dump_config, parse_config

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCRIPTS = [path for path in sorted(ROOT.glob("scripts/**/*.sh")) if not path.name.startswith("_")] + [ROOT / ".ci/run"]
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))

# First key of a config file -> function that loads such a file.
LOADERS = {
    "recipe": "zoo.build:load_recipe",
    "generator": "weightgen.train:load_train_config",
    "explore": "weightgen.large.config:load_explore_config",
}


def requirements(*extras: str) -> Iterator[Requirement]:
    """Runtime requirements and those of some extras, except the project's own name."""
    listed = PROJECT["dependencies"] + [text for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    yield from (r for r in map(Requirement, listed) if r.name != PROJECT["name"])


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def test_every_dependency_has_a_lower_and_an_upper_bound() -> None:
    for requirement in requirements(*PROJECT["optional-dependencies"]):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators == {">=", "<"}, requirement


def test_constraints_pin_what_the_project_asks_for() -> None:
    pinned = pins()
    for requirement in requirements("dev"):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement
        assert "+" not in version, f"{requirement.name}: a local version exists on some machines only"
    assert pinned["torch"] == "2.13.0"


def test_versions_agree() -> None:
    assert PROJECT["version"] == __version__
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_licence_and_type_marker_are_there() -> None:
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert all((ROOT / package / "py.typed").is_file() for package in ("zoo", "weightgen"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_can_be_run_and_stop_at_errors(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--fast"], "unknown argument --fast"), (["--generator", "x"], "configs/x-digits.yaml"), (["--out"], "a value")],
)
def test_quickstart_refuses_what_it_does_not_know(arguments: list[str], message: str) -> None:
    command = ["bash", "scripts/quickstart.sh", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=10)
    assert done.returncode == 2
    assert message in done.stderr


def test_there_are_configs() -> None:
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_load_and_survive_saving(path: Path) -> None:
    key = next(iter(yaml.safe_load(path.read_text(encoding="utf-8"))))
    module, _, function = LOADERS[key].partition(":")
    config = getattr(importlib.import_module(module), function)(path)
    assert isinstance(config, StrictConfig)
    assert parse_config(dump_config(config), type(config), source=f"saved {path.name}") == config
