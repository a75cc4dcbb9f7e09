"""Every way of the portfolio alone, on one task: what learns from a few labels is scored on examples it never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.bench.compose_tasks import shots
from weightgen.evaluation.classification import macro_f1, macro_f1_weighted, resamples
from weightgen.generate.task import GivenTask
from weightgen.retrieve import Filters, Index
from weightgen.solve.base import Base
from weightgen.solve.budget import Budget, Meter
from weightgen.solve.candidates import (
    BASE,
    Candidate,
    Sources,
    find_sources,
    from_generator,
    from_sources,
    learned,
)
from weightgen.solve.learn import Learner
from weightgen.solve.record import Record
from weightgen.solve.run import Means, solve_task
from weightgen.types import TaskText
from zoo.build.encoder import EncoderConfig, TextEncoder
from zoo.build.text_tasks import TextTask, load_text_task
from zoo.seeds import seed_of
from zoo.tasks import TEST, TRAIN, VAL
from zoo.types import Weights

UNLABELLED, MOST = 32, {VAL: 300, TEST: 200}
ENDLESS = Budget(1e9, "steps")


@dataclass(frozen=True, eq=False)
class Place:
    """Where everything is.

    Attributes:
        tasks: folder of task files.
        index: of the zoo that adapters come from.
        generator: folder of the generator.
        encoder: the base.
    """

    tasks: Path
    index: Index
    generator: Path
    encoder: TextEncoder

    @classmethod
    def open(cls, tasks: Path, zoo: Path, generator: Path) -> Place:
        """Load what all tasks share."""
        encoder = TextEncoder(EncoderConfig())
        index = Index.open(zoo)
        index.encoder.model = encoder
        return cls(tasks, index, generator, encoder)


class Measured:
    """One task: what may be known of it, and the examples that everything is scored on."""

    def __init__(self, place: Place, task: TextTask, part: int) -> None:
        import torch

        self.place, self.task, name = place, task, task.name
        texts, y = self.task.select(part)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed_of("judged on", name)))[
            : MOST[part]
        ]
        self.texts, self.y = [texts[i] for i in order.tolist()], y[order]
        self._drawn, self._plain = resamples(self.y, 0), y[order]
        self._tried: dict[int, list[Candidate]] = {}

    @classmethod
    def open(cls, place: Place, name: str, part: int) -> Measured:
        """Read the file of a task."""
        return cls(place, load_text_task(place.tasks / f"{name}.json.gz", 0.15, 0), part)

    def given(self, count: int, seed: int) -> GivenTask:
        """Words, 32 unlabelled texts, and some labelled examples a label."""
        return given(self.task, count, seed)

    def score(self, base: Base, adapter: Weights | None) -> dict[str, float]:
        """Macro-F1 on the held-out examples, and the standard error of its difference from the base."""
        found = base.logits(adapter, self.texts).argmax(-1)
        if adapter is None:
            self._plain = found
        difference = macro_f1_weighted(found, self.y, self._drawn) - macro_f1_weighted(self._plain, self.y, self._drawn)
        return {"macro_f1": round(macro_f1(found, self.y), 4), "noise": round(float(difference.std()), 4)}

    def sources(self, task: GivenTask) -> Sources:
        """Adapters of training tasks."""
        return find_sources(self.place.index, task, self.place.encoder.base_model, Filters(split="train"))

    def portfolio(self, count: int, seed: int, budget: Budget, record: Record) -> dict[str, Any]:
        """What ``solve`` chooses and how good that is on examples it never saw."""
        place, task = self.place, self.given(count, seed)
        means = Means(place.index, [(place.generator, True)], Filters(split="train"), record)
        solution = solve_task(place.encoder, task, means, budget, seed=seed)
        base = Base(place.encoder, task.text.labels, Meter(ENDLESS))
        self.score(base, None)
        self._tried[count] = [one for one in solution.search.candidates if one.learn]
        last = solution.search.last.get(solution.choice.name)
        return {
            **self.score(base, solution.weights),
            "choice": solution.choice.name,
            "chosen_way": solution.choice.way,
            "best": solution.search.best.name,
            "expected_gain": None if last is None else round(last.gain.value, 4),
            "expected_noise": None if last is None else round(last.gain.noise, 4),
            "candidates": len(solution.search.candidates),
            **{name: solution.cost[name] for name in ("steps", "seconds")},
        }

    def ways(
        self,
        counts: Sequence[int],
        seed: int,
        keep: Callable[[str, int, Mapping[str, Any]], None],
        done: Callable[[str, int], bool],
    ) -> None:
        """Score every way alone, unless it is done."""
        told = self.given(0, seed)
        base = Base(self.place.encoder, told.text.labels, Meter(ENDLESS))
        sources = self.sources(told)
        frozen = [BASE, *from_sources(sources), *from_generator(self.place.generator, base, told, seed, "generated")]
        bare = replace(told, text=replace(told.text, texts=()))
        frozen += [one for one in from_generator(self.place.generator, base, bare, seed, "g") if one.way == "generated"]
        frozen = [one for one in frozen if one.way != "retrieved" or one.name == "retrieved-1"]
        for one in frozen:
            if one is BASE or not done(one.way, 0):
                keep(one.way, 0, self.score(base, one.weights))
        starts = [one for way in ("static", "generated_texts") for one in frozen if one.way == way]
        for count in counts:
            task = self.given(count, seed)
            # What the portfolio trained is not trained again.
            tried = self._tried.get(count) or list(learned(Learner(base, task, seed), sources, starts))
            for one in tried:
                assert one.learn is not None
                if not done(one.way, count):
                    keep(one.way, count, self.score(base, one.learn(range(len(task.y)))))


def given(task: TextTask, count: int, seed: int) -> GivenTask:
    """What a user knows of a task."""
    texts, y = shots(task, count, seed) if count else ([], task.y[:0])
    everything, _ = task.select(TRAIN)
    taken = set(texts)
    others = [text for text in everything if text not in taken][:UNLABELLED]
    return GivenTask(task.name, TaskText(task.description, task.label_texts, tuple(others)), tuple(texts), y)
