"""Tiny CNNs on real image sets: one generator for all, and image sets that it has never seen.

    weightgen zoo build configs/cnn-images.yaml --zoo ZOO --set 'data.sources=[FOLDER]' --set members_per_task=108 \
        --set keep_epochs=[]
    python scripts/bench/d2nwg_images.py run --zoo ZOO --work WORK   # can be stopped and resumed
    python scripts/bench/d2nwg_images.py render                      # docs/results.md from the saved JSON only

Of every data set, the last eight networks, of small zoos the last quarter, are for validation. Nothing is chosen on
test images.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a script beside this one is named like the package

from weightgen import jobs  # noqa: E402
from weightgen.checkpoint import load_generator  # noqa: E402
from weightgen.evaluation import start_points as points  # noqa: E402
from weightgen.generators import Generator  # noqa: E402
from weightgen.generators.head import FittedHead  # noqa: E402
from weightgen.types import Condition  # noqa: E402
from zoo.build.vectorised import TrainingConfig  # noqa: E402
from zoo.datasets import ExampleBank, Examples, Members, load_groups, reference_of  # noqa: E402
from zoo.networks import architecture_of  # noqa: E402
from zoo.seeds import seed_of  # noqa: E402
from zoo.tasks import TEST, TRAIN, VAL, TaskData  # noqa: E402
from zoo.zoo import Zoo  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "d2nwg_images"
VALIDATION = 8
SHOTS = 10
NETWORKS = 5
LONG = ("mnist", "cifar10", "fashion_mnist", "usps")
"""Data sets whose networks are trained for 25 epochs; the others for one."""
LEFT_OUT = ("mnist+usps", "fashion_mnist+sign_digits")
"""Sets that a generator never sees; those joined by + are left out of one training together, the two of Latin digits
among them. CIFAR-10 cannot be left out: it is the only one in colour, so nothing would be known of such networks."""
UNSEEN_NETWORKS = 1
MORE_SHOTS = 40
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def log(text: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def split(zoo: Path) -> None:
    """Make the last networks of every data set validation networks."""
    with Zoo.open(zoo) as opened:
        changes = {}
        for task in opened.tasks():
            records = sorted(opened.records(task=task.name), key=lambda record: str(record.lineage))
            held = min(VALIDATION, len(records) // 4)
            changes |= {r.id: "val" if i >= len(records) - held else "train" for i, r in enumerate(records)}
        opened.set_splits(changes)


def image_set(zoo: Zoo, members: Members, name: str) -> points.ImageSet:
    """Training and test images of a data set."""
    task = zoo.task(name)
    data = TaskData.select(zoo.dataset(task.dataset), task.classes)
    return points.ImageSet(name, architecture_of(members.layout), data.stored(TRAIN), data.stored(TEST))


def of_task(members: Members, name: str, keep: bool = True) -> Members:
    """The members on one data set, or on all others."""
    rows = [i for i, record in enumerate(members.records) if (record.task == name) == keep]
    tensors = {key: value[rows] for key, value in members.tensors.items()}
    return Members(members.layout, tuple(members.records[i] for i in rows), tensors)


def best_of(members: Members) -> points.Stacked:
    """The member with the highest validation accuracy."""
    best = max(range(len(members)), key=lambda i: members.records[i].metrics["val_accuracy"])
    return {key: value[best : best + 1] for key, value in members.tensors.items()}


def support(zoo: Zoo, name: str, seed: int, shots: int = SHOTS) -> Examples:
    """Images that a network of this set is generated from: validation images, which no network was trained on."""
    task = zoo.task(name)
    bank = ExampleBank(zoo.dataset(task.dataset), [task], VAL)
    return bank.support(torch.tensor([0]), shots, torch.Generator().manual_seed(seed_of("support", seed)))


def generate(
    generator: Generator, zoo: Zoo, members: Members, name: str, seed: int, count: int, shots: int = SHOTS
) -> points.Stacked:
    """Networks, each from its own draw of images."""
    drawn = [
        generator.networks(Condition(support(zoo, name, seed * 100 + i, shots)), members.layout, seed * 100 + i)
        for i in range(count)
    ]
    return {key: torch.cat([one[key][0] for one in drawn]) for key in drawn[0]}


@torch.no_grad()
def fitted(data: points.ImageSet, zoo: Zoo, networks: points.Stacked, seed: int) -> points.Stacked:
    """Networks with an output layer from the images that a generator is given, each from its own draw."""
    count = len(next(iter(networks.values())))
    drawn = [support(zoo, data.name, seed * 100 + i) for i in range(count)]
    examples = Examples(torch.cat([one.x for one in drawn]), torch.cat([one.mask for one in drawn]))
    return FittedHead()(data.architecture, networks, examples)


def train(
    zoo: Path, work: Path, name: str, config: str, seed: int, left_out: list[str], settings: list[str]
) -> Generator:
    """A generator, trained unless it is there."""
    out = work / name
    overrides = [f"seed={seed}", *settings] + ([f"leave_out=[{','.join(left_out)}]"] if left_out else [])
    jobs.train(config, zoo, out, overrides, progress=None)
    return load_generator(out)


def measure_seen(
    zoo: Zoo, generators: dict[str, Generator], groups: list[Members], seed: int, keep: Callable[[], None], result: Any
) -> None:
    """All data sets that the generators learned from; rows that are in the result already stay as they are."""
    for members in groups:
        reference = reference_of(members)
        for name in sorted({str(record.task) for record in members.records}):
            data, own = image_set(zoo, members, name), of_task(members, name)
            aligned = own.aligned(reference)
            scores = torch.tensor([record.metrics["val_accuracy"] for record in own.records])
            pick = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))[:NETWORKS]
            starts = {
                **{key: generate(one, zoo, members, name, seed, NETWORKS) for key, one in generators.items()},
                "mean_aligned": points.mean(aligned),
                "mean_raw": points.mean(own),
                "member": {key: value[pick] for key, value in own.tensors.items()},
                "best_member": best_of(own),
                "kde": points.kde(aligned, scores, NETWORKS, seed),
                "gaussian": points.gaussian(aligned, NETWORKS, seed),
                "scratch": points.scratch(data.architecture, NETWORKS, seed),
            }
            epochs = (0, 1, 5, 25) if name in LONG else (0, 1)
            known = result.setdefault(name, {})
            if not (missing := {method: start for method, start in starts.items() if method not in known}):
                continue
            found = run_curves(data, missing, epochs, seed)
            if name in LONG and "scratch" in missing:
                twice = run_curves(data, {"scratch": starts["scratch"]}, (2 * epochs[-1],), seed)
                found["scratch"] |= twice["scratch"]
            known |= found
            keep()
            log(f"seed {seed} {name}: " + summary(found))


def measure_unseen(
    zoo: Zoo, generator: Generator, groups: list[Members], name: str, together: list[str], seed: int
) -> dict:
    """One data set that the generator has not learned from, nor from those left out together with it."""
    members = next(one for one in groups if any(record.task == name for record in one.records))
    data, others = image_set(zoo, members, name), of_task(members, name, keep=False)
    source = architecture_of(others.layout)
    shots = support(zoo, name, seed).flat()[0]
    known = {
        str(record.task): support(zoo, str(record.task), seed).flat()[0]
        for record in {str(r.task): r for r in others.records}.values()
    }
    nearest = points.nearest_set(shots, known, lambda other: other not in together)
    pick = torch.randperm(len(of_task(others, nearest)), generator=torch.Generator().manual_seed(seed))
    close = {key: value[pick[:UNSEEN_NETWORKS]] for key, value in of_task(others, nearest).tensors.items()}
    close = points.with_outputs(close, source, data.architecture)
    best = best_of(of_task(others, nearest))
    best = points.with_outputs(best, source, data.architecture)
    random = points.scratch(data.architecture, UNSEEN_NETWORKS, seed)
    rest = functools.reduce(lambda left, gone: of_task(left, gone, keep=False), together, others)
    starts = {
        "d2nwg": generate(generator, zoo, members, name, seed, UNSEEN_NETWORKS),
        "d2nwg_more": generate(generator, zoo, members, name, seed, UNSEEN_NETWORKS, MORE_SHOTS),
        "nearest": close,
        "nearest_fitted": fitted(data, zoo, close, seed),
        "nearest_best_fitted": fitted(data, zoo, best, seed),
        "mean_others": points.with_outputs(points.mean(rest.aligned(reference_of(rest))), source, data.architecture),
        "scratch": random,
        "scratch_fitted": fitted(data, zoo, random, seed),
    }
    result = run_curves(data, starts, (0, 1, 10), seed)
    log(f"unseen {name} (nearest {nearest}) seed {seed}: " + summary(result))
    return {"nearest": nearest, "curves": result}


def run_curves(data: points.ImageSet, starts: dict[str, points.Stacked], epochs: tuple[int, ...], seed: int) -> dict:
    """Accuracies as JSON values."""
    found = points.curves(data, starts, epochs, TrainingConfig(batch_size=64, lr=3e-3, precision="bfloat16"), seed)
    return {method: {str(epoch): values for epoch, values in rows.items()} for method, rows in found.items()}


def summary(curves: dict) -> str:
    """One line."""
    return ", ".join(
        f"{method} " + "/".join(f"{100 * sum(v) / len(v):.1f}" for v in rows.values())
        for method, rows in curves.items()
    )


def cost_of(generator: Generator, zoo: Zoo, members: Members, seed: int) -> dict[str, Any]:
    """Seconds on one core to generate networks for a set, and to train one network for one epoch instead."""
    name = str(members.records[0].task)
    data, condition = image_set(zoo, members, name), Condition(support(zoo, name, seed))
    result: dict[str, Any] = {"set": name, "parameters": sum(p.numel() for p in generator.parameters())}
    for count in (1, 128):
        started = time.perf_counter()
        generator.networks(condition, members.layout, seed, count)
        result[f"seconds_{count}"] = round(time.perf_counter() - started, 3)
    started = time.perf_counter()
    run_curves(data, {"scratch": points.scratch(data.architecture, 1, seed)}, (1,), seed)
    result["seconds_epoch"] = round(time.perf_counter() - started, 3)
    return result


def save(name: str, content: Any) -> None:
    """Write a result."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    side = RESULTS / f"{name}.partial"
    side.write_text(json.dumps(content, indent=1) + "\n")
    side.replace(RESULTS / f"{name}.json")


@app.command()
def run(
    zoo: Annotated[Path, typer.Option(help="Zoo of tiny CNNs, built as above.")],
    work: Annotated[Path, typer.Option(help="Folder for generators.")],
    seeds: int = 3,
    draws: int = 3,
    first_seed: Annotated[int, typer.Option(help="Seeds before it are left out.")] = 0,
    kinds: Annotated[
        str, typer.Option(help="Generators that are measured on the sets they learned from.")
    ] = "mapper,d2nwg",
    unseen: Annotated[str, typer.Option(help="Data sets to leave out; a+b together, a,b in turns.")] = ",".join(
        LEFT_OUT
    ),
    setting: Annotated[list[str] | None, typer.Option("--set", help="Change a value of the configs.")] = None,
) -> None:
    """Train and measure; what is there already is not done again."""
    torch.set_num_threads(1)
    settings = setting or []
    split(zoo)
    with Zoo.open(zoo) as opened:
        groups = load_groups(opened, "train")
        for seed in range(first_seed, seeds):
            path = RESULTS / f"seen-{seed}.json"
            found = json.loads(path.read_text()) if path.is_file() else {"curves": {}, "cost": {}}
            if all(kind in found["cost"] for kind in kinds.split(",")):
                continue
            made = {k: train(zoo, work, f"{k}-{seed}", f"{k}-images", seed, [], settings) for k in kinds.split(",")}
            keep = functools.partial(save, f"seen-{seed}", found)
            measure_seen(opened, made, groups, seed, keep, found["curves"])
            found["cost"] |= {kind: cost_of(one, opened, groups[0], seed) for kind, one in made.items()}
            keep()
        for together in filter(None, unseen.split(",")):
            left_out = together.split("+")
            if all((RESULTS / f"unseen-{name}.json").is_file() for name in left_out):
                continue
            one = train(zoo, work, f"d2nwg-without-{together}", "d2nwg-new-images", 0, left_out, settings)
            for name in left_out:
                found = [measure_unseen(opened, one, groups, name, left_out, draw) for draw in range(draws)]
                networks = sum(record.task == name for record in opened.records())
                save(f"unseen-{name}", {"settings": settings, "networks": networks, "draws": found})


@app.command()
def render() -> None:
    """Write the section of docs/results.md."""
    from scripts.bench import d2nwg_images_render

    d2nwg_images_render.write()


if __name__ == "__main__":
    app()
