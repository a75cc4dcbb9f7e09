"""The section of docs/results.md on tiny CNNs, from the saved JSON only."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from scripts.bench._page import put
from scripts.bench.d2nwg_images import LONG, MORE_SHOTS, NETWORKS, RESULTS, SHOTS, UNSEEN_NETWORKS

NAMES = {
    "mapper": "mapper: condition to weights in one pass, one candidate",
    "d2nwg": "D2NWG, one candidate",
    "d2nwg_more": f"D2NWG from {MORE_SHOTS} images a class",
    "mean_aligned": "mean of the zoo's networks on this set, aligned",
    "mean_raw": "the same, not aligned",
    "member": "a network of the zoo on this set",
    "best_member": "the best of them by validation images, where D2NWG starts",
    "nearest": "a network of the nearest other set",
    "nearest_fitted": "the same, output layer fitted to the given images",
    "nearest_best_fitted": "the best network of that set, output layer fitted",
    "mean_others": "mean of the networks on all other sets, aligned",
    "kde": "kernel density of the best 30 %, aligned",
    "gaussian": "Gaussian a weight, aligned",
    "scratch": "random initialisation",
    "scratch_fitted": "the same, output layer fitted to the given images",
}


def mean(runs: list[dict], method: str, epoch: str) -> float:
    """Mean accuracy of all networks of all runs."""
    return statistics.mean(value for run in runs for value in run[method][epoch])


def mean_of(runs: list[dict], method: str, epoch: str) -> str:
    """Mean and deviation between runs, in %."""
    values = [100 * mean([r], method, epoch) for r in runs if epoch in r.get(method, {})]
    if not values:
        return ""
    tensor = torch.tensor(values)
    return f"{tensor.mean():.1f}" + (f" ± {tensor.std():.1f}" if len(values) > 1 else "")


def table(runs: list[dict], epochs: tuple[str, ...]) -> list[str]:
    """Methods down, epochs across."""
    lines = ["| start | " + " | ".join(f"epoch {epoch}" for epoch in epochs) + " |", "|---" * (len(epochs) + 1) + "|"]
    for method, what in NAMES.items():
        if any(method in one for one in runs):
            lines.append(f"| {what} | " + " | ".join(mean_of(runs, method, epoch) for epoch in epochs) + " |")
    return lines


def costs(kind: str, runs: list[dict]) -> str:
    """What generating takes, and what training takes instead."""
    one, many, epoch = (
        statistics.median(run[key] for run in runs) for key in ("seconds_1", "seconds_128", "seconds_epoch")
    )
    return (
        f"{kind}: one network takes {one:.2f} s on one core, 128 take {many:.1f} s; training one network for one epoch "
        f"on {runs[0]['set']} takes {epoch:.1f} s. The generator has {runs[0]['parameters']:,} parameters."
    )


def verdict(seen: list[dict], method: str) -> str:
    """What the tables say of a generator, favourable or not."""

    def value(name: str, method: str, epoch: str) -> float:
        return sum(sum(r["curves"][name][method][epoch]) / len(r["curves"][name][method][epoch]) for r in seen)

    names = sorted(seen[0]["curves"])
    rivals = ("mean_aligned", "member", "best_member")
    before = [sum(value(n, method, "0") > value(n, other, "0") for n in names) for other in rivals]
    long = [name for name in names if name in LONG]
    after = [sum(value(n, method, "25") > value(n, "scratch", epoch) for n in long) for epoch in ("25", "50")]
    return (
        f"{method}: without training its networks are above the zoo's aligned mean on {before[0]} of {len(names)} "
        f"sets, above a network of the zoo on {before[1]}, and above the best of them by validation images "
        f"on {before[2]}. After 25 epochs they are above a random start after 25 epochs "
        f"on {after[0]} of {len(long)} sets, above one after 50 on {after[1]}."
    )


def starts(seen: list[dict]) -> list[str]:
    """What it is worth where decoding begins."""
    paths = [RESULTS / f"{kind}-start-0.json" for kind in ("one", "layout")]
    varied = [json.loads(path.read_text()) for path in sorted((RESULTS / "earlier").glob("seen-*.json"))]
    if not seen or not varied or not all(path.is_file() for path in paths):
        return []
    earlier = [[json.loads(path.read_text())] for path in paths]
    lines = [
        "",
        "Earlier trainings (one seed, 3,000 steps) began at one network, of the layout that most networks have, so "
        "that colour images and sets of five classes began at pieces of it; then at one network of every layout; then "
        "(two seeds, 2,400 steps at ten times the rate) at the best network of the set that is nearest in the "
        "contrastive space, with images shifted and noisy while training. Without training, accuracy in %:",
        "",
        "| set | mapper, one start | D2NWG, one start | a start for every layout | for every set, images varied | now "
        "| the start itself | a network of the zoo |",
        "|---" * 8 + "|",
    ]
    for name in sorted(seen[0]["curves"]):
        one, layout, old, now = ([run["curves"][name] for run in runs] for runs in (*earlier, varied, seen))
        rows = (
            (one, "mapper"),
            (one, "d2nwg"),
            (layout, "d2nwg"),
            (old, "d2nwg"),
            (now, "d2nwg"),
            (now, "best_member"),
            (now, "member"),
        )
        lines.append(f"| {name} | " + " | ".join(mean_of(runs, method, "0") for runs, method in rows) + " |")
    return lines


WAYS = {
    "mix": "tasks made at random",
    "head": "output layers fitted to the given images, real tasks only",
    "head and mix": "output layers fitted, tasks made at random",
    "head, mix and further": "the same, half of the steps judged after four updates",
    "head, mix and the start of another set": "output layers fitted, 70 % of tasks made at random, changes of the "
    "network of the set nearest in the contrastive space, if there is one of as many classes",
    "start": "output layers fitted, changes of the network that does best on images held back from the fit, of the "
    "best 8 a set; not trained further",
    "start of 32": "the same, of the best 32 a set",
    "start, changed": "the same, of the best 8, trained on the real tasks",
}


def unseen() -> list[str]:
    """Tables of the sets that were left out, and what they say on average."""
    found = {path.stem.removeprefix("unseen-"): json.loads(path.read_text()) for path in RESULTS.glob("unseen-*.json")}
    if not found:
        return []
    curves = {name: [one["curves"] for one in content["draws"]] for name, content in found.items()}

    def average(method: str, epoch: str) -> float:
        return statistics.mean(100 * mean(runs, method, epoch) for runs in curves.values())

    rivals = ("scratch", "nearest", "nearest_best_fitted")

    def ahead(epoch: str) -> str:
        gaps = [average("d2nwg", epoch) - average(other, epoch) for other in rivals]
        names = ("a random start", "a network of the nearest other set", "the best there with its output layer fitted")
        return ", ".join(f"{gap:+.1f} from {name}" for gap, name in zip(gaps, names, strict=True))

    own, first = next(iter(found.values())), sorted(curves)
    shown = [method for method in NAMES if all(method in one for runs in curves.values() for one in runs)]
    lines = [
        "",
        f"### {', '.join(first)}, never seen",
        "",
        "Sets of Latin digits were left out together. " + changed(own),
        f"Networks are generated from {SHOTS} images a class, {UNSEEN_NETWORKS} a method, set and draw; ± between the "
        f"{len(own['draws'])} draws. Output layers of other starts see the same images. The config has no behavioural "
        "steps, so what is written is a start with a fitted layer and does not depend on the seed of the training: one "
        "with another seed, without MNIST and USPS, wrote the same networks for both, to the bit.",
        "",
        f"Points of D2NWG on average over {len(first)} sets, before training: {ahead('0')}. After one epoch (targets: "
        f"+10 from a random start, above the network of the nearest set): {ahead('1')}. After ten: {ahead('10')}. "
        + earlier(),
        "",
        *average_table(shown, average),
    ]
    for name in first:
        nearest = found[name]["draws"][0]["nearest"]
        lines += ["", f"### {name}, never seen (nearest: {nearest})", "", *table(curves[name], ("0", "1", "10"))]
    return lines + ways()


def earlier() -> str:
    """What earlier generators gave."""

    def gap(kind: str) -> str:
        runs = [json.loads(path.read_text())["draws"] for path in sorted((RESULTS / "earlier").glob(f"{kind}-*.json"))]
        curves = [[one["curves"] for one in draws] for draws in runs]
        gaps = [100 * (mean(one, "d2nwg", "1") - mean(one, "scratch", "1")) for one in curves]
        return f"{statistics.mean(gaps):+.1f}"

    return (
        f"Earlier generators were after one epoch {gap('unseen')} from a random start (from 4 networks a set, without "
        f"starts of their own) and {gap('changed')} (starts nearest in the contrastive space, and 600 steps on tasks "
        "most of which were made at random)."
    )


def changed(content: dict) -> str:
    """What differs from the shipped config."""
    settings = ", ".join(f"`{one}`" for one in content["settings"])
    text = f"The zoo has {content['networks']} networks a set."
    return f"{text} `configs/d2nwg-new-images.yaml` with {settings}." if settings else text


def average_table(methods: Sequence[str], average: Any) -> list[str]:
    """Means over sets."""
    lines = ["| start, mean of all | epoch 0 | epoch 1 | epoch 10 |", "|---|---|---|---|"]
    for method in methods:
        values = " | ".join(f"{average(method, epoch):.1f}" for epoch in ("0", "1", "10"))
        lines.append(f"| {NAMES[method]} | {values} |")
    return lines


def ways() -> list[str]:
    """What was tried for sets that were left out, on the validation images of two others."""
    path = RESULTS / "ways.json"
    if not path.is_file():
        return []
    found = json.loads(path.read_text())
    sets = list(next(iter(found.values()))["sets"])
    lines = [
        "",
        "### Ways to networks for sets never seen",
        "",
        f"Chosen on validation images of {' and '.join(sets)}, which were left out of each training; accuracy in % "
        "before and after one epoch, one short training each. " + first_way(),
        "",
        "| way | steps | " + " | ".join(f"{name}, {SHOTS} images a class" for name in sets) + " | the same, from 40 |",
        "|---" * (len(sets) + 3) + "|",
    ]
    for way, content in found.items():
        cells = [pair(content["sets"][name][f"{SHOTS} images a class"]) for name in sets]
        more = ", ".join(pair(content["sets"][name]["40 images a class"]) for name in sets)
        lines.append(f"| {WAYS[way]} | {content['steps']} | {' | '.join(cells)} | {more} |")
    scratch = [pair(next(iter(found.values()))["sets"][name]["scratch"]) for name in sets]
    return [*lines, f"| random initialisation |  | {' | '.join(scratch)} |  |"]


def pair(curve: dict[str, list[float]]) -> str:
    """Before and after an epoch."""
    return " / ".join(f"{100 * statistics.mean(values):.1f}" for values in curve.values())


def first_way() -> str:
    """The generator of the tables of seen sets, trained without two of them."""
    parts = []
    for path in sorted(RESULTS.glob("first-*.json")):
        runs = [one["curves"] for one in json.loads(path.read_text())]
        own, scratch = (100 * mean(runs, method, "1") for method in ("d2nwg", "scratch"))
        parts.append(f"{path.stem.removeprefix('first-')} {own:.1f} (random start {scratch:.1f})")
    return f"Real tasks only and written output layers gave, after one epoch, on test images: {', '.join(parts)}."


def fine_tuning() -> list[str]:
    """How long training takes to the accuracy of generated networks."""
    path = RESULTS / "cost.json"
    if not path.is_file():
        return []
    found = json.loads(path.read_text())
    own = sorted(name for name, content in found.items() if not content["saved"])
    lines = [
        "",
        "What training takes instead: random starts (those of the first run; for "
        f"{', '.join(own)} 3 of their own with schedules of 1, 5, 10, 25 and 50 epochs) up to the first number of "
        "epochs that ends at or above the mean of D2NWG's networks before training (of the first run); core-seconds of "
        "one such training, or of 50 epochs.",
        "",
        "| set | D2NWG, epoch 0 | epochs from a random start | core-seconds |",
        "|---|---|---|---|",
    ]
    for name, content in sorted(found.items()):
        last, scores = list(content["accuracy"].items())[-1]
        reached = f"{100 * statistics.mean(scores):.1f}"
        epochs = str(content["epochs"]) if "epochs" in content else f"not in {last} ({reached})"
        lines.append(f"| {name} | {100 * content['target']:.1f} | {epochs} | {content.get('core_seconds', '')} |")
    return lines


def write() -> None:
    """Put the section into the page."""
    seen = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("seen-*.json"))]
    lines = [
        "## Tiny CNNs on real image sets",
        "",
        "Made by `python scripts/bench/d2nwg_images.py render` from `docs/results/d2nwg_images`. Accuracy on test",
        f"images in %, {NETWORKS} networks a method and run, {len(seen)} run(s), ± between them (own training of the",
        f"generator, own draws). A network is generated from {SHOTS} validation images a class; training afterwards",
        "uses all training images, the same batches and settings for all starts. The CIFAR-10 copy is lossy.",
        "The zoo was built twice from one recipe; rounding differs between machines. Means, kernel densities and",
        "Gaussians of the first two runs are of the first zoo, all other rows of the second.",
    ]
    if seen:
        lines += ["", *(costs(kind, [one["cost"][kind] for one in seen]) for kind in seen[0]["cost"])]
        lines += fine_tuning()
        lines += ["", *(verdict(seen, kind) for kind in seen[0]["cost"]), *starts(seen)]
        for name in sorted(seen[0]["curves"]):
            runs = [one["curves"][name] for one in seen]
            epochs = ("0", "1", "5", "25", "50") if name in LONG else ("0", "1")
            lines += ["", f"### {name}, learned from", "", *table(runs, epochs)]
    put("d2nwg_images", "\n".join(lines + unseen()))
