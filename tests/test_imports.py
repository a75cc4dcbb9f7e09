"""The shape of the code base: imports point down, light entry points stay light, files stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES = 400
HEAVY = {"torch", "transformers", "diffusers", "lightning", "pytorch_lightning", "peft", "faiss", "numpy", "scipy"}
HELP_SECONDS = 0.5

# Units of weightgen from the top down; a unit imports from its own layer and from those below it.
LAYERS = (
    {
        "cli",
        "zoo_cli",
        "decode_cli",
        "compose_cli",
        "large_cli",
        "generate_cli",
        "kit_cli",
        "retrieve_cli",
        "solve_cli",
        "evaluate_cli",
        "leaderboard_cli",
        "serve_cli",
        "options",
        "console",
        "server",
    },
    {
        "jobs",
        "large_jobs",
        "generate_jobs",
        "kit_jobs",
        "solve",
        "solve_jobs",
        "solve_network_jobs",
        "leaderboard_jobs",
    },
    {
        "generate",
        "evaluate",
        "evaluate_files",
        "lm_evaluation",
        "collect_jobs",
        "decode_jobs",
        "compose_jobs",
        "retrieve_jobs",
    },
    {
        "train",
        "training_data",
        "resume",
        "selection",
        "retrieve",
        "compose",
        "decode",
        "evaluation",
        "large",
        "leaderboard",
        "score",
    },
    {"subjects"},
    {"generators", "checkpoint", "kit"},
    {"codecs", "conditioners", "fusion", "diffusion", "prototypes"},
    {
        "nn",
        "adapted",
        "augment",
        "mix",
        "shapes",
        "types",
        "results",
        "decode_results",
        "zoo_results",
        "progress",
        "processes",
    },
)
PACKAGE = ROOT / "weightgen" / "__init__.py"
DEPTH = {unit: depth for depth, layer in enumerate(LAYERS) for unit in layer}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported_modules(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports anywhere, inside functions and for type checkers too."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, node.module) if node.module else base)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def unit_of(path: Path) -> str:
    """Name of the module or subpackage directly below the package."""
    return path.relative_to(ROOT).with_suffix("").parts[1]


def test_zoo_never_imports_weightgen() -> None:
    upward = [f"{path}: {name}" for path in sources("zoo") for name in imported_modules(path) if "weightgen" in name]
    assert upward == []


def test_every_unit_has_a_layer() -> None:
    units = {unit_of(path) for path in sources("weightgen")} - {"__init__"}
    assert units <= DEPTH.keys(), "give the new unit its place in LAYERS"


def test_weightgen_imports_point_down() -> None:
    upward = []
    for path in sources("weightgen"):
        for name in imported_modules(path):
            package, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            own = DEPTH.get(unit_of(path), -1 if path == PACKAGE else len(LAYERS))  # names of the package are on top
            if package == "weightgen" and target in DEPTH and DEPTH[target] < own:
                upward.append(f"{path.relative_to(ROOT)} imports {name}")
    assert upward == []


def modules_after(code: str) -> tuple[set[str], float]:
    """Top-level modules loaded by some code in a fresh interpreter, and the processor time it took with start-up."""
    report = "\nimport sys, time; print(time.process_time(), *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    seconds, *modules = done.stdout.splitlines()[-1].split()
    return set(modules), float(seconds)


def run_cli(*arguments: str) -> str:
    return f"from weightgen.cli import main\ntry: main({list(arguments)})\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    "code",
    [
        "import zoo",
        "import zoo.types, zoo.errors, zoo.config",
        "import weightgen",
        "import weightgen.jobs",
        run_cli("--version"),
        run_cli("zoo", "lx"),
    ],
)
def test_light_entry_points_load_nothing_heavy(code: str) -> None:
    modules, _ = modules_after(code)
    assert not modules & HEAVY


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["zoo"],
        *(["zoo", name] for name in ("build", "collect", "ls", "stats", "show", "verify", "export", "rm", "dedupe")),
        ["train"],
        ["generate"],
        ["kit"],
        ["evaluate"],
        ["decode"],
        ["doctor", "fusion"],
        ["compose"],
        ["explore"],
        ["retrieve"],
        ["solve"],
        ["leaderboard"],
        ["serve"],
    ],
    ids=" ".join,
)
def test_help_is_light_and_quick(command: list[str]) -> None:
    modules, seconds = modules_after(run_cli(*command, "--help"))
    assert not modules & HEAVY
    assert seconds < HELP_SECONDS


def test_files_stay_short() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources("zoo", "weightgen", "tests", "scripts")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) >= MAX_LINES
    }
    assert long == {}, "split the file: one idea each"
