"""The portfolio on whole tasks that nothing was trained on, beside every way alone.

    python scripts/bench/solve.py record --tasks DIR --zoo DIR --generator DIR     # on tasks for choosing
    python scripts/bench/solve.py pack                                             # the record that is shipped
    python scripts/bench/solve.py run --tasks DIR --zoo DIR --generator DIR        # held-out tasks, test examples
    python scripts/bench/solve.py render

Zoo and generator are those of ``adapters_text_measure.py``: no task of ``record`` or ``run`` was trained on, and of the
zoo the split for training is used. Work that was stopped goes on.
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
from scripts.bench.solve_ways import MOST, UNLABELLED, Measured, Place  # noqa: E402
from weightgen.solve.budget import Budget  # noqa: E402
from weightgen.solve.record import SHIPPED, Record  # noqa: E402
from weightgen.solve.ways import WAYS  # noqa: E402
from zoo.build.encoder import MINILM  # noqa: E402
from zoo.tasks import TEST, VAL  # noqa: E402

COUNTS, BUDGET = (4, 16, 64), Budget(300, "steps")
HELD_OUT = ("sentences_yelp", "ethos_binary", "prompt_injection", "subj", "svamp_operation", "stance_feminist")
HELD_OUT += ("tweet_emotion", "hwu_play", "persona_religion")
"""Few and short labels first: as many are measured as there is time for."""
TOO_LONG = ("lorahub",)
"""Measured alone for the record only, where it was never near the best."""
LEARN = ("hwu_qa", "sst5", "tweet_hate", "persona_politics")
ONLY_FROZEN = ("clickbait", "rt_polarity", "stance_climate", "snips", "clinc_banking")


def measure(place: Place, name: str, part: int, counts: Sequence[int], budget: Budget | None) -> None:
    """Every way alone on one task, and the portfolio if there is a budget for it."""
    kind = "record" if part == VAL else "test"
    about = {"task": name, "part": "validation" if part == VAL else "test", "unlabelled": UNLABELLED}
    about |= {"most_examples": MOST[part]} | ({"budget_steps": budget.amount} if budget else {})
    rows = Rows(RESULTS / f"{kind}-{name}.json", about)
    if any(row.get("done") for row in rows.rows):
        return
    started, measured = time.perf_counter(), Measured(place, name, part)
    if budget is not None:
        known = Record.load(SHIPPED, place.encoder.base_model)
        assert known is not None
        for count in (0, *counts):
            key = {"way": "portfolio", "shots": count}
            rows.add(key, lambda count=count: measured.portfolio(count, 0, budget, known))

    def keep(way: str, count: int, found: Mapping[str, Any]) -> None:
        rows.add({"way": way, "shots": count}, lambda: found)

    def done(way: str, count: int) -> bool:
        if part == TEST and way in TOO_LONG:
            return True
        return any((row["way"], row["shots"]) == (way, count) for row in rows.rows)

    measured.ways(counts, 0, keep, done)
    seconds = time.perf_counter() - started
    rows.add({"way": "all", "shots": 0, "done": True}, lambda: {"seconds": round(seconds)})


def pack() -> None:
    """Write the record that is shipped, from what was measured on the tasks for choosing."""
    ways: dict[str, dict[str, dict[str, float]]] = {}
    names = []
    for path in sorted(RESULTS.glob("record-*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        names.append(found["task"])
        for row in found["rows"]:
            if row["way"] in WAYS:
                ways.setdefault(row["way"], {}).setdefault(str(row["shots"]), {})[found["task"]] = row["macro_f1"]
    ways = {way: {shots: ways[way][shots] for shots in sorted(ways[way], key=int)} for way in WAYS if way in ways}
    about = (
        f"macro-F1 of every way on {len(names)} text tasks that neither the adapters nor the generator were trained on "
        f"({', '.join(names)}), {UNLABELLED} unlabelled texts a task; scripts/bench/solve.py"
    )
    content = {"base_model": MINILM, "about": about, "ways": ways}
    SHIPPED.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "pack", "run", "render"])
    parser.add_argument("--tasks", type=Path)
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--generator", type=Path)
    asked = parser.parse_args()
    if asked.what == "record":
        place = Place.open(asked.tasks, asked.zoo, asked.generator)
        for name in (*LEARN, *ONLY_FROZEN):
            measure(place, name, VAL, COUNTS if name in LEARN else (), None)
    elif asked.what == "pack":
        pack()
    elif asked.what == "run":
        place = Place.open(asked.tasks, asked.zoo, asked.generator)
        for name in HELD_OUT:
            measure(place, name, TEST, COUNTS, BUDGET)
    else:
        from scripts.bench.solve_render import render

        render(RESULTS)


if __name__ == "__main__":
    main()
