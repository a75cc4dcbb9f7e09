"""Generators on disk: safetensors and JSON, complete or not there at all.

config.json           generator, resolved config, versions, checksums of the other files
problem.json          layouts, tokenizer statistics, shape of an example
model.safetensors     parameters and buffers
reference.safetensors alignment references (only if networks were aligned)
history.json          losses and validation measurements, the tasks that were trained on
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightgen import __version__
from weightgen.generators import Generator, generator_class
from weightgen.generators.problem import Form, Problem
from zoo import safefile
from zoo.config import dump_config, parse_config
from zoo.errors import BadArtefact, UsageError
from zoo.tokens import Tokenizer
from zoo.types import Layout

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 2
CONFIG, PROBLEM, MODEL, REFERENCE, HISTORY = (
    "config.json",
    "problem.json",
    "model.safetensors",
    "reference.safetensors",
    "history.json",
)
FILES = {CONFIG, PROBLEM, MODEL, REFERENCE, HISTORY}
LIBRARIES = ("torch", "diffusers", "lightning", "safetensors")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_target(folder: Path) -> None:
    """Fail if a generator written to a folder would take the place of something that is no generator.

    Raises:
        UsageError: if the folder is a file or holds anything but an older generator.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder", "choose another folder")
    names = {path.name for path in folder.iterdir()}
    if foreign := sorted(names - FILES):
        raise UsageError(f"{folder} holds other files ({', '.join(foreign[:3])})", "choose another folder")
    if names and not names >= {CONFIG, PROBLEM}:
        raise UsageError(f"{folder} is not empty and holds no generator", "choose another folder")


def save_generator(folder: Path, generator: Generator, history: Mapping[str, Any]) -> None:
    """Write a generator; the folder appears complete or not at all.

    Args:
        folder: where; files of an older generator there are replaced.
        generator: what to write.
        history: JSON-serialisable account of the training.

    Raises:
        UsageError: if the folder holds anything else.
    """
    check_target(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        side = Path(scratch) / "generator"
        side.mkdir()
        problem = generator.problem
        safefile.save(side / MODEL, {k: v.contiguous() for k, v in generator.state_dict().items()})
        if references := _references(problem):
            safefile.save(side / REFERENCE, references)
        (side / PROBLEM).write_text(json.dumps(_describe(problem), indent=1), encoding="utf-8")
        (side / HISTORY).write_text(json.dumps(history, indent=1), encoding="utf-8")
        config = {
            "format": FORMAT,
            "generator": generator.name,
            "config": dump_config(generator.config),
            "versions": {"weightgen": __version__, **{lib: importlib.metadata.version(lib) for lib in LIBRARIES}},
            "files": {path.name: _digest(path) for path in sorted(side.iterdir())},
        }
        (side / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        side.rename(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of a generator folder and check that every file is there and unchanged.

    Raises:
        BadArtefact: if the folder is no generator, or a file is missing or damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        what = "does not exist" if not folder.exists() else "holds no generator (config.json is missing)"
        raise BadArtefact(f"{folder} {what}", "make one with: weightgen train CONFIG --zoo DIR --out DIR")
    config = _read_json(path)
    if config.get("format") != FORMAT:
        raise BadArtefact(
            f"{folder} has the generator format {config.get('format')!r}, this version reads {FORMAT}",
            "train it again, or use the version that made it",
        )
    files = config.get("files")
    if not isinstance(files, dict) or not files.keys() >= FILES - {CONFIG, REFERENCE}:
        raise BadArtefact(
            f"{path} does not list the files of the generator", "copy the whole folder, or train it again"
        )
    for name, digest in files.items():
        if not (folder / name).is_file():
            raise BadArtefact(f"{folder} lacks the file {name}", "copy the whole folder, or train it again")
        if _digest(folder / name) != digest:
            raise BadArtefact(f"{folder / name} is damaged (wrong checksum)", "copy it again, or train it again")
    return config


def load_generator(folder: Path | str) -> Generator:
    """Load a trained generator.

    Raises:
        BadArtefact: if the folder is no generator, or a file is missing, damaged, or does not fit the others.
    """
    folder = Path(folder)
    config = read_config(folder)
    description = _read_json(folder / PROBLEM)
    references = safefile.load(folder / REFERENCE)[0] if (folder / REFERENCE).is_file() else {}
    try:
        cls = generator_class(config["generator"])
        parsed = parse_config(config["config"], cls.config_class, source=str(folder / CONFIG))
        generator = cls(parsed, _problem(description, references))
        generator.load_state_dict(safefile.load(folder / MODEL)[0])
    except (KeyError, TypeError, RuntimeError, UsageError) as error:
        raise BadArtefact(f"the files of {folder} do not fit each other ({error})", "train it again") from error
    return generator.eval()


def _references(problem: Problem) -> dict[str, Tensor]:
    """The references of all forms in one state dict: names begin with the number of the form."""
    return {
        f"{i}/{name}": value.contiguous()
        for i, form in enumerate(problem.forms)
        for name, value in (form.reference or {}).items()
    }


def _describe(problem: Problem) -> dict[str, Any]:
    forms = [
        {
            "layout": form.layout.to_json(),
            "input_shape": list(form.input_shape),
            "reference": form.reference is not None,
        }
        for form in problem.forms
    ]
    return {
        "forms": forms,
        "tokenizer": problem.tokenizer.to_json(),
        "text_size": problem.text_size,
        "text_encoder": problem.text_encoder,
    }


def _problem(description: Mapping[str, Any], references: Mapping[str, Tensor]) -> Problem:
    forms = []
    for i, form in enumerate(description["forms"]):
        mine = {name.removeprefix(f"{i}/"): v for name, v in references.items() if name.startswith(f"{i}/")}
        layout = Layout.from_json(form["layout"])
        forms.append(Form(layout, mine if form["reference"] else None, tuple(form["input_shape"])))
    tokenizer = Tokenizer.from_json(description["tokenizer"])
    return Problem(tuple(forms), tokenizer, description["text_size"], description["text_encoder"])


def read_history(folder: Path | str) -> dict[str, Any]:
    """Read the account of the training; see ``save_generator``."""
    return _read_json(Path(folder) / HISTORY)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadArtefact(f"{path} cannot be read ({error})", "copy the folder again, or train it again") from None
    if not isinstance(content, dict):
        raise BadArtefact(f"{path} holds a {type(content).__name__}", "copy the folder again, or train it again")
    return content
