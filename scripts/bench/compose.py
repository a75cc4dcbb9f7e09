"""What composition is worth: exactness beside PEFT, and few-shot mixtures of real adapters on held-out tasks.

    python scripts/bench/compose.py exactness              # a minute
    python scripts/bench/compose.py choose DATA            # settings, on the validation split of other tasks
    python scripts/bench/compose.py heldout DATA           # the measurement; can be stopped and resumed
    python scripts/bench/compose.py render                 # its section of docs/results.md, from the saved JSON only

DATA has ``text_tasks`` (files as in docs/data.md and an ``index.json``) and ``lora_zoo`` (``TASK--seed0`` folders).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a script beside this one is named like the package

from scripts.bench._page import put  # noqa: E402

OUT = ROOT / "docs" / "results" / "compose"
METHODS = {
    "base": "base model as it is",
    "mean": "mean of all sources",
    "scaled_mean": "mean of all sources times the factor that is best on other tasks",
    "unlabelled": "aTLAS on 64 texts without labels (trusted labels of the base)",
    "lorahub": "LoraHub search: 20 random sources, 40 evaluations",
    "atlas": "aTLAS: all sources, one coefficient a source and tensor, 15 steps",
}
TEXT = """## Composition

Made by `python scripts/bench/compose.py render` from the JSON under `docs/results/compose/`.

### Exactness

Relative Frobenius distance of the merged update to the definition of the method on full updates, in float64; three
adapters of {layers} layers of width {width}, weights {weights}, density {density}. Kinds that drop at random: distance
of the mean of 12 draws to the expectation, which is sampling noise of about 0.3 for a right implementation. Ours is at
the rank that loses nothing, after rounding to float32; PEFT is given the full rank where it takes one.

{exact}

`cat` and `svd` of PEFT are exact until the first parent is rank-stabilised: the new adapter inherits its scaling rule
and is multiplied by the root of its rank. `linear`, `ties` and the `dare_*` without `svd` mix factors, whose products
have cross terms.

### Few labels, held-out tasks

{tasks} held-out text tasks ({names}),
head-free scoring with MiniLM in bfloat16, macro-F1 in % on the test split, 3 draws of the shots. Sources are the
adapters of other tasks; none of a held-out task. *Far*: none from the same data source either. *Near*: relatives from
the same data source stay in. Settings were chosen on the validation split of {choose} other tasks. Intervals are paired
95 % bootstraps over tasks. {open}

{far}

{near}

The last column says on how many of the tasks the mean over draws is above the base. Processor time of one mixture and
its scoring: aTLAS {atlas_seconds:.1f} s, LoraHub {lorahub_seconds:.1f} s.
"""
app = typer.Typer(add_completion=False, no_args_is_help=True)
Data = Annotated[Path, typer.Argument(help="Folder with text_tasks and lora_zoo.")]
Tasks = Annotated[str, typer.Option(help="Only these tasks, separated by commas.")]


@app.command()
def exactness() -> None:
    """Measure the distance to the definition beside PEFT."""
    from scripts.bench.compose_exactness import measure

    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "exactness.json").write_text(json.dumps(measure(), indent=1) + "\n")


def _each(data: Path, only: str, held_out: bool) -> None:
    import torch

    from scripts.bench.compose_few_shot import choose as choose_on
    from scripts.bench.compose_few_shot import judge
    from scripts.bench.compose_tasks import make_plan

    torch.set_num_threads(1)
    plan = make_plan(data)
    for name in only.split(",") if only else (*plan.lone, *plan.near) if held_out else plan.choose:
        (judge if held_out else choose_on)(data, plan, name, OUT)


@app.command()
def choose(data: Data, tasks: Tasks = "") -> None:
    """Try all settings on tasks that are not judged."""
    _each(data, tasks, held_out=False)


@app.command()
def heldout(data: Data, tasks: Tasks = "") -> None:
    """Judge all methods on the held-out tasks."""
    _each(data, tasks, held_out=True)


def _complete(files: list[dict[str, Any]], pool: str) -> list[dict[str, Any]]:
    """Files of tasks that have that pool and all of its rows."""
    count = 2 + 3 * 5
    return [f for f in files if sum(row["pool"] == pool for row in f["rows"]) == count]


def _scores(files: list[dict[str, Any]], pool: str, method: str, shots: int) -> Any:
    """Macro-F1 by seed and task; methods without draws are repeated."""
    import torch

    columns = []
    for file in files:
        wanted = "none" if method == "base" else pool
        rows = [r for r in file["rows"] if (r["pool"], r["method"], r["shots"]) == (wanted, method, shots)]
        found = [row["macro_f1"] for row in sorted(rows, key=lambda row: row["seed"])]
        columns.append(found if len(found) == 3 else found * 3)
    return 100 * torch.tensor(columns).T


def _table(files: list[dict[str, Any]], pool: str) -> str:
    from weightgen.evaluation.statistics import paired_interval

    lines = [
        f"| {pool}, {len(files)} tasks | shots | macro-F1, % | minus the base | minus the mean | better than base |",
        "|---|---|---|---|---|---|",
    ]
    base, mean = _scores(files, pool, "base", 0), _scores(files, pool, "mean", 0)
    for method, what in METHODS.items():
        for shots in (4, 16) if method in ("atlas", "lorahub") else (0,):
            scores = _scores(files, pool, method, shots)
            cells = [
                f"{d:+.1f} [{low:+.1f}, {high:+.1f}]"
                for d, low, high in (paired_interval(scores, base), paired_interval(scores, mean))
            ]
            if method == "base":
                cells = ["", ""]
            wins = int((scores.mean(0) > base.mean(0)).sum())
            lines.append(
                f"| {what} | {shots or ''} | {scores.mean():.1f} | {' | '.join(cells)} | {wins}/{len(files)} |"
            )
    return "\n".join(lines)


def _exact_table(rows: list[dict[str, Any]]) -> str:
    cases = list(dict.fromkeys(row["case"] for row in rows))
    lines = [f"| kind of PEFT | {' | '.join(f'{c}: PEFT / ours' for c in cases)} |", "|---" * (len(cases) + 1) + "|"]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        found = {row["case"]: row for row in rows if row["kind"] == kind}
        cells = [
            f"{'refused' if found[c]['peft'] is None else format(found[c]['peft'], '.1e')} / {found[c]['ours']:.1e}"
            for c in cases
        ]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


@app.command()
def render() -> None:
    """Write the section of docs/results.md and leave everything else on the page as it is."""
    exact = json.loads((OUT / "exactness.json").read_text())
    files = [json.loads(path.read_text()) for path in sorted(OUT.glob("heldout-*.json"))]
    far, near = _complete(files, "far"), _complete(files, "near")
    undone = sorted(
        {path.stem.removeprefix("heldout-") for path in OUT.glob("heldout-*.json")} - {f["task"] for f in far}
    )
    rows = [row for file in far for row in file["rows"] if "cpu_seconds" in row]
    seconds = {m: [r["cpu_seconds"] for r in rows if r["method"] == m] for m in ("atlas", "lorahub")}
    text = TEXT.format(
        layers=exact["layers"],
        width=exact["width"],
        weights=", ".join(map(str, exact["weights"])),
        density=exact["density"],
        exact=_exact_table(exact["rows"]),
        tasks=len(far),
        names=", ".join(file["task"] for file in far),
        open=f"Tasks that were drawn and are not measured in full: {', '.join(undone)}." if undone else "",
        choose=len(list(OUT.glob("choose-*.json"))),
        far=_table(far, "far"),
        near=_table(near, "near") if near else "",
        atlas_seconds=sum(seconds["atlas"]) / len(seconds["atlas"]),
        lorahub_seconds=sum(seconds["lorahub"]) / len(seconds["lorahub"]),
    )
    put("composition", text)


if __name__ == "__main__":
    app()
