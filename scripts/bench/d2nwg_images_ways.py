"""Ways to write tiny CNNs for image sets that a generator has never seen, compared on validation images.

    python scripts/bench/d2nwg_images_ways.py --zoo ZOO --work WORK   # the zoo of d2nwg_images.py

Two sets are left out of every training. Networks are generated from half of their validation images, trained further
on their training images and judged on the other half. Test images are not used; the sets of the final table are others.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a script beside this one is named like the package

from scripts.bench import d2nwg_images as bench  # noqa: E402
from weightgen import jobs  # noqa: E402
from weightgen.checkpoint import load_generator  # noqa: E402
from weightgen.evaluation import start_points as points  # noqa: E402
from weightgen.generators import Generator  # noqa: E402
from weightgen.types import Condition  # noqa: E402
from zoo.datasets import ExampleBank, Members, load_groups  # noqa: E402
from zoo.networks import architecture_of  # noqa: E402
from zoo.tasks import TRAIN, VAL, TaskData  # noqa: E402
from zoo.zoo import Zoo  # noqa: E402

LEFT_OUT = ("kannada_mnist", "quickdraw5")
SHOTS = (10, 40)
NETWORKS = 4
COMMON = (
    f"leave_out=[{','.join(LEFT_OUT)}]",
    "stages.alignment.steps=0",
    "stages.diffusion.steps=100",
    "behaviour.queries=64",
    "precision=bfloat16",
)
BEGUN = ("head=fitted", "start=other", "starts=8", "stages.alignment.steps=0", "stages.alignment.batch_size=24")
WAYS = {
    "mix": ("stages.behaviour.steps=800", "head=written", "behaviour.mix={share: 1.0}", "behaviour.further.share=0"),
    "head and mix": (
        "stages.behaviour.steps=400",
        "head=fitted",
        "behaviour.mix={share: 1.0}",
        "behaviour.further.share=0",
    ),
    "head, mix and further": (
        "stages.behaviour.steps=400",
        "head=fitted",
        "behaviour.mix={share: 1.0}",
        "behaviour.further={share: 0.5, steps: 4}",
    ),
    "head": ("stages.behaviour.steps=400", "head=fitted", "behaviour.mix.share=0", "behaviour.further.share=0"),
    "start": (*BEGUN, "stages.behaviour.steps=1", "stages.behaviour.lr=1e-6"),
    "start of 32": (*BEGUN, "starts=32", "stages.behaviour.steps=1", "stages.behaviour.lr=1e-6"),
    "start, changed": (*BEGUN, "stages.behaviour.steps=400", "stages.behaviour.lr=0.0003", "behaviour.mix.share=0"),
    "start, changed, mix": (
        *BEGUN,
        "stages.behaviour.steps=400",
        "stages.behaviour.lr=0.0003",
        "behaviour.mix={share: 0.7}",
    ),
    "start, changed, further": (
        *BEGUN,
        "stages.behaviour.steps=300",
        "stages.behaviour.lr=0.0003",
        "behaviour.mix.share=0",
        "behaviour.further={share: 1.0, steps: 4}",
    ),
}


def measure(zoo: Zoo, generator: Generator, members: Members, name: str) -> dict[str, Any]:
    """Accuracy on one half of the validation images, before and after an epoch."""
    task = zoo.task(name)
    dataset = zoo.dataset(task.dataset)
    given, judge = (ExampleBank(dataset, [task], VAL, half=half) for half in (0, 1))
    x, y = judge.all(0)
    data = TaskData.select(dataset, task.classes)
    images = points.ImageSet(name, architecture_of(members.layout), data.stored(TRAIN), (x, y))
    starts: dict[str, points.Stacked] = {"scratch": points.scratch(images.architecture, NETWORKS, 0)}
    for shots in SHOTS:
        supports = [given.support(torch.tensor([0]), shots, torch.Generator().manual_seed(i)) for i in range(NETWORKS)]
        drawn = [generator.networks(Condition(s), members.layout, i) for i, s in enumerate(supports)]
        starts[f"{shots} images a class"] = {key: torch.cat([one[key][0] for one in drawn]) for key in drawn[0]}
    return bench.run_curves(images, starts, (0, 1), 0)


def main(
    zoo: Annotated[Path, typer.Option(help="Zoo of tiny CNNs, split by d2nwg_images.py.")],
    work: Annotated[Path, typer.Option(help="Folder for generators.")],
    ways: Annotated[str, typer.Option(help="Which, with ; between them.")] = ";".join(WAYS),
) -> None:
    """Train and measure every way; generators that are there are used again."""
    torch.set_num_threads(1)
    path = bench.RESULTS / "ways.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    with Zoo.open(zoo) as opened:
        groups = load_groups(opened, "train")
        for way in ways.split(";"):
            out = work / f"way-{way.replace(' ', '-')}"
            jobs.train("d2nwg-new-images", zoo, out, [*COMMON, *WAYS[way]], progress=None)
            generator = load_generator(out)
            found[way] = {"steps": generator.config.stages.behaviour.steps, "sets": {}}
            for name in LEFT_OUT:
                members = next(one for one in groups if any(record.task == name for record in one.records))
                curves = found[way]["sets"][name] = measure(opened, generator, members, name)
                bench.log(f"{way} {name}: " + bench.summary(curves))
            bench.save("ways", found)


if __name__ == "__main__":
    typer.run(main)
