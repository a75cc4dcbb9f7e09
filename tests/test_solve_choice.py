"""How one candidate is chosen: metrics by hand, shrinkage, noise, and the declared order of simplicity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sklearn.metrics import f1_score

from weightgen.evaluation.classification import (
    expected_calibration_error,
    interval,
    macro_f1,
    macro_f1_weighted,
    majority,
    resamples,
    scores,
)
from weightgen.solve.candidates import BASE, Candidate
from weightgen.solve.choose import GIVEN_UP, Comparison, shrunken, simplest_within_noise
from weightgen.solve.record import SHIPPED, Prior, Record
from weightgen.solve.ways import LEVELS, WAYS
from zoo.build.encoder import MINILM
from zoo.errors import BadArtefact


def test_macro_f1_is_that_of_scikit_learn_for_every_resample() -> None:
    y, found = torch.randint(4, (50,)), torch.randint(4, (50,))
    assert macro_f1(found, y) == pytest.approx(f1_score(y, found, average="macro"), abs=1e-6)
    weights = resamples(y, 0, count=5)
    assert (weights.sum(1) == 50).all()
    for value, row in zip(macro_f1_weighted(found, y, weights), weights, strict=True):
        rows = torch.repeat_interleave(torch.arange(50), row.long())
        labels = y[rows].unique().tolist()
        wanted = f1_score(y[rows], found[rows], labels=labels, average="macro")
        assert value.item() == pytest.approx(wanted, abs=1e-6)


def test_stratified_resamples_keep_the_number_of_every_label() -> None:
    y = torch.tensor([0] * 5 + [1] * 3)
    weights = resamples(y, 1, stratified=True, count=20)
    assert (weights[:, :5].sum(1) == 5).all()
    assert (weights[:, 5:].sum(1) == 3).all()
    assert len(weights.unique(dim=0)) > 5


def test_calibration_error_by_hand() -> None:
    sure = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.2, 0.8]]).log()
    y = torch.tensor([0, 1, 1, 1])
    assert expected_calibration_error(sure, y) == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * abs(1 - 0.8), abs=1e-5)
    found = scores(sure, y)
    assert found["accuracy"] == 0.75
    assert majority(y).tolist() == [1, 1, 1, 1]
    assert interval(torch.arange(101).float()) == pytest.approx((2.5, 97.5))


def test_shrinkage_weighs_by_precision() -> None:
    prior = Prior(mean=0.1, spread=0.1, error=0.02)
    assert shrunken(0.3, 0.1, prior).value == pytest.approx(0.2)
    assert shrunken(0.3, 0.1, prior).noise == pytest.approx((0.05**2 + 0.01**2) ** 0.5)
    assert shrunken(0.3, 1e-6, prior).value == pytest.approx(0.3)
    assert shrunken(0.3, 1e6, prior).noise == pytest.approx(0.02, rel=1e-3)
    assert shrunken(0.3, 0.1, None).value == 0.3


RETRIEVED = Candidate("retrieved-1", "retrieved", "")
GENERATED = Candidate("generated", "generated", "")
FINETUNED = Candidate("finetuned", "finetuned", "")


def answers(y: torch.Tensor, wrong: int) -> torch.Tensor:
    """Logits that are wrong on the first few examples."""
    logits = torch.nn.functional.one_hot(y, 2).float()
    logits[:wrong] = 1 - logits[:wrong]
    return logits


def chosen(wrong: dict[Candidate, int], count: int, record: Record | None = None) -> tuple[Candidate, Candidate]:
    y = torch.arange(count) % 2
    comparison = Comparison(y, {one.name: answers(y, bad) for one, bad in wrong.items()}, record, count / 2)
    found = [comparison.scored(one) for one in wrong]
    return simplest_within_noise([one for one in found if one is not None], comparison)


def test_the_simplest_within_noise_is_taken() -> None:
    assert chosen({BASE: 100, RETRIEVED: 40, GENERATED: 40, FINETUNED: 39}, 200) == (RETRIEVED, FINETUNED)
    assert chosen({BASE: 100, RETRIEVED: 90, GENERATED: 41, FINETUNED: 40}, 200) == (GENERATED, FINETUNED)
    assert chosen({BASE: 100, RETRIEVED: 90, GENERATED: 80, FINETUNED: 20}, 200) == (FINETUNED, FINETUNED)


def test_the_base_is_the_advice_where_nothing_is_better_beyond_noise() -> None:
    assert chosen({BASE: 40, RETRIEVED: 41, FINETUNED: 39}, 200) == (BASE, FINETUNED)
    assert chosen({BASE: 4, FINETUNED: 3}, 8) == (BASE, FINETUNED)
    assert chosen({BASE: 20, FINETUNED: 40}, 100) == (BASE, BASE)


def record(gains: dict[str, list[float]]) -> Record:
    rows = {way: {0: {f"t{i}": 0.5 + gain for i, gain in enumerate(row)}} for way, row in gains.items()}
    return Record("base", "made up", {"base": {0: {f"t{i}": 0.5 for i in range(9)}}, **rows})


def test_few_examples_are_read_beside_what_the_ways_gained_elsewhere() -> None:
    usual = record({"finetuned": [0.2, 0.19, 0.21, 0.2, 0.22], "retrieved": [-0.2, -0.21, -0.19, -0.2]})
    assert chosen({BASE: 4, RETRIEVED: 4, FINETUNED: 4}, 8, usual)[0] == FINETUNED
    assert chosen({BASE: 4, RETRIEVED: 4, FINETUNED: 4}, 8)[0] == BASE


def test_what_is_best_elsewhere_gives_way_only_to_what_is_ahead_beyond_noise() -> None:
    spread = [0.1, -0.1, 0.1, -0.1, 0.1, -0.1]
    usual = record(
        {
            "base": [0.0] * 6,
            "retrieved": [0.05 + s for s in spread],
            "generated": [0.1 - s for s in spread],
            "finetuned": [0.2] * 6,
        }
    )
    assert chosen({BASE: 12, RETRIEVED: 5, GENERATED: 6, FINETUNED: 6}, 24, usual) == (FINETUNED, FINETUNED)
    assert chosen({BASE: 12, RETRIEVED: 5, GENERATED: 6, FINETUNED: 6}, 24)[0] == RETRIEVED
    assert chosen({BASE: 100, RETRIEVED: 5, GENERATED: 80, FINETUNED: 80}, 200, usual)[0] == RETRIEVED


def test_the_best_of_many_has_to_be_further_ahead_than_the_best_of_two() -> None:
    usual = record({"base": [0.0] * 6, "retrieved": [0.35, -0.25] * 3, "finetuned": [0.1] * 6})
    few = {BASE: 30, RETRIEVED: 8, FINETUNED: 12}
    others = {Candidate(f"retrieved-{i}", "retrieved", ""): 25 for i in range(2, 12)}
    assert chosen(few, 60, usual)[0] == RETRIEVED
    assert chosen(few | others, 60, usual)[0] == FINETUNED


def test_no_more_than_a_point_is_given_up_for_the_base_where_there_is_a_record() -> None:
    """The estimate is a few points, and less than its noise."""
    usual, wrong = record({"finetuned": [0.3, 0.0] * 3}), {BASE: 4, FINETUNED: 4}
    y = torch.arange(16) % 2
    comparison = Comparison(y, {one.name: answers(y, bad) for one, bad in wrong.items()}, usual, 8)
    ahead = comparison.difference(FINETUNED, BASE)
    assert ahead is not None
    assert 0.01 < ahead.value < ahead.noise
    assert chosen(wrong, 16, usual)[0] == FINETUNED
    assert chosen({BASE: 4, FINETUNED: 3}, 16)[0] == BASE, "without a record noise decides"


def test_where_the_base_is_right_often_enough_the_record_promises_nothing() -> None:
    usual = record({"base": [0.0] * 6, "finetuned": [0.3, 0.3, 0.3, 0.31, 0.29, 0.3]})
    assert chosen({BASE: 0, FINETUNED: 0}, 16, usual)[0] == BASE
    assert chosen({BASE: 2, FINETUNED: 2}, 16, usual)[0] == FINETUNED
    assert chosen({BASE: 0, FINETUNED: 0}, 8, usual)[0] == FINETUNED, "8 right answers do not rule out a share of .31"


def test_the_record_lies_on_lines_between_what_was_measured() -> None:
    tasks = [f"t{i}" for i in range(4)]
    scores = {
        "base": {0: dict.fromkeys(tasks, 0.5)},
        "finetuned": {4: dict.fromkeys(tasks, 0.6), 16: dict.fromkeys(tasks, 0.8)},
        "atlas": {4: dict.fromkeys(tasks[:3], 0.9)},
    }
    found = Record("base", "", scores)
    gain = {shots: found.prior("finetuned", "base", shots) for shots in (1, 4, 8, 16, 64)}
    assert {n: one and round(one.mean, 6) for n, one in gain.items()} == {1: 0.1, 4: 0.1, 8: 0.2, 16: 0.3, 64: 0.3}
    assert found.prior("atlas", "base", 4) is None  # too few tasks
    assert found.prior("static", "base", 4) is None


def test_ways_are_compared_draw_by_draw() -> None:
    """A way that was measured on one draw is not compared with another's mean over all."""
    tasks = [f"t{i}" for i in range(4)]
    scores = {
        "base": {0: dict.fromkeys(tasks, 0.5)},
        "finetuned": {4: {**dict.fromkeys(tasks, 0.7), **{f"{task}#1": 0.5 for task in tasks}}},
        "soup": {4: {**dict.fromkeys(tasks, 0.7), "t0#1": 0.6}},
        "atlas": {4: dict.fromkeys(tasks, 0.65)},
    }
    found = Record("base", "", scores)
    ahead = [found.prior(first, "finetuned", 4) for first in ("atlas", "soup")]
    assert [one and round(one.mean, 6) for one in ahead] == [-0.05, round(0.05 / 4, 6)]
    alone = found.prior("finetuned", "base", 4)
    assert alone is not None
    assert alone.mean == pytest.approx(0.2), "the base has no second draw"
    assert (
        Record("base", "", {**scores, "atlas": {4: {f"t0#{i}": 0.6 for i in range(4)}}}).prior("atlas", "finetuned", 4)
        is None
    ), "draws of one task are one task"


def test_what_learned_from_half_is_credited_with_what_all_are_worth_elsewhere() -> None:
    tasks = [f"t{i}" for i in range(4)]
    scores = {
        "base": {0: dict.fromkeys(tasks, 0.5)},
        "retrieved": {0: dict.fromkeys(tasks, 0.6)},
        "finetuned": {n: {t: gain + 0.1 * i for i, t in enumerate(tasks)} for n, gain in ((4, 0.5), (16, 0.6))},
    }
    found = Record("base", "", scores)
    grown = [found.growth("finetuned", shots, 0.5) for shots in (2, 4, 8, 16, 32, 64)]
    assert grown == pytest.approx([0.05, 0.05, 0.05, 0.05, 0.0, 0.0])  # a half is half of the way from 4 to 16
    assert found.growth("finetuned", 6, 0.5) == pytest.approx(0.05)
    assert found.growth("finetuned", 16, 1.0) == found.growth("retrieved", 16, 0.5) == 0.0
    y = torch.arange(400) % 2
    logits = {RETRIEVED.name: answers(y, 80), FINETUNED.name: answers(y, 90)}
    honest, unaware = (Comparison(y, logits, found, 16, share) for share in (0.5, 1.0))
    one, other = (comparison.difference(FINETUNED, RETRIEVED) for comparison in (honest, unaware))
    assert one is not None
    assert other is not None
    assert 0 < one.value - other.value <= 0.05


def test_the_shipped_record_is_of_the_shipped_base_and_knows_the_ways(tmp_path: Path) -> None:
    shipped = Record.load(SHIPPED, MINILM)
    assert shipped is not None
    assert Record.load(SHIPPED, "another") is None
    assert Record.load(tmp_path / "none.json", MINILM) is None
    assert shipped.scores.keys() <= WAYS.keys()
    for way in WAYS.keys() - {"base"}:
        prior = shipped.prior(way, "base", 16)
        assert prior is not None, way
        assert abs(prior.mean) < 0.5
    (tmp_path / "damaged.json").write_text(json.dumps({"base_model": MINILM}))
    with pytest.raises(BadArtefact, match="no track record"):
        Record.load(tmp_path / "damaged.json", MINILM)


def test_ways_follow_the_declared_order() -> None:
    assert [way.level for way in WAYS.values()] == sorted(way.level for way in WAYS.values())
    assert {way.level for way in WAYS.values()} == set(range(len(LEVELS)))


def test_no_more_than_a_point_is_given_up_for_simplicity() -> None:
    y = torch.arange(40) % 2
    found = {one.name: answers(y, bad) for one, bad in {BASE: 20, RETRIEVED: 7, FINETUNED: 6}.items()}
    comparison = Comparison(y, found, None, 20)
    scored = [one for one in map(comparison.scored, (BASE, RETRIEVED, FINETUNED)) if one is not None]
    ahead = comparison.difference(FINETUNED, RETRIEVED)
    assert ahead is not None
    assert GIVEN_UP < ahead.value < ahead.noise
    assert simplest_within_noise(scored, comparison)[0] == FINETUNED


def test_without_labels_the_record_promises_what_is_answered_differently() -> None:
    usual = record({"finetuned": [0.2, 0.19, 0.21, 0.2, 0.22]})
    none = torch.zeros(0, dtype=torch.long)
    same, other = answers(torch.zeros(20, dtype=torch.long), 0), answers(torch.zeros(20, dtype=torch.long), 2)
    gains = [
        Comparison(none, {BASE.name: same, FINETUNED.name: one}, usual, 4).difference(FINETUNED, BASE)
        for one in (same, other)
    ]
    assert [one and round(one.value, 6) for one in gains] == [0.0, 0.1]
    unseen = Comparison(none, {}, usual, 4).difference(FINETUNED, BASE)
    assert unseen is not None
    assert unseen.value == pytest.approx(0.204)
