"""The study of weak-to-strong decoding: what its tasks hold, and how closure of the gap is counted."""

from __future__ import annotations

import pytest

from scripts.bench.fusion_closure import closure, comparisons, gain, seed_ranges
from scripts.bench.fusion_texts import Item, _functions, _holes, _prose, _speeches

SOURCE = '''
class Box:
    def size(self):
        """Number of things
        in the box.

        More is said here.
        """
        return len(self.things)

    def bare(self):
        return 1
'''


def test_a_function_is_asked_for_by_its_description() -> None:
    assert list(_functions(SOURCE)) == [
        Item("Number of things in the box.\nFunction:\n", "def size(self):\n    return len(self.things)")
    ]
    assert list(_functions("def broken(:")) == []


def test_a_hole_is_shown_between_its_lines() -> None:
    lines = [f"line {i}" for i in range(8)]
    (item,) = _holes("\n".join([*lines, "end"]))
    assert item.answer == "line 3\nline 4"
    assert item.prompt == "line 0\nline 1\nline 2\n<missing>\nline 5\nline 6\nline 7\nMissing:\n"
    lines[4] = ""
    assert list(_holes("\n".join([*lines, "end"]))) == []


def test_base_models_read_the_domain_in_another_form() -> None:
    assert _prose("4/2 = <<4/2=2>>2 each.\n#### 2") == "4/2 = 2 each.\nThe answer is 2."
    scene = [Item("", "First Citizen:\nSpeak: now.\n\nALL:\nWe know't.\n")]
    assert _speeches(scene) == "Speak: now.\n\nWe know't.\n"


def _scores(level: float, items: int = 20) -> dict[str, list[float]]:
    tokens = [float(1 + i % 3) for i in range(items)]
    values = [level * t for t in tokens]
    return {"log_probability": values, "hits": [0.0] * items, "tokens": tokens}


def _run(expert: float) -> dict[str, dict[str, dict[str, list[float]]]]:
    levels = {"strong": -3.0, "ceiling": -1.0, "expert": expert, "dynamic": -1.5, "static 1": -1.5, "static best": -1.4}
    return {"scores": {name: _scores(level) for name, level in {**levels, "pooled (ours)": -1.2}.items()}}


def test_closure_is_the_share_of_the_gap_a_token() -> None:
    scores = [_run(-2.0)["scores"], _run(-1.0)["scores"]]
    assert closure(scores, "dynamic", "log_probability") == pytest.approx((0.75, 0.75, 0.75))
    assert closure(scores, "expert", "log_probability")[0] == pytest.approx(0.75)
    assert gain(scores, "dynamic", "strong", "log_probability") == pytest.approx((1.5, 1.5, 1.5))
    assert seed_ranges({"task": [_run(-2.0), _run(-1.0)]}, "expert") == "task 50 to 100"


def test_a_comparison_counts_what_is_clear() -> None:
    lines = comparisons([[_run(-2.0)], [_run(-1.0)]])
    assert "dynamic against expert: +0.000 nats" in lines[0]
    assert "above in 1 of 2 settings, clearly below in 1." in lines[0]
    assert "above in 0 of 2 settings, clearly below in 0." in lines[1]
