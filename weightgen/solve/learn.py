"""Adapters learned from a few labelled examples: aTLAS, LoraHub, and some steps of training."""

from __future__ import annotations

from collections.abc import Sequence
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


def training_steps(examples: int) -> int:
    """Updates of fine-tuning: fewer where there is less to learn from."""
    return next(steps for most, steps in STEPS if examples <= most)


@final
class Learner:
    """Learns from rows of the labelled examples; everything is charged to the base's meter."""

    def __init__(self, base: Base, task: GivenTask, seed: int) -> None:
        """Keep what is learned from."""
        self.base, self.task, self.seed = base, task, seed

    def finetune(self, start: Weights | None, rows: Sequence[int]) -> Weights:
        """Train an adapter further, or a fresh one."""
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

    def finetune_cost(self, examples: int) -> float:
        """Steps that ``finetune`` costs."""
        return training_steps(examples)

    def atlas(self, parents: Sequence[Weights], rows: Sequence[int]) -> Weights:
        """One coefficient a parent and tensor, started at the scaled mean."""
        with self.base.meter.paying(self.atlas_cost(len(rows))), self.base.quick():
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

    def atlas_cost(self, examples: int) -> float:
        """Steps that ``atlas`` costs."""
        return ATLAS_STEPS

    def lorahub(self, parents: Sequence[Weights], rows: Sequence[int]) -> Weights:
        """One weight a parent, searched from the scaled mean without gradients."""
        chosen = parents[:SEARCHED]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed_of("search", self.seed)))
        rows = [rows[i] for i in order[:SEARCH_TEXTS].tolist()]
        with self.base.meter.paying(self.lorahub_cost(len(rows))), self.base.quick():
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

    def lorahub_cost(self, examples: int) -> float:
        """Steps that ``lorahub`` costs."""
        return EVALUATIONS * reading(min(examples, SEARCH_TEXTS) + len(self.base.labels))

    def _objective(self, rows: Sequence[int], batch: int) -> OverExamples:
        texts, y = [self.task.texts[i] for i in rows], self.task.y[list(rows)]
        labels = self.task.text.labels
        return text_classification(self.base.encoder, texts, y, labels, batch=batch, seed=self.seed)
