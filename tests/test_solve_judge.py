"""The portfolio: what learns from labels, and who is asked about which of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.compose_parents import changes
from weightgen.generate.task import GivenTask
from weightgen.solve import learn
from weightgen.solve.base import Base
from weightgen.solve.budget import Budget, reading
from weightgen.solve.candidates import Candidate, Sources, learned
from weightgen.solve.journal import Journal
from weightgen.solve.judge import Judge, blocks_of
from weightgen.solve.learn import Learner
from weightgen.types import TaskText
from zoo.build.encoder import EncoderConfig, TextEncoder
from zoo.types import Weights

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # among libraries


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn, "STEPS", ((1 << 30, 4),))


def judge_of(text_encoder: Path, count: int) -> tuple[Judge, Base, GivenTask]:
    texts = tuple(f"the cat {i}" for i in range(4 * count))
    task = GivenTask("t", TaskText("d", ("a", "b", "c", "d")), texts, torch.arange(4).repeat(count))
    journal = Journal(None, "", Budget(1e9, "steps"))
    base = Base(TextEncoder(EncoderConfig(name=str(text_encoder))), task.text.labels, journal.meter)
    return Judge(base, task.texts, task.y, journal, 0), base, task


@pytest.mark.parametrize(("count", "folds"), [(2, 4), (12, 2)])
def test_what_learns_is_asked_only_about_examples_it_did_not_see(text_encoder: Path, count: int, folds: int) -> None:
    judge, base, task = judge_of(text_encoder, count)
    seen: list[set[int]] = []
    fresh = base.fresh(0)

    def learns(rows: Any) -> Weights:
        seen.append(set(rows))
        return fresh

    asked: list[list[str]] = []
    ask: Callable[..., torch.Tensor] = base.logits
    base.logits = lambda adapter, texts: (asked.append(list(texts)), ask(adapter, texts))[1]  # type: ignore[method-assign]
    candidate = Candidate("learner", "atlas", "", learn=learns, cost=lambda n: 1.0)
    judge.ask(candidate, range(2))
    judge.ask(candidate, range(4))
    assert len(judge.folds) == folds
    assert judge.share == 1 - 1 / folds
    position = {text: i for i, text in enumerate(task.texts)}
    for known, texts in zip(seen, asked, strict=True):
        rows = {position[text] for text in texts}
        assert not known & rows
        assert known | rows == set(range(len(task.texts)))
    answers = judge.answers(candidate, range(4))
    assert answers is not None
    assert answers.shape == (len(task.texts), 4)
    assert judge.cost(candidate, range(4)) == 0


STATIC_AND_WRITTEN = (("a", "static"), ("b", "generated_texts"))


def test_training_that_a_mean_shares_with_its_parts_is_paid_once(text_encoder: Path) -> None:
    judge, base, task = judge_of(text_encoder, 4)
    starts = [Candidate(name, way, "", base.fresh(0)) for name, way in STATIC_AND_WRITTEN]
    one, other, soup, *_ = learned(Learner(base, task, 0), Sources(), starts)
    assert soup.parts == (one.name, other.name)
    read = reading(len(task.y) + len(task.text.labels))
    assert judge.cost(one, range(4)) > read
    assert judge.cost(soup, range(4)) == judge.cost(one, range(4)) + judge.cost(other, range(4)) - read
    assert judge.cost(soup, range(4), [other]) == judge.cost(one, range(4))
    assert judge.cost(soup, range(4), [one, other]) == read


def test_what_a_generator_wrote_counts_as_two_labels(text_encoder: Path) -> None:
    _, base, task = judge_of(text_encoder, 4)
    starts = [Candidate(name, way, "", base.fresh(seed)) for seed, (name, way) in enumerate(STATIC_AND_WRITTEN)]
    written = starts[1].weights
    assert written is not None
    for tensor in written.tensors.values():
        tensor += 0.1  # a fresh adapter changes nothing
    found = {one.way: one for one in learned(Learner(base, task, 0), Sources(), starts)}
    tuned, made = found["finetuned"], found["interpolated"]
    assert made.parts == (tuned.name,)
    assert tuned.learn is not None
    assert made.learn is not None
    assert made.cost is not None
    for rows, share in ((range(16), 1 / 3), (range(8), 1 / 2)):
        trained, change = changes(tuned.learn(rows)), changes(made.learn(rows))
        assert made.cost(rows) == 0
        for name, its in changes(written).items():
            torch.testing.assert_close(change[name], (1 - share) * trained[name] + share * its, rtol=1e-4, atol=1e-5)
    alone = learned(Learner(base, task, 0), Sources(), starts[:1])
    assert "interpolated" not in {one.way for one in alone}


def test_blocks_share_labels_evenly() -> None:
    y = torch.tensor([0] * 9 + [1] * 7)
    blocks = blocks_of(y, 0)
    assert sorted(row for block in blocks for row in block) == list(range(16))
    assert {len(block) for block in blocks} == {4}
    assert all(1 <= int(y[block].sum()) <= 2 for block in blocks)


def test_a_base_that_peft_does_not_know_is_adapted_in_all_its_linear_layers(text_encoder: Path) -> None:
    _, base, _ = judge_of(text_encoder, 2)
    known = base.fresh(0)
    base.encoder.model.config.model_type = "unheard-of"
    everywhere = base.fresh(0)
    assert len(known.tensors) < len(everywhere.tensors)
    texts = ["the cat", "a dog"]
    assert torch.equal(base.logits(everywhere, texts), base.logits(None, texts))
