"""Adapters learned from a few labelled examples: aTLAS, LoraHub, some steps of training, and means of trained ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import final

import torch

from weightgen.adapted import AdaptedEncoder
from weightgen.compose import compose
from weightgen.compose.objectives import OverExamples, text_classification
from weightgen.generate.finetune import finetune_adapter
from weightgen.generate.task import GivenTask
from weightgen.solve.base import Base
from weightgen.solve.budget import TRAINED_A_STEP, reading
from zoo.seeds import seed_of
from zoo.types import Weights

RANK = 32
"""Rank of mixtures; what it cuts off is in their receipt."""
ATLAS_STEPS, ATLAS_LR, START = 15, 0.05, 6.0
EVALUATIONS, SEARCHED = 40, 20
SEARCH_TEXTS = 128
STEPS = ((32, 30), (256, 60), (1 << 62, 100))
"""Updates of fine-tuning up to so many examples."""
LR, WARMUP = 1e-3, 6
WRITTEN = 2
"""Labelled examples a label that what a generator wrote counts as where it is interpolated with fine-tuning."""


def training_steps(examples: int) -> int:
    """Updates of fine-tuning: fewer where there is less to learn from."""
    return next(steps for most, steps in STEPS if examples <= most)


@final
class Learner:
    """Learns from rows of the labelled examples; everything is charged to the base's meter."""

    def __init__(self, base: Base, task: GivenTask, seed: int) -> None:
        """Keep what is learned from."""
        self.base, self.task, self.seed = base, task, seed
        self._trained: dict[tuple[str, tuple[int, ...]], Weights] = {}

    def finetune(self, name: str, start: Weights | None, rows: Sequence[int]) -> Weights:
        """Train an adapter further, or a fresh one; what was trained before under that name is not trained again."""
        key = (name, tuple(rows))
        if key not in self._trained:
            self._trained[key] = self._finetune(start, rows)
        return self._trained[key]

    def _finetune(self, start: Weights | None, rows: Sequence[int]) -> Weights:
        first = start or self.base.fresh(self.seed)
        steps = training_steps(len(rows))
        with self.base.meter.paying(steps):
            trained, _ = finetune_adapter(
                AdaptedEncoder(self.base.encoder, first.layout),
                first,
                [self.task.texts[i] for i in rows],
                self.task.y[list(rows)],
                self.task.text.labels,
                steps,
                self.seed,
                lr=LR,
                points=0,
                warmup=steps // WARMUP,
                bfloat16=self.base.bfloat16,
            )
        return trained

    def finetune_cost(self, name: str, rows: Sequence[int]) -> float:
        """Steps that ``finetune`` costs."""
        return 0 if (name, tuple(rows)) in self._trained else training_steps(len(rows))

    def soup(self, starts: Mapping[str, Weights | None], rows: Sequence[int]) -> Weights:
        """Mean of the updates of several fine-tuned adapters (Wortsman et al. 2022), exact."""
        trained = [self.finetune(name, start, rows) for name, start in starts.items()]
        return compose(trained, names=list(starts)).weights

    def soup_cost(self, starts: Iterable[str], rows: Sequence[int]) -> float:
        """Steps that ``soup`` costs: what is trained already is free."""
        return sum(self.finetune_cost(name, rows) for name in starts)

    def interpolate(self, name: str, start: Weights | None, written: Weights, rows: Sequence[int]) -> Weights:
        """Weighted mean of a fine-tuned adapter and one that saw no labels, exact; of that more where labels are few.

        Weights are interpolated as in WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903), but not with the start.
        """
        share = WRITTEN / (WRITTEN + len(rows) / len(self.base.labels))
        trained = self.finetune(name, start, rows)
        return compose([trained, written], weights=[1 - share, share], names=[name, "written"]).weights

    def atlas(self, parents: Sequence[Weights], rows: Sequence[int]) -> Weights:
        """One coefficient a parent and tensor, started at the scaled mean."""
        with self.base.meter.paying(self.atlas_cost(rows)), self.base.quick():
            made = compose(
                parents,
                "atlas",
                objective=self._objective(rows, TRAINED_A_STEP),
                weights=[START / len(parents)] * len(parents),
                settings={"steps": ATLAS_STEPS, "lr": ATLAS_LR},
                rank=RANK,
                seed=self.seed,
            )
        return made.weights

    def atlas_cost(self, rows: Sequence[int]) -> float:
        """Steps that ``atlas`` costs."""
        return ATLAS_STEPS

    def lorahub(self, parents: Sequence[Weights], rows: Sequence[int]) -> Weights:
        """One weight a parent, searched from the scaled mean without gradients."""
        chosen = parents[:SEARCHED]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed_of("search", self.seed)))
        rows = [rows[i] for i in order[:SEARCH_TEXTS].tolist()]
        with self.base.meter.paying(self.lorahub_cost(rows)), self.base.quick():
            made = compose(
                chosen,
                "lorahub",
                objective=self._objective(rows, 0),
                weights=[START / len(chosen)] * len(chosen),
                settings={"evaluations": EVALUATIONS},
                rank=RANK,
                seed=self.seed,
            )
        return made.weights

    def lorahub_cost(self, rows: Sequence[int]) -> float:
        """Steps that ``lorahub`` costs."""
        return EVALUATIONS * reading(min(len(rows), SEARCH_TEXTS) + len(self.base.labels))

    def _objective(self, rows: Sequence[int], batch: int) -> OverExamples:
        texts, y = [self.task.texts[i] for i in rows], self.task.y[list(rows)]
        labels = self.task.text.labels
        return text_classification(self.base.encoder, texts, y, labels, batch=batch, seed=self.seed)
