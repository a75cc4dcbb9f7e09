"""The portfolio on whole tasks that nothing was trained on, beside every way alone.

    python scripts/bench/solve.py record --tasks DIR --zoo DIR --generator DIR     # on tasks for choosing
    python scripts/bench/solve.py pack                                             # the record that is shipped
    python scripts/bench/solve.py run --tasks DIR --zoo DIR --generator DIR        # held-out tasks, test examples
    python scripts/bench/solve.py render

``--draw N`` takes other labelled examples and another seed. Zoo and generator are those of
``adapters_text_measure.py``: no task of ``record`` or ``run`` was trained on, and of the zoo the split for training is
used. Work that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "solve"
sys.path[0] = str(ROOT)

from scripts.bench.compose_few_shot import Rows  # noqa: E402
from scripts.bench.solve_pairs import FROM, easy_pairs  # noqa: E402
from scripts.bench.solve_ways import MOST, UNLABELLED, Measured, Place  # noqa: E402
from weightgen.solve.budget import Budget  # noqa: E402
from weightgen.solve.record import DRAW, SHIPPED, Record  # noqa: E402
from weightgen.solve.ways import WAYS  # noqa: E402
from zoo.build.encoder import MINILM  # noqa: E402
from zoo.build.text_tasks import load_text_task  # noqa: E402
from zoo.tasks import TEST, VAL  # noqa: E402

COUNTS = (4, 16, 64)
RECORDED = (2, *COUNTS)
"""The record knows two labels as well: what learns is judged after half of them."""
STEPS = {0: 430, 4: 430, 16: 430, 64: 900}
"""Budget by labelled examples a label: with 64, two starts cannot be judged and trained in 430 steps."""
FRESH = ("transit_chatbot", "ohsumed", "goemotions_group", "goemotions_ekman")
"""Tasks for choosing the generator, on their validation examples; no portfolio was ever measured on them before."""
SEEN = (
    *("persona_religion", "atis", "clinc_work"),
    *("stance_feminist", "hwu_play", "tweet_emotion", "ethos_target", "asdiv_type", "ag_news", "prompt_injection"),
    *("ethos_binary", "sentences_yelp", "subj", "svamp_operation"),
)
"""Held out too, but earlier portfolios were measured on them, and what was seen there led to this one."""
TOO_LONG = ("lorahub", "trained", "atlas")
"""Measured alone on ``ALL_WAYS`` only; on the tasks of ``SEEN`` they were far below fine-tuning."""
ALL_WAYS = ("hwu_qa", "sst5", "tweet_hate", "persona_politics")
MOST_WAYS = ("clickbait", "rt_polarity", "stance_climate", "snips", "clinc_banking")


def measure(place: Place, name: str, part: int, counts: Sequence[int], draw: int) -> None:
    """Every way alone on one task, and on test examples the portfolio."""
    _measure(Measured.open(place, name, part), "record" if part == VAL else "test", counts, draw)


def measure_easy(place: Place) -> None:
    """Pairs of labels that the base tells apart: the portfolio at every count, and all ways at one."""
    for name, most in FROM.items():
        for task in easy_pairs(load_text_task(place.tasks / f"{name}.json.gz", 0.15, 0), place.encoder, most):
            _measure(Measured(place, task, TEST), "easy", COUNTS, 0, alone=(16,))


def _measure(
    measured: Measured, kind: str, counts: Sequence[int], draw: int, alone: Sequence[int] | None = None
) -> None:
    place, name, part = measured.place, measured.task.name, VAL if kind == "record" else TEST
    about = {"task": name, "part": "validation" if part == VAL else "test", "unlabelled": UNLABELLED}
    about |= {"most_examples": MOST[part]} | ({} if kind == "record" else {"budget_steps": STEPS})
    about |= {"seed": draw} if draw else {}
    rows = Rows(RESULTS / f"{kind}-{f'{draw}-' if draw else ''}{name}.json", about)
    if any(row.get("done") for row in rows.rows):
        return
    started = time.perf_counter()
    if kind != "record":
        known = Record.load(SHIPPED, place.encoder.base_model)
        assert known is not None
        for count in (0, *counts):
            key = {"way": "portfolio", "shots": count}
            budget = Budget(STEPS[count], "steps")
            rows.add(key, lambda count=count, budget=budget: measured.portfolio(count, draw, budget, known))

    def keep(way: str, count: int, found: Mapping[str, Any]) -> None:
        rows.add({"way": way, "shots": count}, lambda: found)

    def done(way: str, count: int) -> bool:
        if way in TOO_LONG and (draw or name not in ALL_WAYS):
            return True
        return any((row["way"], row["shots"]) == (way, count) for row in rows.rows)

    measured.ways(counts if alone is None else alone, draw, keep, done)
    seconds = time.perf_counter() - started
    rows.add({"way": "all", "shots": 0, "done": True}, lambda: {"seconds": round(seconds)})


def pack() -> None:
    """Write the record that is shipped, from what was measured on the tasks for choosing."""
    ways: dict[str, dict[str, dict[str, float]]] = {way: {} for way in WAYS}
    names = {}
    for path in sorted(RESULTS.glob("record-*.json"), key=lambda path: (path.stem.count("-"), path.stem)):
        found = json.loads(path.read_text(encoding="utf-8"))
        names[found["task"]] = None
        key = found["task"] + (f"{DRAW}{found['seed']}" if found.get("seed") else "")
        for row in found["rows"]:
            if row["way"] in WAYS:
                ways[row["way"]].setdefault(str(row["shots"]), {})[key] = row["macro_f1"]
    ways = {way: {n: shots[n] for n in sorted(shots, key=int)} for way, shots in ways.items() if shots}
    about = (
        f"macro-F1 of every way on {len(names)} text tasks that neither the adapters nor the generator were trained on "
        f"({', '.join(names)}), {UNLABELLED} unlabelled texts a task; NAME#1, NAME#2 and so on are "
        "other draws of the labelled examples; scripts/bench/solve.py"
    )
    content = {"base_model": MINILM, "about": about, "ways": ways}
    SHIPPED.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "pack", "run", "easy", "render"])
    parser.add_argument("--tasks", type=Path)
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--generator", type=Path)
    parser.add_argument("--draw", type=int, default=0, help="of the labelled examples")
    parser.add_argument("--counts", default="", help="labelled examples a label, with commas")
    parser.add_argument("--only", default="", help="names of tasks, with commas")
    asked = parser.parse_args()
    usual = RECORDED if asked.what == "record" else COUNTS
    counts = [int(count) for count in asked.counts.split(",")] if asked.counts else usual
    if asked.what == "record":
        place = Place.open(asked.tasks, asked.zoo, asked.generator)
        for name in asked.only.split(",") if asked.only else (*ALL_WAYS, *MOST_WAYS):
            measure(place, name, VAL, counts, asked.draw)
    elif asked.what == "pack":
        pack()
    elif asked.what == "run":
        place = Place.open(asked.tasks, asked.zoo, asked.generator)
        for name in asked.only.split(",") if asked.only else (*FRESH, *SEEN):
            measure(place, name, TEST, counts, asked.draw)
    elif asked.what == "easy":
        measure_easy(Place.open(asked.tasks, asked.zoo, asked.generator))
    else:
        from scripts.bench.solve_render import render

        render(RESULTS)


if __name__ == "__main__":
    main()
