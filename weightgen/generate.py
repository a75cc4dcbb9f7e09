"""The ``generate`` job: examples in, checked network files out."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch

from weightgen.checkpoint import load_generator, read_config
from weightgen.generators import Form, Generator
from weightgen.results import GenerateResult
from weightgen.types import Condition
from zoo import safefile
from zoo.architectures import Architecture, family
from zoo.datasets import Examples
from zoo.errors import BadArtefact, UsageError, WeightgenError
from zoo.networks import architecture_of, logits
from zoo.types import Weights

RECEIPT = "weightgen.json"


def read_examples(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Read labelled examples.

    Args:
        path: ``.npz`` file with ``x`` and ``y``.

    Returns:
        Inputs as float32 and labels.

    Raises:
        BadArtefact: if the file is missing or no npz archive.
        UsageError: if an array is missing, empty, of the wrong type, or not finite.
    """
    if not path.is_file():
        raise BadArtefact(f"{path} does not exist", "give an .npz file with the arrays x and y")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name in ("x", "y")}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise BadArtefact(
            f"{path} is not a plain .npz archive ({error})", "save it with numpy.savez(x=..., y=...)"
        ) from None
    missing = {"x", "y"} - set(arrays)
    if missing:
        raise UsageError(f"{path} lacks the array {missing.pop()!r}", "save it with numpy.savez(x=..., y=...)")
    x, y = arrays["x"], arrays["y"]
    if y.ndim != 1 or len(x) != len(y) or len(y) == 0:
        raise UsageError(f"{path}: x is {x.shape} and y is {y.shape}", "give one label an example, at least one")
    if not np.issubdtype(y.dtype, np.integer):
        raise UsageError(f"{path}: labels are {y.dtype}", "give integers 0 .. classes - 1")
    if x.dtype == np.uint8:
        x = x.astype(np.float32) / 255.0
    elif not np.issubdtype(x.dtype, np.number) or np.issubdtype(x.dtype, np.complexfloating):
        raise UsageError(f"{path}: inputs are {x.dtype}", "give numbers")
    x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise UsageError(f"{path}: inputs hold NaN or infinity", "remove or repair these examples")
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))


def _form_for(generator: Generator, x: torch.Tensor, y: torch.Tensor, path: Path) -> Form:
    """The form whose networks take these examples and have as many classes."""
    numel = x[0].numel()
    taken = [form for form in generator.problem.forms if torch.Size(form.input_shape).numel() == numel]
    if not taken:
        shapes = sorted({form.input_shape for form in generator.problem.forms})
        raise UsageError(
            f"{path}: examples have the shape {tuple(x.shape[1:])}, the generator was trained on "
            f"{', '.join(map(str, shapes))}",
            "bring the inputs into the form of the training data",
        )
    classes = [_classes(form) for form in taken]
    count = int(y.max()) + 1
    if count not in classes:
        known = ", ".join(map(str, sorted(set(classes))))
        raise UsageError(
            f"{path}: labels go up to {count - 1}, the generator writes networks with {known} classes",
            f"give examples of exactly {known} classes, labelled from 0",
        )
    return taken[classes.index(count)]


def _classes(form: Form) -> int:
    architecture = architecture_of(form.layout)
    return family(architecture).outputs(architecture).size


def generate_networks(folder: Path, data: Path, out: Path, n: int, seed: int) -> GenerateResult:
    """Generate, check and write networks; see ``weightgen.jobs.generate``."""
    if n < 1:
        raise UsageError(f"cannot generate {n} networks", "ask for at least one")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", "give a folder")
    if out.is_dir() and any(out.iterdir()) and not _is_generation(out):
        raise UsageError(f"{out} is not empty and holds no earlier generation", "give a new or empty folder")
    generator = load_generator(folder)
    x, y = read_examples(data)
    form = _form_for(generator, x, y, data)
    architecture = architecture_of(form.layout)
    x = x.reshape(len(x), *form.input_shape)
    condition = Condition(Examples.group(x, y))
    started = time.perf_counter()
    networks = generator.sample(condition, form.layout, n, seed)
    seconds = time.perf_counter() - started
    names = [f"network-{i:03d}.safetensors" for i in range(n)]
    accuracies = []
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        side = Path(scratch) / "networks"
        side.mkdir()
        for name, weights in zip(names, networks, strict=True):
            accuracies.append(_write_checked(architecture, weights, side / name, x, y))
        receipt = {
            "description": f"generated by {generator.name} from {len(y)} examples of {int(y.max()) + 1} classes",
            "architecture": dict(architecture),
            "generated": {
                "generator": generator.name,
                "generator_files": read_config(folder)["files"],
                "seed": seed,
                "data": str(data),
                "networks": [{"file": f, "given_accuracy": a} for f, a in zip(names, accuracies, strict=True)],
            },
        }
        (side / RECEIPT).write_text(json.dumps(receipt, indent=1))
        if out.exists():
            shutil.rmtree(out)
        side.rename(out)
    return GenerateResult(tuple(out / name for name in names), tuple(accuracies), seconds)


def _is_generation(folder: Path) -> bool:
    """Whether a folder holds the files of one earlier generation, all of them, and nothing else."""
    try:
        listed = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))["generated"]["networks"]
        return {path.name for path in folder.iterdir()} <= {RECEIPT, *(network["file"] for network in listed)}
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_checked(architecture: Architecture, weights: Weights, path: Path, x: torch.Tensor, y: torch.Tensor) -> float:
    """Write one network, read it back, compare what it computes; return its accuracy on the given examples."""
    safefile.check_finite(weights.tensors, "the generated network")
    metadata = {"format": "pt", "architecture": json.dumps(dict(architecture))}
    safefile.save(path, weights.tensors, metadata)
    wanted = logits(architecture, weights.tensors, x)
    found = logits(architecture, safefile.load(path)[0], x)
    if not torch.equal(wanted, found):
        raise WeightgenError(f"{path.name} computes something else after reading it back", "check the disk, then retry")
    return round((found.argmax(-1) == y).float().mean().item(), 4)
