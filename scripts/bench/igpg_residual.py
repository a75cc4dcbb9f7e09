"""One writer of perceptrons, convolutional and residual networks, and a depth of residual networks that it never saw.

    python scripts/bench/igpg_residual.py run       # half an hour a seed on one core; can be stopped and resumed
    python scripts/bench/igpg_residual.py render    # the section of docs/results.md, from the saved JSON only

The zoo is that of configs/families.yaml with residual networks of 8 and 20 layers beside; the generator is that of
configs/igpg-families.yaml without the stage that learns instructions. The rate of the one epoch is chosen for each
method and network on the validation tasks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from zoo.datasets import Examples, Members

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a script beside this one may be named like a package
from scripts.bench._held_out import (  # noqa: E402
    Method,
    Networks,
    accuracy,
    fitted,
    mean,
    members_of,
    nearest_tasks,
    rows,
    started,
    tasks_of,
    written,
)
from scripts.bench._page import put  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "igpg_residual"
SHOTS = 10
WIDTHS, KNOWN, NEW = (4, 8, 8), (1, 3), 2
"""Channels of the three stages; blocks of each: 1 and 3 (8 and 20 layers) in the zoo, 2 (14 layers) nowhere there."""
RESIDUAL = [{"blocks": [depth] * len(WIDTHS), "widths": list(WIDTHS)} for depth in KNOWN]
TEMPLATE = """## IGPG: perceptrons, convolutional and residual networks from one model

Made by `python scripts/bench/igpg_residual.py render` from `docs/results/igpg_residual`; seeds of the generator:
{seeds}, one zoo. The zoo of `configs/families.yaml` with residual networks of 8 and 20 layers beside has five kinds of
networks, one of each for every task (five digits of ten). One generator ({parameters:,} parameters, {seconds:.0f} s of
training on a shared core) learns from all and writes one network of each kind, and of a depth that it never saw, for
each of {tasks} held-out tasks, from ten examples a class. Cells are test accuracy in % without training / after one
epoch on the training images of the task, at a rate chosen on the validation tasks. *Nearest* is the network of the
training task with the nearest class means; for the new depth its network of 8 layers gets blocks that add nothing, or
that of 20 layers loses the last block of each stage. *Its start* is what IGPG writes changes of, the network among the
learned ones that the examples choose, with the output layer fitted.

{table}

Before, lines changed the mean network of each kind instead of learned networks (one training, without an epoch / after
it): {earlier}.
"""
app = typer.Typer(add_completion=False, no_args_is_help=True)


def _nearest(groups: Mapping[str, Members], nearest: Callable[[Examples], list[str]], layers: int) -> Method:
    """The network of the nearest task, of the same kind if the zoo has it, else the residual one of so many layers."""
    from zoo.architectures import family, resized
    from zoo.networks import architecture_of

    def make(architecture: Mapping[str, Any], examples: Examples, seed: int) -> Networks:
        tasks, name = nearest(examples), family(architecture).describe(architecture)
        if name in groups:
            return members_of(groups[name], tasks)
        known = next(one for one in groups if one.startswith(f"ResNet-{layers} "))
        networks = members_of(groups[known], tasks)
        made = resized(architecture_of(groups[known].layout), networks, architecture, seed)
        assert made is not None
        return made

    return make


def _depth(blocks: int) -> int:
    return 2 * blocks * len(WIDTHS) + 2


def _named(groups: Sequence[Members]) -> dict[str, Members]:
    from zoo.architectures import family
    from zoo.networks import architecture_of

    return {family(made := architecture_of(one.layout)).describe(made): one for one in groups}


@app.command()
def run(
    work: Annotated[Path, typer.Option(help="Folder for zoo and generators.")] = Path("runs/bench-residual"),
    seeds: Annotated[str, typer.Option(help="Seeds of the generator, separated by commas.")] = "0",
) -> None:
    """Measure what is not measured yet."""
    import torch

    from weightgen import jobs
    from weightgen.checkpoint import load_generator, read_history
    from weightgen.generators.igpg import IGPG
    from zoo.architectures import family
    from zoo.build.vectorised import TrainingConfig, initialise
    from zoo.datasets import load_groups
    from zoo.networks import architecture_of
    from zoo.threads import torch_threads
    from zoo.zoo import Zoo

    def scratch(architecture: Mapping[str, Any], examples: Examples, first: int) -> Networks:
        return initialise(architecture, [first + i for i in range(len(examples.mask))])

    folder, target = work / "zoo", RESULTS / "rivals.json"
    RESULTS.mkdir(parents=True, exist_ok=True)
    jobs.build_zoo(ROOT / "configs" / "families.yaml", folder, [f"network.residual={json.dumps(RESIDUAL)}"])
    with Zoo.open(folder) as zoo, torch_threads(1):
        recipe = zoo.meta("recipe")
        assert recipe is not None
        training, groups = TrainingConfig(**recipe["training"]), _named(load_groups(zoo, "train"))
        wanted = {name: architecture_of(one.layout) for name, one in groups.items()}
        known = next(one for one in wanted.values() if one["family"] == "resnet")
        new = {**known, "blocks": [NEW] * len(WIDTHS)}
        wanted[family(new).describe(new)] = new
        splits = tasks_of(zoo, "val", SHOTS), tasks_of(zoo, "test", SHOTS)
        nearest, beyond = nearest_tasks(zoo, SHOTS), {family(new).describe(new): new}
        near = {one: _nearest(groups, nearest, _depth(one)) for one in KNOWN}
        rivals = {"scratch": (scratch, wanted)}
        for one, asked in zip(KNOWN, (wanted, beyond), strict=True):
            rivals[f"nearest {_depth(one)}"] = near[one], asked
            rivals[f"nearest {_depth(one)} fitted"] = fitted(near[one]), asked
        result = json.loads(target.read_text()) if target.is_file() else {"new": family(new).describe(new)}
        for name, (make, asked) in rivals.items():
            if name not in result:
                result[name] = rows(make, asked, splits, training, 0)
        names, judge = [task.name for task in splits[1].judge.tasks], splits[1].judge
        result["trained in full"] = {
            name: {"0": accuracy(wanted[name], members_of(one, names), judge)}
            for name, one in _named(load_groups(zoo, "test")).items()
        }
        target.write_text(json.dumps(result, indent=1) + "\n")
        for seed in map(int, seeds.split(",")):
            if (target := RESULTS / f"full-{seed}.json").is_file():
                continue
            out = work / f"igpg-{seed}"
            overrides = [f"seed={seed}", "stages.announce.steps=0"]
            jobs.train(ROOT / "configs" / "igpg-families.yaml", folder, out, overrides)
            history = read_history(out)
            generator = load_generator(out)
            assert isinstance(generator, IGPG)
            with torch.no_grad():
                method, begun = written(generator), started(generator)
            found = {
                "parameters": history["parameters"],
                "seconds": round(sum(stage["seconds"] for stage in history["stages"].values()), 1),
                "igpg": rows(method, wanted, splits, training, seed),
                "start": rows(begun, wanted, splits, training, seed),
            }
            target.write_text(json.dumps(found, indent=1) + "\n")


def _cell(found: Sequence[Mapping[str, Any]]) -> str:
    return " / ".join(f"{100 * mean([mean(one[epoch]) for one in found]):.1f}" for epoch in "01" if epoch in found[0])


def _near(beside: Mapping[str, Any], name: str, kind: str) -> str:
    """Cell of the nearest network; of the new depth, of both that were made to fit."""
    if name != beside["new"]:
        return _cell([beside[f"nearest {_depth(KNOWN[0])}{kind}"][name]])
    found = {_depth(one): beside[f"nearest {_depth(one)}{kind}"][name] for one in KNOWN}
    return "; ".join(f"of {layers} layers {_cell([scores])}" for layers, scores in found.items())


@app.command()
def render() -> None:
    """Write the section of docs/results.md."""
    paths, rivals = sorted(RESULTS.glob("full-*.json")), RESULTS / "rivals.json"
    if not paths or not rivals.is_file():
        raise SystemExit("error: there are no results; remedy: python scripts/bench/igpg_residual.py run")
    runs, beside = [json.loads(path.read_text()) for path in paths], json.loads(rivals.read_text())
    lines = [
        "| network | | IGPG | its start | nearest | nearest, output layer fitted | scratch | trained in full |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in runs[0]["igpg"]:
        unseen = name == beside["new"]
        near = [_near(beside, name, kind) for kind in ("", " fitted")]
        full = beside["trained in full"].get(name)
        cells = [
            *(name, "new depth" if unseen else "in the zoo"),
            *(_cell([one[what][name] for one in runs]) for what in ("igpg", "start")),
            *(*near, _cell([beside["scratch"][name]]), _cell([full]) if full else ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    before = json.loads((RESULTS / "earlier" / "from_mean" / "full-0.json").read_text())["igpg"]
    text = TEMPLATE.format(
        earlier=", ".join(f"{name} {_cell([scores])}" for name, scores in before.items()),
        seeds=", ".join(path.stem.removeprefix("full-") for path in paths),
        parameters=runs[0]["parameters"],
        seconds=mean([one["seconds"] for one in runs]),
        tasks=len(next(iter(runs[0]["igpg"].values()))["0"]),
        table="\n".join(lines),
    )
    put("igpg_residual", text)


if __name__ == "__main__":
    app()
