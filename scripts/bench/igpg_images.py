"""IGPG for tiny CNNs on real image sets, on the zoo of scripts/bench/d2nwg_images.py and beside its rows.

    python scripts/bench/igpg_images.py run --zoo ZOO --work WORK   # the zoo as built there; can be stopped and resumed
    python scripts/bench/igpg_images.py render                      # the section of docs/results.md

Of every data set, the last networks are for validation. Nothing is chosen on test images.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a script beside this one is named like the package

from scripts.bench import d2nwg_images as beside  # noqa: E402
from scripts.bench._page import put  # noqa: E402
from scripts.bench.d2nwg_images_render import mean, mean_of  # noqa: E402
from weightgen import jobs  # noqa: E402
from weightgen.checkpoint import load_generator, read_history  # noqa: E402
from weightgen.codecs.vq import VQ  # noqa: E402
from weightgen.evaluation import start_points as points  # noqa: E402
from weightgen.generators.igpg import IGPG  # noqa: E402
from weightgen.types import Condition  # noqa: E402
from zoo.datasets import Members, load_groups  # noqa: E402
from zoo.zoo import Zoo  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "igpg_images"
LONG = ("cifar10", "fashion_mnist", "mnist", "usps")
"""Data sets whose networks are trained for 25 epochs; the others are measured without training."""
EPOCHS = (0, 1, 5, 25)
ROWS = {
    "igpg": "IGPG, one candidate",
    "member": "a network of the zoo on this set",
    "scratch": "random initialisation",
}
CONTROLS = {
    "words": "words alone, not refined",
    "other_words": "the words of another set, refined for this one",
    "other_refinement": "the words of this set, refined for another one",
    "other": "written for another set",
    "start": "the network that its lines change",
}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@torch.no_grad()
def starts_of(generator: IGPG, zoo: Zoo, members: Members, names: list[str], name: str, seed: int) -> dict[str, Any]:
    """Networks by row, those of the controls too; another set is the next one of the same layout.

    The controls change the network that is begun at for this set, so that they differ in words and refinement only;
    what is written for another set changes the network of that set.
    """
    layout, tokenizer = members.layout, generator.problem.tokenizer
    other = names[(names.index(name) + 1) % len(names)]
    found: dict[str, list[dict[str, torch.Tensor]]] = {}
    for i in range(beside.NETWORKS):
        drawn = seed * 100 + i
        own, away = (Condition(beside.support(zoo, n, drawn)) for n in (name, other))
        one, two = generator.conditioner(own), generator.conditioner(away)
        here, there = generator.start(own, layout), generator.start(away, layout)
        line = generator.line(layout)
        uniform = torch.rand(1, len(line), generator=torch.Generator().manual_seed(drawn))
        words, strange = (generator.prior.write(line, told, uniform, generator.config.sampling) for told in (one, two))
        told_of = {"igpg": (words, one, here), "words": (words, None, here)}
        if other != name:
            told_of |= {"other_words": (strange, one, here), "other_refinement": (words, two, here)}
            told_of["other"] = (strange, two, there)
        for key, said in told_of.items():
            found.setdefault(key, []).append(tokenizer.tensors(generator.read(said[0], layout, *said[1:]), layout))
        if here is not None:
            found.setdefault("start", []).append(tokenizer.tensors(here, layout))
    return {key: {k: torch.cat([n[k] for n in nets]) for k in nets[0]} for key, nets in found.items()}


@torch.no_grad()
def codec_rows(generator: IGPG, zoo: Zoo, train: list[Members], held: list[Members]) -> dict[str, Any]:
    """Test accuracy of validation networks, as they are and after a codec that is fitted as the generator's was."""
    problem, tokenizer = generator.problem, generator.problem.tokenizer
    codec = VQ(generator.config.codec, tokenizer.width, problem.sizes())

    def aligned_of(members: Members) -> Members:
        form = problem.form(members.layout)
        assert form is not None
        assert form.reference is not None
        return members.aligned(form.reference)

    sets = []
    for members in train:
        frame = generator.frame(members.layout)
        sets.append((tokenizer.values(aligned_of(members).tensors, members.layout), frame.mask, frame.position))
    codec.fit(sets, torch.Generator().manual_seed(generator.config.seed))
    rows = {}
    for members in held:
        aligned, frame = aligned_of(members), generator.frame(members.layout)
        coded = codec.reconstruct(tokenizer.values(aligned.tensors, members.layout), frame.mask, frame.position)
        after = tokenizer.tensors(coded, members.layout)
        for name in sorted({str(record.task) for record in members.records}):
            here = [i for i, record in enumerate(members.records) if record.task == name]
            data = beside.image_set(zoo, members, name)
            kinds = {"before": aligned.tensors, "after": after}
            rows[name] = {
                kind: points.accuracy(data, {k: v[here] for k, v in networks.items()}).mean().item()
                for kind, networks in kinds.items()
            }
    frame = generator.frame(held[0].layout)
    return {"sets": rows, "bits_a_weight": generator.codec.bits_a_weight(frame.mask, frame.position)}


@app.command()
def run(
    zoo: Annotated[Path, typer.Option(help="Zoo of tiny CNNs.")],
    work: Annotated[Path, typer.Option(help="Folder for generators.")],
    seed: int = 0,
    sets: Annotated[str, typer.Option(help="Data sets that are trained further.")] = ",".join(LONG),
    changes: Annotated[list[str] | None, typer.Option("--set", help="Changes of the config, a.b=c.")] = None,
) -> None:
    """Train and measure; what is there already is not done again."""
    torch.set_num_threads(1)
    with Zoo.open(zoo) as opened:
        unsplit = not opened.records(split="val")
    if unsplit:
        beside.split(zoo)
    out, target = work / f"igpg-{seed}", RESULTS / f"seen-{seed}.json"
    jobs.train(ROOT / "configs" / "igpg-images.yaml", zoo, out, [f"seed={seed}", *(changes or [])])
    generator = load_generator(out)
    assert isinstance(generator, IGPG)
    result: dict[str, Any] = json.loads(target.read_text()) if target.is_file() else {"curves": {}, "controls": {}}

    def keep() -> None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n")

    with Zoo.open(zoo) as opened:
        groups = load_groups(opened, "train")
        if "codec" not in result:
            lines = [len(generator.line(members.layout)) for members in groups]
            result |= {"words": lines, "codec": codec_rows(generator, opened, groups, load_groups(opened, "val"))}
            history, result["changes"] = read_history(out), changes or []
            result["seconds"] = sum(stage["seconds"] for stage in history["stages"].values())
            result["cost"] = beside.cost_of(generator, opened, groups[0], seed)
            keep()
        for members in groups:
            names = sorted({str(record.task) for record in members.records})
            for name in names:
                done = name in result["curves"] and (
                    name not in sets.split(",") or "25" in result["curves"][name]["igpg"]
                )
                if done:
                    continue
                data, own = beside.image_set(opened, members, name), beside.of_task(members, name)
                starts = starts_of(generator, opened, members, names, name, seed)
                some = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))[: beside.NETWORKS]
                member = {"member": {key: value[some] for key, value in own.tensors.items()}}
                epochs = EPOCHS if name in sets.split(",") else (0,)
                result["curves"][name] = {
                    **beside.run_curves(data, {"igpg": starts.pop("igpg")}, epochs, seed),
                    **beside.run_curves(data, member, (0,), seed),
                }
                result["controls"][name] = beside.run_curves(data, starts, (0,), seed)
                beside.log(f"{name}: {beside.summary(result['curves'][name])}")
                keep()


def _runs() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("seen-*.json"))]


def _codec(runs: list[dict[str, Any]], name: str, key: str) -> str:
    return f"{100 * statistics.mean(run['codec']['sets'][name][key] for run in runs):.1f}"


def _head(runs: list[dict[str, Any]]) -> list[str]:
    """How it was done and what it took."""
    cost = runs[0]["cost"]
    seconds = statistics.mean(run["seconds"] for run in runs)
    one, many = (statistics.median(run["cost"][key] for run in runs) for key in ("seconds_1", "seconds_128"))
    changes = {" ".join(run["changes"]) for run in runs} - {""}
    return [
        "## IGPG: tiny CNNs on real image sets",
        "",
        "Made by `python scripts/bench/igpg_images.py render` from `docs/results/igpg_images`; "
        f"{len(runs)} run(s), ± between them (own training of the generator, own draws). Zoo of "
        f"`configs/cnn-images.yaml`, accuracy on test images in %, {beside.NETWORKS} networks a method and run, each "
        f"written from {beside.SHOTS} validation images a class. A line has "
        f"{' or '.join(map(str, runs[0]['words']))} words.",
        *(f"The config was changed: `{one}`." for one in sorted(changes)),
        f"Training took {seconds:.0f} s on a shared processor core; the generator has {cost['parameters']:,} "
        f"parameters. One network takes {one:.2f} s, 128 take {many:.1f} s. Rows of D2NWG, the mapper and random "
        "initialisations are those of the section above: the same test images, batches and settings, on the same zoo.",
    ]


def _verdict(runs: list[dict[str, Any]]) -> list[str]:
    """What the tables say."""

    def value(part: str, name: str, method: str, epoch: str = "0") -> float:
        return 100 * mean([run[part][name] for run in runs], method, epoch)

    names = sorted(runs[0]["curves"])
    above = [name for name in names if value("curves", name, "igpg") >= value("curves", name, "member")]
    gaps = {name: value("curves", name, "igpg") - value("controls", name, "start") for name in names}
    return [
        "",
        f"Without training IGPG is at or above a network of the zoo on {len(above)} of {len(names)} sets "
        f"({', '.join(above) or 'none'}). Printed for MNIST, on another zoo: IGPG 83.2 without training, 94.5 after 25 "
        "epochs. Lines change the best network, by validation images, of the set whose network does best on the given "
        "images. A row above says something about what is written only where it is above this start: "
        + ", ".join(f"{name} {gap:+.1f}" for name, gap in gaps.items())
        + f"; on average {statistics.mean(gaps.values()):+.1f}.",
    ]


def _earlier(runs: list[dict[str, Any]]) -> list[str]:
    """What a start for every set is worth."""
    path = RESULTS / "one-start-0.json"
    if not path.is_file():
        return []
    old = json.loads(path.read_text())["curves"]
    rows = []
    for name in sorted(old):
        now = mean_of([run["curves"][name] for run in runs], "igpg", "0")
        rows.append(f"{name} {mean_of([old[name]], 'igpg', '0')} (now {now})")
    return ["", f"An earlier training, one seed, whose lines all changed one network of a layout: {', '.join(rows)}."]


@app.command()
def render() -> None:
    """Write the section of docs/results.md."""
    if not (runs := _runs()):
        raise SystemExit("error: there are no results; remedy: python scripts/bench/igpg_images.py run")
    paths = sorted(beside.RESULTS.glob("seen-*.json"))
    rivals = [json.loads(path.read_text())["curves"] for path in paths]
    lines = [
        *_head(runs),
        "",
        "| set | start | epoch 0 | epoch 1 | epoch 5 | epoch 25 |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted(runs[0]["curves"]):
        own = [run["curves"][name] for run in runs]
        others = [run[name] for run in rivals if name in run]
        for method, what in {**ROWS, "d2nwg": "D2NWG", "mapper": "mapper"}.items():
            rows = own if method in ("igpg", "member") else others
            if any(method in run for run in rows):
                cells = " | ".join(mean_of(rows, method, str(epoch)) for epoch in EPOCHS)
                lines.append(f"| {name} | {what} | {cells} |")
    lines += [
        *_verdict(runs),
        *_earlier(runs),
        "",
        "What words and refinement do, without training:",
        "",
        f"| set | as written | {' | '.join(CONTROLS.values())} | a validation network | the same, after the codec |",
        f"|---|---|{'---|' * len(CONTROLS)}---|---|",
    ]
    for name in sorted(runs[0]["curves"]):
        controls = " | ".join(mean_of([run["controls"][name] for run in runs], key, "0") for key in CONTROLS)
        written = mean_of([run["curves"][name] for run in runs], "igpg", "0")
        lines.append(
            f"| {name} | {written} | {controls} | {_codec(runs, name, 'before')} | {_codec(runs, name, 'after')} |"
        )
    bits = runs[0]["codec"]["bits_a_weight"]
    lines += [
        "",
        f"The codec has {bits:.2f} bits a weight. Networks of independent starts do not compress, so what it returns "
        "for networks that it was not fitted to is as the last column says; the generator's words are learned from the "
        "task loss and are no description of the zoo.",
    ]
    put("igpg_images", "\n".join(lines))


if __name__ == "__main__":
    app()
