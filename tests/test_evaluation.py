"""The verdict card: who is compared, on what, and that it cannot flatter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from weightgen import jobs
from weightgen.checkpoint import load_generator
from weightgen.evaluation.baselines import METHODS, class_means, flatten, nearest_class_mean, unflatten
from weightgen.evaluation.novelty import novelty
from weightgen.evaluation.plot import TITLES
from weightgen.evaluation.setting import Setting, make_setting
from weightgen.evaluation.statistics import paired_interval, spread
from weightgen.evaluation.verdict import DESCRIPTIONS, junk, shuffled
from weightgen.results import EvaluateResult
from zoo.datasets import Examples
from zoo.errors import UsageError
from zoo.zoo import Zoo

ROWS = {
    "generated",
    "zoo_mean",
    "zoo_mean_aligned",
    "nearest",
    "gaussian",
    "ridge",
    "nearest_class_mean",
    "scratch",
    "oracle",
}


@pytest.fixture(scope="module")
def setting(tiny_zoo: Path, tiny_generator: Path) -> Setting:
    generator = load_generator(tiny_generator)
    with Zoo.open(tiny_zoo) as zoo:
        return make_setting(zoo, generator.problem.forms[0].reference, 3)


@pytest.fixture(scope="module")
def result(tiny_zoo: Path, tiny_generator: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluateResult:
    return jobs.evaluate(tiny_generator, tiny_zoo, tmp_path_factory.mktemp("card"), seeds=(0, 1), candidates=2)


def test_the_card_holds_every_row_with_its_counts(result: EvaluateResult) -> None:
    card = json.loads(result.json_file.read_text())
    assert set(card["rows"]) >= ROWS
    assert set(card["controls"]) == {"shuffled", "junk"}
    for row in (*card["rows"].values(), *card["controls"].values()):
        assert 0 <= row["mean"] <= 1
        assert row["std"] >= 0
        assert (row["n_tasks"], row["seeds"], row["candidates"]) == (3, 2, 1)
    assert result.picture.read_bytes().startswith(b"\x89PNG")
    assert card["rows"]["generated"]["best_of"]["candidates"] == 2
    assert set(card["rows"]) | set(card["controls"]) == set(DESCRIPTIONS) == set(TITLES)


def test_the_card_is_the_same_for_the_same_seeds(
    result: EvaluateResult, tiny_zoo: Path, tiny_generator: Path, tmp_path: Path
) -> None:
    again = jobs.evaluate(tiny_generator, tiny_zoo, tmp_path, seeds=(0, 1), candidates=2)
    assert {**result.to_json(), "cost": 0} == {**again.to_json(), "cost": 0}


def test_the_oracle_beats_what_does_not_know_the_task(result: EvaluateResult) -> None:
    rows = result.card["rows"]
    assert rows["oracle"]["mean"] > rows["zoo_mean"]["mean"] + 0.1


def test_a_generator_is_not_judged_on_tasks_it_has_seen(tiny_generator: Path, tiny_zoo: Path, tmp_path: Path) -> None:
    from tests.fixtures import RECIPE, TINY_RECIPE

    jobs.build_zoo(RECIPE, tmp_path / "zoo", [*TINY_RECIPE, "seed=1", "training.epochs=1"])
    with pytest.raises(UsageError, match="was trained on"):
        jobs.evaluate(tiny_generator, tmp_path / "zoo", tmp_path / "card")
    assert not (tmp_path / "card").exists()


def test_held_out_tasks_share_nothing_with_the_training_networks(setting: Setting) -> None:
    assert not {t.name for t in setting.tasks} & {r.task for r in setting.raw.records}
    assert {r.task for r in setting.oracles.records} == {t.name for t in setting.tasks}


def test_conditions_come_from_other_images_than_training_and_test(setting: Setting) -> None:
    given = {tuple(row) for row in setting.examples(0).x.flatten(0, 2).flatten(1).tolist()}
    for bank in (setting.train_bank, setting.test_bank):
        assert not given & {tuple(row) for row in bank.x.flatten(1).tolist()}


def test_every_method_gives_networks_of_the_right_shape(setting: Setting) -> None:
    examples = setting.examples(0)
    for method in METHODS.values():
        networks = method(setting, examples, 0, 2)
        for name, value in setting.raw.tensors.items():
            assert networks[name].shape == (3, 2, *value.shape[1:])
        assert setting.accuracy(networks).shape == (3, 2)


def test_accuracy_counts_right_answers(setting: Setting) -> None:
    own = METHODS["oracle"](setting, setting.examples(0), 0, 1)
    flipped = {k: -v if k.startswith("layers.1") else v for k, v in own.items()}
    assert torch.allclose(setting.accuracy(own) + setting.accuracy(flipped), torch.ones(3, 1))


def test_flatten_and_unflatten_are_inverse(setting: Setting) -> None:
    back = unflatten(flatten(setting.raw.tensors), setting.raw.tensors)
    assert all(torch.equal(back[name], value) for name, value in setting.raw.tensors.items())


def test_class_means_ignore_padding() -> None:
    x = torch.tensor([[1.0, 1.0], [3.0, 3.0], [5.0, 5.0]])
    examples = Examples.group(x, torch.tensor([0, 0, 1]))
    assert class_means(examples).tolist() == [[2.0, 2.0, 5.0, 5.0]]


def test_nearest_class_mean_is_perfect_on_its_own_means(setting: Setting) -> None:
    rows = nearest_class_mean(setting.examples(0), setting.test_bank)
    assert rows.shape == (3, 1)
    assert rows.min() > 0.7


def test_shuffling_leaves_no_task_its_own_examples(setting: Setting) -> None:
    examples = setting.examples(0)
    for seed in range(5):
        other = shuffled(examples, seed)
        assert all(not torch.equal(a, b) for a, b in zip(other.x, examples.x, strict=True))
        assert sorted(t.sum().item() for t in other.x) == sorted(t.sum().item() for t in examples.x)


def test_junk_keeps_the_histogram_and_nothing_else(setting: Setting) -> None:
    examples = setting.examples(0)
    noise = junk(examples, 0)
    assert torch.equal(noise.x.flatten().sort().values, examples.x.flatten().sort().values)
    assert not torch.equal(noise.x, examples.x)


def test_a_copy_of_a_zoo_member_is_not_novel(setting: Setting, tiny_generator: Path) -> None:
    reference = load_generator(tiny_generator).problem.forms[0].reference
    assert reference is not None
    copies = {k: v[:3, None].expand(-1, 2, *v.shape[1:]) for k, v in setting.raw.tensors.items()}
    found = novelty(setting, copies, reference)
    assert found["distance_ratio"] < 1e-3
    assert found["disagreement"] == 0
    noisy = {k: v + torch.randn_like(v) for k, v in copies.items()}
    assert novelty(setting, noisy, reference)["distance_ratio"] > 1


def test_paired_intervals_cover_and_spread_is_over_seeds() -> None:
    first = torch.rand(3, 40, generator=torch.Generator().manual_seed(0))
    mean, low, high = paired_interval(first + 0.1, first)
    assert low == pytest.approx(mean) == pytest.approx(high) == pytest.approx(0.1, abs=1e-6)
    mean, low, high = paired_interval(first, first.flip(1))
    assert low < 0 < high
    assert low < mean < high
    assert spread(torch.tensor([[0.0, 1.0], [0.5, 0.5]])) == (0.5, 0.0)


def test_ridge_strength_does_not_depend_on_test_images(setting: Setting) -> None:
    from weightgen.evaluation.baselines import choose_ridge

    other = replace(setting, test_bank=setting.val_bank)
    assert choose_ridge(other)[1] == choose_ridge(setting)[1]
