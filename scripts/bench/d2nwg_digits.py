"""What makes D2NWG work on digits, and what does not: full runs from an empty folder, several seeds.

    python scripts/bench/d2nwg_digits.py run      # about an hour on 2 cores; can be stopped and resumed
    python scripts/bench/d2nwg_digits.py render   # docs/results.md and the figure, from the saved JSON only

Every run builds its own zoo (its own data split, held-out subsets and initialisations), trains a generator, and judges
it on the held-out subsets. A seed shares its zoo between variants, so variants are compared on the same tasks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import matplotlib
import typer

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a script beside this one is named like the package

from scripts.bench._page import put  # noqa: E402

RESULTS = ROOT / "docs" / "results"
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "full": ("as shipped", []),
    "no_alignment": ("hidden units of the zoo not aligned", ["align=false"]),
    "no_behaviour": (
        "no behavioural stage; its time goes into diffusion",
        ["stages.behaviour.steps=0", "stages.diffusion.steps=1500"],
    ),
    "neither": (
        "neither alignment nor behavioural stage",
        ["align=false", "stages.behaviour.steps=0", "stages.diffusion.steps=1500"],
    ),
    "no_renaming": ("classes always in the order of the digits", ["rename_classes=false"]),
    "one_step": ("one sampling step: a mapper from condition to weights", ["denoiser.sampling_steps=1"]),
    "no_contrast": ("no contrastive stage", ["stages.alignment.steps=0"]),
}
TEMPLATE = """## D2NWG on digits

Made by `python scripts/bench/d2nwg_digits.py render` from `docs/results/d2nwg_digits`.

{runs} full runs from an empty folder, each with its own zoo, data split and {tasks} held-out subsets of digits;
± is the deviation between runs. In every run each number is a mean over the held-out subsets and 3 draws of the
50 given examples, which come from images that no network and no generator was trained on. No gradient step is taken
on the new task. One candidate a task. The interval is a paired 95 % bootstrap over tasks; its lowest bound of all
runs is given.

{main}

Networks that fail (not finite, or no better than the commonest class): {failures} %.

Novelty: the distance to the nearest training network is {distance_ratio} times the zoo's own nearest distance;
predictions differ from that network's on {disagreement} % of test images. Two networks trained on the same task
differ on {oracle_disagreement} %. Two candidates for one task lie {candidate_spread} apart, two trained networks of
one task {oracle_spread}.

### What it is made of

Codec error is the held-out squared error in units of the variance of the weights (1 = predicting the mean); codec
accuracy is that of held-out networks after encoding and decoding, after the first stage and after the last. Distance
ratio and candidate spread (how far two networks for one task lie apart) as above.

{ablation}

Read it without favour: alignment is worth most, the behavioural stage comes second. Renaming classes at random adds
nothing measurable here once every output row is tied to the condition of its class. And one sampling step, which is
regression through the same networks, is slightly more accurate than five in every run: what the further steps buy
is candidates that differ from each other as networks of independent seeds do.

![Accuracy of the variants](results/d2nwg_digits.png)
"""
TABLE_START, TABLE_END = "<!-- table from docs/results: start -->", "<!-- end -->"
app = typer.Typer(add_completion=False, no_args_is_help=True)


def _one(variant: str, seed: int, work: Path) -> None:
    from weightgen import jobs

    zoo, out = work / f"zoo-{seed}", work / f"{variant}-{seed}"
    jobs.build_zoo(ROOT / "configs" / "digits.yaml", zoo, [f"seed={seed}"])
    overrides = [f"seed={seed}", *VARIANTS[variant][1]]
    jobs.train(ROOT / "configs" / "d2nwg-digits.yaml", zoo, out / "generator", overrides)
    card = jobs.evaluate(out / "generator", zoo, out, candidates=8).to_json()
    card.pop("tasks")
    target = RESULTS / "d2nwg_digits" / f"{variant}-{seed}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(card, indent=1) + "\n")


@app.command()
def run(
    work: Annotated[Path, typer.Option(help="Folder for zoos and generators.")] = Path("runs/bench-digits"),
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    variants: Annotated[str, typer.Option(help="Variants, separated by commas; all by default.")] = ",".join(VARIANTS),
) -> None:
    """Run every variant with every seed whose result is not there yet."""
    todo = [(v, int(s)) for s in seeds.split(",") for v in variants.split(",")]
    for done, (variant, seed) in enumerate(todo):
        if not (RESULTS / "d2nwg_digits" / f"{variant}-{seed}.json").is_file():
            print(f"{done}/{len(todo)}: {variant}, seed {seed}", file=sys.stderr, flush=True)
            _one(variant, seed, work)


def _mean(values: list[float]) -> tuple[float, float]:
    middle = sum(values) / len(values)
    spread = (sum((v - middle) ** 2 for v in values) / max(len(values) - 1, 1)) ** 0.5
    return middle, spread


def _percent(values: list[float]) -> str:
    middle, spread = _mean(values)
    return f"{100 * middle:.1f} ± {100 * spread:.1f}" if len(values) > 1 else f"{100 * middle:.1f}"


def _cards() -> dict[str, list[dict]]:
    folder = RESULTS / "d2nwg_digits"
    found = {v: [json.loads(p.read_text()) for p in sorted(folder.glob(f"{v}-[0-9]*.json"))] for v in VARIANTS}
    return {v: cards for v, cards in found.items() if cards}


def _main_table(cards: list[dict]) -> list[str]:
    lines = ["| method | accuracy, % | generated minus this | best of 8 | what it is |", "|---|---|---|---|---|"]
    names = sorted(cards[0]["rows"], key=lambda n: -_mean([c["rows"][n]["mean"] for c in cards])[0])
    for kind, name in [*(("rows", n) for n in names), *(("controls", n) for n in cards[0]["controls"])]:
        rows = [card[kind][name] for card in cards]
        gap = [row["generated_minus_this"] for row in rows if "generated_minus_this" in row]
        worst = ""
        if gap:
            low = 100 * min(g["low"] for g in gap)
            worst = f"{100 * _mean([g['mean'] for g in gap])[0]:+.1f} (lowest bound {low:+.1f})"
        best = _percent([r["best_of"]["mean"] for r in rows]) if "best_of" in rows[0] else ""
        label = f"control: {name}" if kind == "controls" else f"**{name}**" if name == "generated" else name
        lines.append(f"| {label} | {_percent([r['mean'] for r in rows])} | {worst} | {best} | {rows[0]['what']} |")
    return lines


def _short_table(cards: list[dict]) -> list[str]:
    """The first screen of the README: one line a method, losses included."""
    lines = ["| weights for a task that nobody trained on | accuracy, % |", "|---|---|"]
    names = sorted(cards[0]["rows"], key=lambda n: -_mean([c["rows"][n]["mean"] for c in cards])[0])
    for name in names:
        rows = [card["rows"][name] for card in cards]
        mark = "**" if name == "generated" else ""
        lines.append(f"| {mark}{rows[0]['what']}{mark} | {mark}{_percent([r['mean'] for r in rows])}{mark} |")
    for name in cards[0]["controls"]:
        rows = [card["controls"][name] for card in cards]
        lines.append(f"| control: {rows[0]['what']} | {_percent([r['mean'] for r in rows])} |")
    return lines


def _ablation_table(cards: dict[str, list[dict]]) -> list[str]:
    lines = [
        "| variant | generated, % | shuffled, % | codec error | codec accuracy, % | codec accuracy at the end, % | "
        "distance ratio | candidate spread |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant, runs in cards.items():
        codec = [run["training"]["codec"] for run in runs]
        last = [list(run["training"].values())[-1] for run in runs]
        error, _ = _mean([c["val_reconstruction_error"] for c in codec])
        ratio, _ = _mean([run["novelty"]["distance_ratio"] for run in runs])
        apart, _ = _mean([run["novelty"]["candidate_spread"] for run in runs])
        lines.append(
            f"| {VARIANTS[variant][0]} | {_percent([r['rows']['generated']['mean'] for r in runs])} "
            f"| {_percent([r['controls']['shuffled']['mean'] for r in runs])} | {error:.3f} "
            f"| {_percent([c['val_reconstruction_accuracy'] for c in codec])} "
            f"| {_percent([c['val_reconstruction_accuracy'] for c in last])} | {ratio:.2f} | {apart:.2f} |"
        )
    return lines


def _figure(cards: dict[str, list[dict]], path: Path) -> None:
    variants = list(cards)[::-1]
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(variants) + 1.6), layout="constrained")
    for place, variant in enumerate(variants):
        values = [100 * run["rows"]["generated"]["mean"] for run in cards[variant]]
        axes.plot(values, [place] * len(values), "o", color="#2563a8", alpha=0.6, ms=7)
        label = f"{sum(values) / len(values):.1f}"
        axes.text(1.01, place, label, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    for name, color in (("oracle", "#2f855a"), ("ridge", "#7b8794")):
        value = 100 * _mean([run["rows"][name]["mean"] for run in cards["full"]])[0]
        axes.axvline(value, color=color, lw=1.5, zorder=0)
        axes.text(value, len(variants) - 0.4, f"{name} ", color=color, ha="right", fontsize=9)
    axes.text(1.01, len(variants) - 0.4, "mean", transform=axes.get_yaxis_transform(), fontsize=9, color="#7b8794")
    axes.set_yticks(range(len(variants)), [VARIANTS[v][0] for v in variants])
    axes.set_ylim(-0.6, len(variants) - 0.1)
    axes.set_xlabel("accuracy of generated networks on held-out subsets, %; one point a run")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


@app.command()
def render() -> None:
    """Write docs/results.md and its figure from the saved JSON."""
    cards = _cards()
    if "full" not in cards:
        raise SystemExit("error: no results of the variant 'full'; remedy: python scripts/bench/d2nwg_digits.py run")
    figure = RESULTS / "d2nwg_digits.png"
    _figure(cards, figure)
    full = cards["full"]
    new = {key: _mean([card["novelty"][key] for card in full])[0] for key in full[0]["novelty"]}
    text = TEMPLATE.format(
        runs=len(full),
        tasks=full[0]["rows"]["generated"]["n_tasks"],
        main="\n".join(_main_table(full)),
        failures=f"{100 * _mean([c['rows']['generated']['failures'] for c in full])[0]:.2f}",
        distance_ratio=f"{new['distance_ratio']:.2f}",
        disagreement=f"{100 * new['disagreement']:.1f}",
        oracle_disagreement=f"{100 * new['oracle_disagreement']:.1f}",
        candidate_spread=f"{new['candidate_spread']:.2f}",
        oracle_spread=f"{new['oracle_spread']:.2f}",
        ablation="\n".join(_ablation_table(cards)),
    )
    put("d2nwg_digits", text)
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(TABLE_START)
    _, _, after = rest.partition(TABLE_END)
    readme.write_text(before + TABLE_START + "\n".join(["", *_short_table(full), ""]) + TABLE_END + after)


if __name__ == "__main__":
    app()
