"""Perceptrons of shapes that no network of the zoo has: generators beside scratch and beside a resized neighbour.

    python scripts/bench/igpg_architectures.py run       # about half an hour a seed on one core; can be stopped
    python scripts/bench/igpg_architectures.py render    # the section of docs/results.md, from the saved JSON only

One generator of each kind learns from the three shapes of configs/mlps.yaml, with its own shipped config. Then networks
of every shape below are written for the held-out tasks, judged, and trained for one epoch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from weightgen.generators import Generator
    from zoo.build.vectorised import TrainingConfig
    from zoo.datasets import ExampleBank, Examples, Members
    from zoo.zoo import Zoo

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a script beside this one may be named like a package
from scripts.bench._page import put  # noqa: E402
from scripts.bench._resize import nearest_shape, resized  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "igpg_architectures"
RATES = (0.003, 0.01, 0.03)
SHAPES: Mapping[str, tuple[list[int], str]] = {
    "16": ([16], "in the zoo"),
    "16-16": ([16, 16], "in the zoo"),
    "12": ([12], "new width, beyond"),
    "20": ([20], "new width, between"),
    "20-20": ([20, 20], "new width at this depth"),
    "16-16-16": ([16, 16, 16], "new depth, beyond"),
    "20-20-20": ([20, 20, 20], "new depth and width"),
}
GENERATORS = {"IGPG": "igpg-mlps", "D2NWG": "d2nwg-digits"}
TEMPLATE = """## IGPG: shapes that no network of the zoo has

Made by `python scripts/bench/igpg_architectures.py render` from the JSON under `docs/results/igpg_architectures/`;
{runs} run(s) from an empty folder, seed(s) {seeds}. The zoo of `configs/mlps.yaml` holds perceptrons with the hidden
layers {zoo}, one of each for every task (five digits of ten).
Each generator learns from all of them, with its shipped config
({costs}),
and writes one network for each of 50 held-out tasks from ten examples a class. Cells are test accuracy in % without
training / after one epoch on the training images of the task. The rate of that epoch was chosen for each method and
shape, out of three, on the validation tasks. *Nearest shape, resized* is the network of the task with the nearest class
means, of the zoo's nearest shape; new units start at random and lead nowhere, new layers are identities.

{table}

Of {new} shapes that are new, after one epoch: {said}.
"""
NEIGHBOUR, FULL = "nearest shape, resized", "trained in full"
app = typer.Typer(add_completion=False, no_args_is_help=True)
Networks = Mapping[str, "Tensor"]
Method = Callable[[list[int], "Examples", int], Networks]
"""From hidden layers, what is known of tasks, and a seed, to one network a task."""


@dataclass(frozen=True, eq=False)
class Tasks:
    """Tasks that no network was trained on.

    Attributes:
        examples: what methods are told.
        train: images for the epoch of training.
        judge: images that accuracy is measured on.
    """

    examples: Examples
    train: ExampleBank
    judge: ExampleBank


def _tasks(zoo: Zoo, split: str, shots: int) -> Tasks:
    import torch

    from zoo.datasets import bank_of
    from zoo.seeds import seed_of
    from zoo.tasks import TEST, TRAIN, VAL

    tasks = sorted(zoo.tasks(split=split), key=lambda task: task.name)
    rng = torch.Generator().manual_seed(seed_of("evaluation", 0))
    held = split == "test"
    told = bank_of(zoo, tasks, VAL) if held else bank_of(zoo, tasks, VAL, half=0)
    judge = bank_of(zoo, tasks, TEST) if held else bank_of(zoo, tasks, VAL, half=1)
    return Tasks(told.support(torch.arange(len(tasks)), shots, rng), bank_of(zoo, tasks, TRAIN), judge)


def _architecture(hidden: Sequence[int]) -> dict[str, Any]:
    return {"family": "mlp", "sizes": [64, *hidden, 5], "activation": "tanh"}


def _accuracy(architecture: Mapping[str, Any], networks: Networks, bank: ExampleBank) -> list[float]:
    import torch

    from zoo.networks import logits_many

    found = []
    with torch.no_grad():
        for task in range(len(bank.tasks)):
            x, y = bank.all(task)
            one = {name: value[task : task + 1] for name, value in networks.items()}
            found.append((logits_many(architecture, one, x[None]).argmax(-1) == y).float().mean().item())
    return found


def _trained(
    architecture: Mapping[str, Any], starts: Networks, tasks: Tasks, training: TrainingConfig, epochs: int
) -> Networks:
    from zoo.build.vectorised import train_stages

    data = [tasks.train.all(task) for task in range(len(tasks.train.tasks))]
    steps = max(1, round(sum(len(y) for _, y in data) / len(data) / training.batch_size))
    inputs, targets = [x for x, _ in data], [y for _, y in data]
    seeds = list(range(len(data)))
    stages = train_stages(architecture, inputs, targets, seeds, training, total=epochs * steps, starts=starts)
    return list(stages)[-1][1]


def _neighbours(groups: Sequence[Members], zoo: Zoo, shots: int) -> Method:
    """Networks of the task with the nearest class means, of the nearest shape, resized."""
    import torch

    from weightgen.evaluation.baselines import class_means
    from zoo.datasets import bank_of
    from zoo.networks import architecture_of
    from zoo.tasks import TRAIN

    by_shape = {tuple(architecture_of(one.layout)["sizes"][1:-1]): one for one in groups}
    tasks = sorted(zoo.tasks(split="train"), key=lambda task: task.name)
    rng = torch.Generator().manual_seed(0)
    keys = class_means(bank_of(zoo, tasks, TRAIN).support(torch.arange(len(tasks)), shots, rng))

    def make(hidden: list[int], examples: Examples, seed: int) -> Networks:
        have = nearest_shape(hidden, list(by_shape))
        members = by_shape[tuple(have)]
        place = {record.task: i for i, record in enumerate(members.records)}
        chosen = [place[tasks[i].name] for i in torch.cdist(class_means(examples), keys).argmin(-1).tolist()]
        return resized({name: value[chosen] for name, value in members.tensors.items()}, have, hidden, seed)

    return make


def _written(generator: Generator) -> Method:
    import torch

    from weightgen.types import Condition, Vectors
    from zoo.architectures import family
    from zoo.build.encoder import EncoderConfig, TextEncoder
    from zoo.kinds.dense import layout_of

    name = generator.problem.text_encoder
    encoder = None if name is None else TextEncoder(EncoderConfig(name=name))

    def make(hidden: list[int], examples: Examples, seed: int) -> Networks:
        architecture, condition = _architecture(hidden), Condition(examples)
        if encoder is not None:
            said = encoder.encode([family(architecture).describe(architecture)]).expand(len(condition), 1, -1)
            condition = Condition(examples, architecture=Vectors(said, torch.ones(len(condition), 1).bool()))
        found = generator.networks(condition, layout_of(architecture), seed)
        return {name: value[:, 0].contiguous() for name, value in found.items()}

    return make


def _rows(make: Method, val: Tasks, test: Tasks, training: TrainingConfig, seed: int) -> dict[str, Any]:
    """Accuracy of one method on every shape, before and after an epoch; its rate is chosen on validation tasks."""
    rows: dict[str, Any] = {}
    for label, (hidden, _) in SHAPES.items():
        architecture, found, rates = _architecture(hidden), make(hidden, val.examples, seed + 1), {}
        for rate in RATES:
            trained = _trained(architecture, found, val, training.model_copy(update={"lr": rate}), 1)
            rates[rate] = _mean(_accuracy(architecture, trained, val.judge))
        rate = max(rates, key=lambda one: rates[one])
        start = make(hidden, test.examples, seed)
        after = _trained(architecture, start, test, training.model_copy(update={"lr": rate}), 1)
        epochs = {str(i): _accuracy(architecture, one, test.judge) for i, one in enumerate((start, after))}
        rows[label] = {"rate": rate, **epochs}
        print(label, [round(_mean(scores), 4) for scores in epochs.values()], file=sys.stderr, flush=True)
    return rows


def _in_full(make: Method, test: Tasks, training: TrainingConfig) -> dict[str, Any]:
    """Networks of every shape that are trained on the held-out tasks as those of the zoo were on theirs."""
    rows = {}
    for label, (hidden, _) in SHAPES.items():
        architecture, start = _architecture(hidden), make(hidden, test.examples, 0)
        full = _trained(architecture, start, test, training, training.epochs)
        rows[label] = {"rate": training.lr, "0": _accuracy(architecture, full, test.judge)}
    return rows


def _one(seed: int, work: Path, target: Path) -> None:
    """Everything about one seed; what is in the file already is not measured again."""
    from weightgen import jobs
    from weightgen.checkpoint import load_generator
    from zoo.build.vectorised import TrainingConfig, initialise
    from zoo.datasets import load_groups
    from zoo.networks import architecture_of
    from zoo.threads import torch_threads
    from zoo.zoo import Zoo

    result: dict[str, Any] = {"generators": {}, "methods": {}}
    if target.is_file():
        result = json.loads(target.read_text())

    def keep() -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n")

    def scratch(hidden: list[int], examples: Examples, first: int) -> Networks:
        return initialise(_architecture(hidden), [first + i for i in range(len(examples.mask))])

    folder, methods = work / f"mlps-{seed}", result["methods"]
    jobs.build_zoo(ROOT / "configs" / "mlps.yaml", folder, [f"seed={seed}"])
    with Zoo.open(folder) as zoo, torch_threads(1):
        recipe = zoo.meta("recipe")
        assert recipe is not None
        groups, training = load_groups(zoo, "train"), TrainingConfig(**recipe["training"])
        result["zoo_shapes"] = [architecture_of(one.layout)["sizes"][1:-1] for one in groups]
        val, test = _tasks(zoo, "val", 10), _tasks(zoo, "test", 10)
        if FULL not in methods:
            methods["scratch"] = _rows(scratch, val, test, training, seed)
            methods[NEIGHBOUR] = _rows(_neighbours(groups, zoo, 10), val, test, training, seed)
            methods[FULL] = _in_full(scratch, test, training)
            keep()
        for name, config in GENERATORS.items():
            if name in methods:
                continue
            out = work / f"{name.lower()}-mlps-{seed}"
            jobs.train(ROOT / "configs" / f"{config}.yaml", folder, out, [f"seed={seed}"])
            generator, history = load_generator(out), json.loads((out / "history.json").read_text())
            stages = history["stages"].values()
            result["generators"][name] = {
                "parameters": history["parameters"],
                "validation": list(stages)[-1]["val_accuracy"],
                "seconds": round(sum(stage["seconds"] for stage in stages), 1),
            }
            methods[name] = _rows(_written(generator), val, test, training, seed)
            keep()


@app.command()
def run(
    work: Annotated[Path, typer.Option(help="Folder for zoos and generators.")] = Path("runs/bench-mlps"),
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
) -> None:
    """Measure what is not measured yet, seed by seed."""
    for seed in map(int, seeds.split(",")):
        _one(seed, work, RESULTS / f"full-{seed}.json")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _cell(found: Sequence[Mapping[str, Any]], epoch: str) -> str:
    return f"{100 * _mean([_mean(one[epoch]) for one in found]):.1f}" if epoch in found[0] else ""


@app.command()
def render() -> None:
    """Write the section of docs/results.md."""
    paths = sorted(RESULTS.glob("full-*.json"))
    if not paths:
        raise SystemExit("error: there are no results; remedy: python scripts/bench/igpg_architectures.py run")
    runs = [json.loads(path.read_text()) for path in paths]
    have = {name: [one for one in runs if name in one["methods"]] for name in GENERATORS}
    names = [*(name for name, found in have.items() if found), NEIGHBOUR, "scratch"]
    lines = [
        f"| hidden layers | | {' | '.join(names)} | {FULL} |",
        f"|---|---|{'---|' * len(names)}---|",
    ]
    wins = {name: {NEIGHBOUR: 0, "scratch": 0} for name in names[:-2]}
    new = [label for label, (_, what) in SHAPES.items() if what != "in the zoo"]
    for label, (_, what) in SHAPES.items():
        rows = {name: [one["methods"][name][label] for one in have.get(name, runs)] for name in [*names, FULL]}
        cells = [f"{_cell(rows[name], '0')} / {_cell(rows[name], '1')}" for name in names]
        lines.append(f"| {label} | {what} | {' | '.join(cells)} | {_cell(rows[FULL], '0')} |")
        for name, above in wins.items() if label in new else ():
            for rival in above:  # in the same runs
                own, its = ([one["methods"][who][label] for one in have[name]] for who in (name, rival))
                above[rival] += float(_cell(own, "1")) > float(_cell(its, "1"))
    made = {name: found[-1]["generators"][name] | {"runs": len(found)} for name, found in have.items() if found}
    costs = "; ".join(
        f"{name} {one['parameters']:,} parameters, {one['runs']} run(s), {one['seconds']:.0f} s of training on a "
        "shared core"
        for name, one in made.items()
    )
    said = "; ".join(
        f"{name} is above the resized neighbour on {above[NEIGHBOUR]} and above scratch on {above['scratch']}"
        for name, above in wins.items()
    )
    zoo = ", ".join(sorted("-".join(map(str, shape)) for shape in runs[0]["zoo_shapes"]))
    text = TEMPLATE.format(
        runs=len(runs),
        seeds=", ".join(path.stem.removeprefix("full-") for path in paths),
        zoo=zoo,
        costs=costs,
        table="\n".join(lines),
        new=len(new),
        said=said,
    )
    put("igpg_architectures", text)


if __name__ == "__main__":
    app()
