"""Perceptrons of shapes that no network of the zoo has: generators beside scratch and beside a resized neighbour.

    python scripts/bench/igpg_architectures.py run       # about half an hour a seed on one core; can be stopped
    python scripts/bench/igpg_architectures.py render    # the section of docs/results.md, from the saved JSON only

One generator of each kind learns from the three shapes of configs/mlps.yaml, with its own shipped config. Then networks
of every shape below are written for the held-out tasks, judged, and trained for one epoch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from zoo.build.vectorised import TrainingConfig
    from zoo.datasets import Examples, Members
    from zoo.zoo import Zoo

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a script beside this one may be named like a package
from scripts.bench._held_out import (  # noqa: E402
    Method,
    Networks,
    Tasks,
    accuracy,
    fitted,
    mean,
    members_of,
    nearest_tasks,
    rows,
    started,
    tasks_of,
    trained,
    written,
)
from scripts.bench._page import put  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "igpg_architectures"
SHAPES: Mapping[str, tuple[list[int], str]] = {
    "16": ([16], "in the zoo"),
    "16-16": ([16, 16], "in the zoo"),
    "12": ([12], "new width, beyond"),
    "20": ([20], "new width, between"),
    "20-20": ([20, 20], "new width at this depth"),
    "16-16-16": ([16, 16, 16], "new depth, beyond"),
    "20-20-20": ([20, 20, 20], "new depth and width"),
}
WANTED: Mapping[str, Mapping[str, Any]] = {
    label: {"family": "mlp", "sizes": [64, *hidden, 5], "activation": "tanh"} for label, (hidden, _) in SHAPES.items()
}
GENERATORS = {"IGPG": ("igpg-mlps", ["stages.announce.steps=0"]), "D2NWG": ("d2nwg-digits", [])}
"""Configs, and what is changed in them: shapes are given here, not announced."""
TEMPLATE = """## IGPG: shapes that no network of the zoo has

Made by `python scripts/bench/igpg_architectures.py render` from the JSON under `docs/results/igpg_architectures/`;
{runs} run(s) from an empty folder, seed(s) {seeds}. The zoo of `configs/mlps.yaml` holds perceptrons with the hidden
layers {zoo}, one of each for every task (five digits of ten).
Each generator learns from all of them, with its shipped config
({costs}),
and writes one network for each of 50 held-out tasks from ten examples a class. Cells are test accuracy in % without
training / after one epoch on the training images of the task. The rate of that epoch was chosen for each method and
shape, out of three, on the validation tasks. *Nearest shape, resized* is the network of the task with the nearest class
means, of the zoo's nearest shape; new units start at random and lead nowhere, new layers are identities. Fitted output
layers are linear discriminants of the ten examples a class.

{table}

Of {new} shapes that are new, after one epoch: {said}.

IGPG writes changes of learned networks (`start: learned`), brought into the shape that is wanted; its start is such a
network, with the output layer fitted. Earlier versions of IGPG, without training / after one epoch: changes of the mean
network, output layers written like all others ({written}); changes of the mean network, output layers
fitted to the ten examples a class ({from_mean}).
"""
NEIGHBOUR, FULL, START = "nearest shape, resized", "trained in full", "IGPG's start"
FITTED = {NEIGHBOUR: "the same, output layer fitted", "scratch": "scratch, output layer fitted"}
app = typer.Typer(add_completion=False, no_args_is_help=True)


def nearest_shape(wanted: Sequence[int], known: Sequence[Sequence[int]]) -> list[int]:
    """The shape of the zoo with the nearest depth, then the nearest width; of two equally near ones the smaller."""
    return list(min(known, key=lambda one: (abs(len(one) - len(wanted)), abs(one[0] - wanted[0]), len(one), one[0])))


def _neighbours(groups: Sequence[Members], zoo: Zoo, shots: int) -> Method:
    """Networks of the task with the nearest class means, of the nearest shape, resized."""
    from zoo.architectures import resized
    from zoo.networks import architecture_of

    by_shape = {tuple(architecture_of(one.layout)["sizes"][1:-1]): one for one in groups}
    nearest = nearest_tasks(zoo, shots)

    def make(architecture: Mapping[str, Any], examples: Examples, seed: int) -> Networks:
        hidden = architecture["sizes"][1:-1]
        have = by_shape[tuple(nearest_shape(hidden, list(by_shape)))]
        networks = members_of(have, nearest(examples))
        made = resized(architecture_of(have.layout), networks, architecture, seed)
        assert made is not None
        return made

    return make


def _in_full(make: Method, test: Tasks, training: TrainingConfig) -> dict[str, Any]:
    """Networks of every shape that are trained on the held-out tasks as those of the zoo were on theirs."""
    found = {}
    for label, architecture in WANTED.items():
        start = make(architecture, test.examples, 0)
        full = trained(architecture, start, test, training, training.epochs)
        found[label] = {"rate": training.lr, "0": accuracy(architecture, full, test.judge)}
    return found


def _one(seed: int, work: Path, target: Path) -> None:
    """Everything about one seed; what is in the file already is not measured again."""
    from weightgen import jobs
    from weightgen.checkpoint import load_generator
    from weightgen.generators.igpg import IGPG
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

    def scratch(architecture: Mapping[str, Any], examples: Examples, first: int) -> Networks:
        return initialise(architecture, [first + i for i in range(len(examples.mask))])

    folder, methods = work / f"mlps-{seed}", result["methods"]
    jobs.build_zoo(ROOT / "configs" / "mlps.yaml", folder, [f"seed={seed}"])
    with Zoo.open(folder) as zoo, torch_threads(1):
        recipe = zoo.meta("recipe")
        assert recipe is not None
        groups, training = load_groups(zoo, "train"), TrainingConfig(**recipe["training"])
        result["zoo_shapes"] = [architecture_of(one.layout)["sizes"][1:-1] for one in groups]
        splits = tasks_of(zoo, "val", 10), tasks_of(zoo, "test", 10)
        if FULL not in methods:
            methods["scratch"] = rows(scratch, WANTED, splits, training, seed)
            methods[NEIGHBOUR] = rows(_neighbours(groups, zoo, 10), WANTED, splits, training, seed)
            methods[FULL] = _in_full(scratch, splits[1], training)
            keep()
        for name, make in ((NEIGHBOUR, _neighbours(groups, zoo, 10)), ("scratch", scratch)):
            if FITTED[name] not in methods:
                methods[FITTED[name]] = rows(fitted(make), WANTED, splits, training, seed)
                keep()
        for name, (config, settings) in GENERATORS.items():
            if name in methods:
                continue
            out = work / f"{name.lower()}-mlps-{seed}"
            jobs.train(ROOT / "configs" / f"{config}.yaml", folder, out, [f"seed={seed}", *settings])
            generator, history = load_generator(out), json.loads((out / "history.json").read_text())
            stages = history["stages"].values()
            result["generators"][name] = {
                "parameters": history["parameters"],
                "validation": list(stages)[-1]["val_accuracy"],
                "seconds": round(sum(stage["seconds"] for stage in stages), 1),
            }
            methods[name] = rows(written(generator), WANTED, splits, training, seed)
            if isinstance(generator, IGPG):
                methods[START] = rows(started(generator), WANTED, splits, training, seed)
            keep()


@app.command()
def run(
    work: Annotated[Path, typer.Option(help="Folder for zoos and generators.")] = Path("runs/bench-mlps"),
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
) -> None:
    """Measure what is not measured yet, seed by seed."""
    for seed in map(int, seeds.split(",")):
        _one(seed, work, RESULTS / f"full-{seed}.json")


def _cell(found: Sequence[Mapping[str, Any]], epoch: str) -> str:
    return f"{100 * mean([mean(one[epoch]) for one in found]):.1f}" if epoch in found[0] else ""


def _earlier(version: str) -> str:
    """What an earlier version of IGPG gave."""
    paths = sorted((RESULTS / "earlier" / version).glob("*.json"))
    found = [json.loads(path.read_text())["methods"]["IGPG"] for path in paths]
    cells = [f"{label} {' / '.join(_cell([one[label] for one in found], epoch) for epoch in '01')}" for label in SHAPES]
    return f"{len(paths)} seeds: {', '.join(cells)}"


@app.command()
def render() -> None:
    """Write the section of docs/results.md."""
    paths = sorted(RESULTS.glob("full-*.json"))
    if not paths:
        raise SystemExit("error: there are no results; remedy: python scripts/bench/igpg_architectures.py run")
    runs = [json.loads(path.read_text()) for path in paths]
    have = {name: [one for one in runs if name in one["methods"]] for name in GENERATORS}
    made = [name for name, found in have.items() if found]
    rivals = [NEIGHBOUR, FITTED[NEIGHBOUR], "scratch", FITTED["scratch"]]
    names = [*made, START, *rivals]
    lines = [
        f"| hidden layers | | {' | '.join(names)} | {FULL} |",
        f"|---|---|{'---|' * len(names)}---|",
    ]
    wins = {name: dict.fromkeys(rivals, 0) for name in made}
    new = [label for label, (_, what) in SHAPES.items() if what != "in the zoo"]
    for label, (_, what) in SHAPES.items():
        scores = {name: [one["methods"][name][label] for one in have.get(name, runs)] for name in [*names, FULL]}
        cells = [f"{_cell(scores[name], '0')} / {_cell(scores[name], '1')}" for name in names]
        lines.append(f"| {label} | {what} | {' | '.join(cells)} | {_cell(scores[FULL], '0')} |")
        for name, above in wins.items() if label in new else ():
            for rival in above:  # in the same runs
                own, its = ([one["methods"][who][label] for one in have[name]] for who in (name, rival))
                above[rival] += float(_cell(own, "1")) > float(_cell(its, "1"))
    about = {name: found[-1]["generators"][name] | {"runs": len(found)} for name, found in have.items() if found}
    costs = "; ".join(
        f"{name} {one['parameters']:,} parameters, {one['runs']} run(s), {one['seconds']:.0f} s of training on a "
        "shared core"
        for name, one in about.items()
    )
    said = "; ".join(
        f"{name} is above " + ", ".join(f"{rival} on {count}" for rival, count in above.items())
        for name, above in wins.items()
    )
    zoo = ", ".join(sorted("-".join(map(str, shape)) for shape in runs[0]["zoo_shapes"]))
    text = TEMPLATE.format(
        written=_earlier("written"),
        from_mean=_earlier("from_mean"),
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
