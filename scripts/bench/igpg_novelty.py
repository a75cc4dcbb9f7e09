"""New and good at once: IGPG at several temperatures beside copies of the zoo with noise, mixtures and means.

    python scripts/bench/igpg_novelty.py run --generator DIR --zoo ZOO   # of digits, for example of the quickstart
    python scripts/bench/igpg_novelty.py render                          # a section of docs/results.md, and a picture

Every method gives the same number of networks for every held-out task, from the same examples. Nothing is chosen: each
method is a curve over its one setting.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from weightgen.evaluation.setting import Setting
    from weightgen.generators.igpg import IGPG

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a script beside this one may be named like a package
RESULTS = ROOT / "docs" / "results"
FOLDER, PICTURE = RESULTS / "igpg_novelty", RESULTS / "igpg_novelty.png"
CANDIDATES = 4
TEMPERATURES = (0.1, 0.5, 1.0, 1.5, 2.0, 3.0)
NOISE = (0.0, 0.2, 0.4, 0.8, 1.2, 1.6)
SHARES = (0.1, 0.25, 0.5)
COUNTS = (2, 4, 16, 0)
NAMES = {
    "igpg": ("IGPG", "temperature"),
    "noise": ("nearest network + noise", "deviation"),
    "mixture": ("two nearest networks, aligned, mixed", "share of the second"),
    "mean": ("mean of the nearest networks, aligned", "networks"),
    "mean_noise": ("mean of the nearest 4, aligned, + noise", "deviation"),
    "oracle": ("trained in full on the task", ""),
}
TEMPLATE = """## IGPG: novelty and accuracy

Made by `python scripts/bench/igpg_novelty.py render` from the JSON under `docs/results/igpg_novelty/`; {runs} run(s)
with the shipped config, seed(s) {seeds}. {tasks} held-out subsets of digits, {candidates} networks each from the same
examples. Distance is that to the nearest of the zoo's training networks after alignment, as a multiple of the zoo's
own; 0 is a copy. Disagreement is the share of test images on which a network and the nearest one of the zoo differ.
*Nearest* networks are those of the training tasks with the nearest class means.

![Accuracy against distance to the nearest training network](results/igpg_novelty.png)

{table}

{reading}
"""
app = typer.Typer(add_completion=False, no_args_is_help=True)


def _methods(generator: IGPG, setting: Setting) -> Iterator[tuple[str, str, dict[str, Tensor]]]:
    """Name, setting and networks [tasks candidates ...] of every point."""
    import torch

    from weightgen.evaluation.baselines import METHODS, flatten, unflatten
    from weightgen.types import Condition
    from zoo.seeds import seed_of

    examples, layout = setting.examples(0), setting.raw.layout
    encoded, line = generator.conditioner(Condition(examples).repeat(CANDIDATES)), generator.line(layout)
    tasks = len(setting.tasks)
    rng = torch.Generator().manual_seed(seed_of("igpg novelty"))
    uniform = torch.rand(tasks * CANDIDATES, len(line), generator=rng)
    for temperature in TEMPERATURES:
        sampling = generator.config.sampling.model_copy(update={"temperature": temperature})
        values = generator.read(generator.prior.write(line, encoded, uniform, sampling), layout, encoded)
        networks = generator.problem.tokenizer.tensors(values.unflatten(0, (tasks, CANDIDATES)), layout)
        yield "igpg", str(temperature), networks

    near = dict(METHODS["nearest"](setting, examples, 0, 16))
    aligned = {
        name: value.unflatten(0, (tasks, 16))
        for name, value in _aligned(generator, setting, {k: v.flatten(0, 1) for k, v in near.items()}).items()
    }
    flat, raw = flatten(aligned, 2), flatten(near, 2)
    like = {name: value[:, 0] for name, value in near.items()}
    spread = flatten(setting.aligned.tensors).std(0)
    noise = torch.randn(tasks, CANDIDATES, flat.shape[-1], generator=rng)

    def networks_of(points: Tensor) -> dict[str, Tensor]:
        found = unflatten(points.flatten(0, 1), like)
        return {name: value.unflatten(0, (tasks, CANDIDATES)) for name, value in found.items()}

    for strength in NOISE:
        yield "noise", str(strength), networks_of(raw[:, :CANDIDATES] + strength * spread.mean() * noise)
    for share in SHARES:
        mixed = (1 - share) * flat[:, :CANDIDATES] + share * flat[:, 1 : CANDIDATES + 1]
        yield "mixture", str(share), networks_of(mixed)
    every = flatten(setting.aligned.tensors).mean(0).expand(tasks, CANDIDATES, -1)
    for count in COUNTS:
        mean = flat[:, :count].mean(1, keepdim=True).expand(-1, CANDIDATES, -1) if count else every
        yield "mean", str(count or len(setting.raw)), networks_of(mean)
    four = flat[:, :4].mean(1, keepdim=True)
    for strength in NOISE[1:]:
        yield "mean_noise", str(strength), networks_of(four + strength * spread.mean() * noise)
    yield "oracle", "", dict(METHODS["oracle"](setting, examples, 0, CANDIDATES))


def _aligned(generator: IGPG, setting: Setting, networks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Networks with their hidden units on those of the generator's reference."""
    import torch

    from zoo.architectures import family
    from zoo.symmetry import align

    form = generator.problem.form(setting.raw.layout)
    assert form is not None
    assert form.reference is not None
    groups = family(setting.architecture).groups(setting.architecture)
    count = len(next(iter(networks.values())))
    moved = [align({k: v[i] for k, v in networks.items()}, dict(form.reference), groups) for i in range(count)]
    return {name: torch.stack([one[name] for one in moved]) for name in networks}


@app.command()
def run(
    generator: Annotated[Path, typer.Option(help="Trained with configs/igpg-digits.yaml.")],
    zoo: Annotated[Path, typer.Option(help="Its zoo.")],
) -> None:
    """Measure every point of one generator."""
    import torch

    from weightgen.checkpoint import load_generator
    from weightgen.evaluation.novelty import novelty
    from weightgen.evaluation.setting import make_setting
    from weightgen.generators.igpg import IGPG
    from zoo.threads import torch_threads
    from zoo.zoo import Zoo

    loaded = load_generator(generator)
    assert isinstance(loaded, IGPG)
    reference, points = loaded.problem.forms[0].reference, []
    assert reference is not None
    with Zoo.open(zoo) as opened, torch.no_grad(), torch_threads(1):
        setting = make_setting(opened, reference, loaded.config.shots)
        for method, value, networks in _methods(loaded, setting):
            new = novelty(setting, networks, reference)
            point = {"accuracy": setting.accuracy(networks).mean().item()}
            point |= {name: new[name] for name in ("distance_ratio", "disagreement")}
            points.append({"method": method, "setting": value, **point})
            print(points[-1], file=sys.stderr, flush=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    content = {"tasks": len(setting.tasks), "candidates": CANDIDATES, "points": points}
    (FOLDER / f"full-{loaded.config.seed}.json").write_text(json.dumps(content, indent=1) + "\n")


def _joined(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points, averaged over the runs."""
    joined = []
    for several in zip(*(one["points"] for one in runs), strict=True):
        keys = ("accuracy", "distance_ratio", "disagreement")
        joined.append({**several[0], **{key: sum(p[key] for p in several) / len(several) for key in keys}})
    return joined


def _draw(points: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"igpg": "#2563a8", "noise": "#c2571a", "mixture": "#8a5fb5", "mean": "#9aa5b1", "mean_noise": "#5b6570"}
    figure, axes = plt.subplots(figsize=(8.5, 4.8), layout="constrained")
    for method, (name, _) in NAMES.items():
        own = [point for point in points if point["method"] == method]
        x, y = [p["distance_ratio"] for p in own], [100 * p["accuracy"] for p in own]
        marker = "*" if method == "oracle" else "o"
        axes.plot(
            x, y, marker=marker, color=colours.get(method, "#2f855a"), label=name, lw=1.5, ms=5 if len(own) > 1 else 10
        )
        ends = (own[0], own[-1]) if method in ("igpg", "noise") else ()
        for place, point in enumerate(ends):
            at = (point["distance_ratio"], 100 * point["accuracy"])
            axes.annotate(point["setting"], at, (6, 5 if place else -11), textcoords="offset points", fontsize=8)
    axes.set_xlabel("distance to the nearest training network, in units of the zoo's own")
    axes.set_ylabel("accuracy on held-out subsets, %")
    axes.grid(color="#e4e7eb", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    figure.savefig(PICTURE, dpi=120)
    plt.close(figure)


def _reading(points: list[dict[str, Any]]) -> str:
    """What the points say: for every one of IGPG, the best simple one that is at least as new."""
    own = [point for point in points if point["method"] == "igpg"]
    simple = [point for point in points if point["method"] not in ("igpg", "oracle")]
    best = max(simple, key=lambda point: point["accuracy"])
    parts = [
        f"The best of the simple ways reaches {100 * best['accuracy']:.1f} % at the distance "
        f"{best['distance_ratio']:.2f} ({NAMES[best['method']][0]}, {best['setting']})."
    ]
    above = 0
    for point in own:
        rivals = [one for one in simple if one["distance_ratio"] >= point["distance_ratio"]]
        above += bool(rivals) and all(point["accuracy"] > one["accuracy"] for one in rivals)
    parts.append(
        f"Of {len(own)} temperatures of IGPG, {above} are more accurate than every simple way that is at least as far "
        "from the zoo."
    )
    return "\n".join(parts)


@app.command()
def render() -> None:
    """Write the section of docs/results.md and the picture."""
    from scripts.bench._page import put

    paths = sorted(FOLDER.glob("full-*.json"))
    if not paths:
        raise SystemExit("error: there are no results; remedy: python scripts/bench/igpg_novelty.py run")
    runs = [json.loads(path.read_text()) for path in paths]
    points = _joined(runs)
    lines = ["| method | setting | accuracy, % | distance | disagreement, % |", "|---|---|---|---|---|"]
    for point in points:
        name, what = NAMES[point["method"]]
        setting = f"{what} {point['setting']}" if what else ""
        numbers = (100 * point["accuracy"], point["distance_ratio"], 100 * point["disagreement"])
        lines.append(
            f"| {name} | {setting} | "
            + " | ".join(f"{n:.{d}f}" for n, d in zip(numbers, (1, 2, 1), strict=True))
            + " |"
        )
    _draw(points)
    text = TEMPLATE.format(
        runs=len(runs),
        seeds=", ".join(path.stem.removeprefix("full-") for path in paths),
        tasks=runs[0]["tasks"],
        candidates=runs[0]["candidates"],
        table="\n".join(lines),
        reading=_reading(points),
    )
    put("igpg_novelty", text)


if __name__ == "__main__":
    app()
