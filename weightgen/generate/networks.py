"""Networks from labelled examples: checked files out."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from weightgen.checkpoint import load_generator, read_config
from weightgen.generate.examples import read_examples
from weightgen.generate.finetune import finetune_network
from weightgen.generate.target import RECEIPT, check_target, replaced
from weightgen.generators import Generator
from weightgen.results import GenerateResult
from weightgen.types import Condition, Vectors
from zoo import safefile
from zoo.architectures import Architecture, family
from zoo.build.encoder import EncoderConfig, TextEncoder
from zoo.datasets import Examples
from zoo.errors import BadArtefact, UsageError, WeightgenError
from zoo.kinds.dense import layout_of
from zoo.networks import architecture_of, logits
from zoo.types import Layout, Weights

EXAMPLE = 'for example {"family": "mlp", "sizes": [64, 16, 5], "activation": "tanh"}'


@dataclass(frozen=True)
class Wish:
    """Which network a user wants.

    Attributes:
        instruction: in words.
        architecture: a JSON object, or a file that holds one.
    """

    instruction: str | None = None
    architecture: str | None = None

    def read(self) -> Architecture | None:
        """The architecture.

        Raises:
            BadArtefact: if it is no JSON object.
        """
        if self.architecture is None:
            return None
        try:
            inline = self.architecture.lstrip().startswith("{")
            found = json.loads(self.architecture if inline else Path(self.architecture).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadArtefact(f"the architecture {self.architecture!r} cannot be read ({error})", EXAMPLE) from None
        found = found.get("architecture", found) if isinstance(found, dict) else found
        if not isinstance(found, dict) or not isinstance(found.get("family"), str):
            raise BadArtefact(f"the architecture {self.architecture!r} names no family", EXAMPLE)
        return found


def _learned(generator: Generator, x: Tensor, y: Tensor, path: Path) -> Layout:
    """The layout that was learned from whose networks take these examples and have as many classes."""
    numel = x[0].numel()
    taken = [form for form in generator.problem.forms if torch.Size(form.input_shape).numel() == numel]
    if not taken:
        raise _wrong_shape(generator, x, path)
    classes = [_classes(form.layout) for form in taken]
    count = int(y.max()) + 1
    if count not in classes and generator.any_classes:
        made = {one.fingerprint: one for form in taken if (one := _of_classes(form.layout, count)) is not None}
        if len(made) == 1:
            return next(iter(made.values()))
    if count not in classes:
        known = ", ".join(map(str, sorted(set(classes))))
        raise UsageError(
            f"{path}: labels go up to {count - 1}, the generator writes networks with {known} classes",
            f"give examples of exactly {known} classes, labelled from 0",
        )
    if classes.count(count) > 1:
        raise UsageError(
            f"the generator writes {classes.count(count)} layouts for such examples",
            "say which one with --architecture, or with --instruction if it was trained on instructions",
        )
    return taken[classes.index(count)].layout


def _of_classes(layout: Layout, count: int) -> Layout | None:
    """The same network with another number of outputs; ``None`` for families that do not say theirs."""
    architecture = architecture_of(layout)
    if architecture["family"] == "mlp":
        return layout_of({**architecture, "sizes": [*architecture["sizes"][:-1], count]})
    return layout_of({**architecture, "classes": count}) if "classes" in architecture else None


def _wrong_shape(generator: Generator, x: Tensor, path: Path) -> UsageError:
    shapes = sorted({form.input_shape for form in generator.problem.forms})
    return UsageError(
        f"{path}: examples have the shape {tuple(x.shape[1:])}, the generator was trained on "
        f"{', '.join(map(str, shapes))}",
        "bring the inputs into the form of the training data",
    )


def _wanted(generator: Generator, architecture: Architecture, x: Tensor, y: Tensor, path: Path) -> Layout:
    """The layout of an architecture that the user gives."""
    layout = layout_of(architecture)
    shape = generator.input_shape(layout)
    if shape is None:
        own = sorted({family(one).describe(one) for one in map(architecture_of, _layouts(generator))})
        raise UsageError(
            f"the generator cannot write {family(architecture).describe(architecture)}, it was trained on "
            f"{', '.join(own[:4])}",
            "give an architecture of the same family for the same inputs",
        )
    if torch.Size(shape).numel() != x[0].numel():
        raise _wrong_shape(generator, x, path)
    if (count := _classes(layout)) != int(y.max()) + 1:
        raise UsageError(
            f"{path}: labels go up to {int(y.max())}, the architecture has {count} classes",
            f"give examples of exactly {count} classes, labelled from 0",
        )
    return layout


def _layouts(generator: Generator) -> list[Layout]:
    return [form.layout for form in generator.problem.forms]


def _classes(layout: Layout) -> int:
    architecture = architecture_of(layout)
    return family(architecture).outputs(architecture).size


def ask(generator: Generator, wish: Wish, x: Tensor, y: Tensor, path: Path) -> tuple[Condition, Layout]:
    """What the generator is told, and the layout that it writes.

    Args:
        generator: trained.
        wish: for which network.
        x, y: labelled examples.
        path: their file, for messages.

    Raises:
        UsageError: if examples or wish do not fit the generator.
    """
    given = wish.read()
    layout = None if given is None else _wanted(generator, given, x, y, path)
    name = generator.problem.text_encoder
    if wish.instruction is None and (name is None or layout is None):
        layout = layout or _learned(generator, x, y, path)
        return _condition(generator, x, y, layout), layout
    if name is None:
        raise UsageError(
            f"the generator {generator.name} was trained without texts and reads no instruction",
            "name the network with --architecture, or train with text_encoder and conditioner.parts [.., architecture]",
        )
    encoder = TextEncoder(EncoderConfig(name=name))
    if layout is None:
        assert wish.instruction is not None
        shape = next((s for s in _shapes(generator) if torch.Size(s).numel() == x[0].numel()), None)
        if shape is None:
            raise _wrong_shape(generator, x, path)
        examples = Examples.group(x.reshape(len(x), *shape), y)
        layout = generator.layout_for(Condition(examples, architecture=Vectors(*encoder.read([wish.instruction]))))
    # What is written is told in the words of training; the instruction has decided what that is.
    architecture = architecture_of(layout)
    called = encoder.encode([family(architecture).describe(architecture)])
    told = Vectors(called[None], torch.ones(1, 1, dtype=torch.bool))
    return replace(_condition(generator, x, y, layout), architecture=told), layout


def _shapes(generator: Generator) -> list[tuple[int, ...]]:
    return [form.input_shape for form in generator.problem.forms]


def _condition(generator: Generator, x: Tensor, y: Tensor, layout: Layout) -> Condition:
    shape = generator.input_shape(layout)
    assert shape is not None
    return Condition(Examples.group(x.reshape(len(x), *shape), y))


def generate_networks(
    folder: Path, data: Path, out: Path, n: int, seed: int, finetune: int = 0, wish: Wish | None = None
) -> GenerateResult:
    """Generate, check and write networks; see ``weightgen.jobs.generate``."""
    if n < 1:
        raise UsageError(f"cannot generate {n} networks", "ask for at least one")
    check_target(out)
    generator = load_generator(folder)
    x, y = read_examples(data)
    wish = wish or Wish()
    condition, layout = ask(generator, wish, x, y, data)
    architecture = architecture_of(layout)
    assert condition.examples is not None
    x = x.reshape(len(x), *condition.examples.x.shape[3:])
    started = time.perf_counter()
    networks = generator.sample(condition, layout, n, seed)
    seconds = time.perf_counter() - started
    curves: list[list[dict[str, float]]] = []
    for i in range(n if finetune else 0):
        networks[i], curve = finetune_network(architecture, networks[i], x, y, finetune, seed + i)
        curves.append(curve)
    names = [f"network-{i:03d}.safetensors" for i in range(n)]
    accuracies = []
    with replaced(out) as side:
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
                "instruction": wish.instruction,
                "files": names,
                "networks": [{"file": f, "given_accuracy": a} for f, a in zip(names, accuracies, strict=True)],
                "finetune_steps": finetune,
                "curves": curves,
            },
        }
        (side / RECEIPT).write_text(json.dumps(receipt, indent=1))
    return GenerateResult(tuple(out / name for name in names), tuple(accuracies), seconds, tuple(map(tuple, curves)))


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
