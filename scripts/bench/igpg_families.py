"""One writer of two families: perceptrons and convolutional networks, and whether instructions name the right one.

    python scripts/bench/igpg_families.py run                    # can be stopped and resumed
    python scripts/bench/igpg_families.py run --announce-only    # announcements alone, a few minutes
    python scripts/bench/igpg_families.py render                 # the section of docs/results.md

Zoo and generator are those of configs/families.yaml and configs/igpg-families.yaml. Instructions are in
igpg_instructions.json: `used` were looked at while phrasings were changed; `fresh` were written before, `families`
later, and both were announced once, at the end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from weightgen.generators.igpg import IGPG
    from zoo.datasets import Examples, Members
    from zoo.zoo import Zoo

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a script beside this one may be named like a package
from scripts.bench._held_out import (  # noqa: E402
    Networks,
    accuracy,
    fitted,
    mean,
    members_of,
    nearest_tasks,
    started,
    tasks_of,
    written,
)
from scripts.bench._page import put  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "igpg_families"
SAID = Path(__file__).with_name("igpg_instructions.json")
LAST = ("stages.prior.steps=0", "stages.behaviour.steps=0")
ROWS = {
    "igpg": "IGPG",
    "start": "its start",
    "told_wrong": "IGPG, told the name of another network",
    "nearest": "nearest network of the zoo",
    "nearest_fitted": "the same, output layer fitted",
    "oracle": "trained in full",
}
app = typer.Typer(add_completion=False, no_args_is_help=True)


def _heard(generator: IGPG) -> dict[str, Any]:
    """What is announced for the instructions that were written by hand."""
    import torch

    from weightgen.types import Condition, Vectors
    from zoo.build.encoder import EncoderConfig, TextEncoder
    from zoo.datasets import Examples
    from zoo.networks import architecture_of

    assert generator.problem.text_encoder is not None
    encoder = TextEncoder(EncoderConfig(name=generator.problem.text_encoder))
    examples = Examples(torch.zeros(1, 5, 1, 8, 8), torch.ones(1, 5, 1).bool())
    result: dict[str, Any] = {}
    for kind, asked in json.loads(SAID.read_text()).items():
        result[kind] = []
        for one in asked:
            told = Vectors(*encoder.read([one["said"]]))
            made = architecture_of(generator.layout_for(Condition(examples, architecture=told)))
            hidden = made["sizes"][1:-1] if made["family"] == "mlp" else []
            row = {"said": one["said"], "family": made["family"], "hidden": hidden}
            if "depth" in one:
                mean = sum(hidden) / max(len(hidden), 1)
                row["depth_right"] = len(hidden) == one["depth"]
                row["width_right"] = 0.8 * one["low"] <= mean <= 1.2 * one["high"]
            row["family_right"] = made["family"] == one.get("family", "mlp")
            result[kind].append(row)
    return result


def _accuracies(generator: IGPG, zoo: Zoo, train: Members, test: Members, others: list[Members]) -> dict[str, Any]:
    """Test accuracy on the held-out tasks by row, for networks of one layout."""
    from zoo.architectures import family
    from zoo.networks import architecture_of

    shots = generator.config.shots
    tasks, nearest = tasks_of(zoo, "test", shots), nearest_tasks(zoo, shots)
    architecture, wrong = architecture_of(train.layout), architecture_of(others[0].layout)

    def near(_: Mapping[str, Any], examples: Examples, seed: int) -> Networks:
        return members_of(train, nearest(examples))

    methods = {
        "igpg": written(generator),
        "start": started(generator),
        "told_wrong": written(generator, wrong),
        "nearest": near,
        "nearest_fitted": fitted(near),
        "oracle": lambda *_: members_of(test, [task.name for task in tasks.judge.tasks]),
    }
    rows: dict[str, Any] = {"name": family(architecture).describe(architecture)}
    for row, make in methods.items():
        rows[row] = accuracy(architecture, make(architecture, tasks.examples, 0), tasks.judge)
    return rows


@app.command()
def run(
    work: Annotated[Path, typer.Option(help="Folder for zoo and generator.")] = Path("runs/bench-families"),
    seed: int = 0,
    announce_only: Annotated[bool, typer.Option("--announce-only", help="Learn instructions, write nothing.")] = False,
) -> None:
    """Train and measure."""
    from weightgen import jobs
    from weightgen.checkpoint import load_generator, read_history
    from weightgen.generators.igpg import IGPG
    from zoo.datasets import load_groups
    from zoo.threads import torch_threads
    from zoo.zoo import Zoo

    folder, name = work / f"zoo-{seed}", "announce" if announce_only else "full"
    out, target = work / f"{name}-{seed}", RESULTS / f"{name}-{seed}.json"
    jobs.build_zoo(ROOT / "configs" / "families.yaml", folder, [f"seed={seed}"])
    overrides = [f"seed={seed}", *(LAST if announce_only else ())]
    jobs.train(ROOT / "configs" / "igpg-families.yaml", folder, out, overrides)
    generator = load_generator(out)
    assert isinstance(generator, IGPG)
    with torch_threads(1):
        result: dict[str, Any] = {"instructions": _heard(generator)}
        if not announce_only:
            history = read_history(out)
            result["seconds"] = sum(stage["seconds"] for stage in history["stages"].values())
            result["parameters"] = history["parameters"]
            with Zoo.open(folder) as zoo:
                groups = {one.layout.fingerprint: one for one in load_groups(zoo, "train")}
                held = {one.layout.fingerprint: one for one in load_groups(zoo, "test")}
                result["layouts"] = [
                    _accuracies(generator, zoo, one, held[key], [o for k, o in groups.items() if k != key])
                    for key, one in groups.items()
                ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")


def _announced(row: dict[str, Any]) -> str:
    return "-".join(map(str, row["hidden"])) if row["family"] == "mlp" else "the convolutional network"


@app.command()
def render() -> None:
    """Write the section of docs/results.md."""
    full, heard = ([*sorted(RESULTS.glob(f"{name}-*.json"))] for name in ("full", "announce"))
    if not full and not heard:
        raise SystemExit("error: there are no results; remedy: python scripts/bench/igpg_families.py run")
    lines = [
        "## IGPG: two families from one model, and instructions",
        "",
        "Made by `python scripts/bench/igpg_families.py render` from `docs/results/igpg_families`.",
    ]
    if full:
        runs = [json.loads(path.read_text()) for path in full]
        one, seconds = runs[0], mean([run["seconds"] for run in runs])
        tasks = len(one["layouts"][0]["igpg"])
        lines += [
            f"{len(runs)} run(s) from an empty folder, each with a zoo of its own.",
            f"One generator ({one['parameters']:,} parameters, {seconds:.0f} s of training on a shared core)",
            "learns from the perceptrons and convolutional networks of `configs/families.yaml` and writes one network",
            f"of each kind for each of {tasks} held-out tasks, from ten examples a class. *Its start* is what it",
            "writes changes of: the network, of those learned for all, that the examples choose, output layer fitted.",
            "Accuracy untrained, %:",
            "",
            f"| network | {' | '.join(ROWS.values())} |",
            f"|---|{'---|' * len(ROWS)}",
        ]
        for number, layout in enumerate(one["layouts"]):
            found = [run["layouts"][number] for run in runs]
            cells = " | ".join(f"{100 * mean([mean(scores[row]) for scores in found]):.1f}" for row in ROWS)
            lines.append(f"| {layout['name']} | {cells} |")
        before = json.loads((RESULTS / "earlier" / "from_mean" / "full-0.json").read_text())["layouts"]
        said = ", ".join(f"{one['name']} {100 * mean(one['igpg']):.1f}" for one in before)
        lines += ["", f"Before, lines changed the mean network of each kind (one training): {said}.", ""]
    found = json.loads((heard or full)[0].read_text())["instructions"]
    fresh, families, used = (found[kind] for kind in ("fresh", "families", "used"))

    def right(rows: list[dict[str, Any]], what: str) -> str:
        return f"{sum(row[what] for row in rows)} of {len(rows)}"

    lines += [
        "Announcements need the stage `announce` alone. Of the instructions that were written before the phrasings",
        f"that it learns from, and announced once, the depth is right in {right(fresh, 'depth_right')}, the mean width",
        f"within 20 % of what was asked for in {right(fresh, 'width_right')}, the family in",
        f"{right(fresh, 'family_right')}; of others, written later and announced once too, the family in",
        f"{right(families, 'family_right')}. Of those that phrasings were changed by: depth",
        f"{right(used, 'depth_right')}, width {right(used, 'width_right')}. Where sizes differ from layer to layer it",
        "announces equal ones; the mean is judged, so one such line below counts as right.",
        "",
        "| instruction | announced | right |",
        "|---|---|---|",
    ]
    for row in [*fresh, *families]:
        good = all(row[key] for key in ("depth_right", "width_right", "family_right") if key in row)
        lines.append(f"| {row['said']} | {_announced(row)} | {'yes' if good else 'no'} |")
    put("igpg_families", "\n".join(lines))


if __name__ == "__main__":
    app()
