"""Model selection inside of a training stage: what it ends with is the best of several points on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor


class KeepBest(Callback):
    """Measures the averaged weights at evenly spaced steps, the last one among them, and ends with the best.

    Its state is saved with that of the trainer, so an interrupted training chooses as any other. Give it to the trainer
    after the averaging.
    """

    def __init__(self, averaging: WeightAveraging, score: Callable[[], float], steps: int, checks: int) -> None:
        """Plan the checks.

        Args:
            averaging: holds the averaged weights.
            score: what is to be high, of the weights that the module has when it is called.
            steps: updates of the stage.
            checks: how often to measure; with 0 nothing is measured and the last weights stay.
        """
        self.averaging, self.score = averaging, score
        self.marks = {round(steps * (i + 1) / checks) for i in range(checks)}
        self.scores: dict[int, float] = {}
        self.best: dict[str, Tensor] = {}

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure where a check is due."""
        if trainer.global_step not in self.marks:
            return
        self.averaging.on_validation_epoch_start(trainer, pl_module)
        pl_module.eval()
        score = self.score()
        if not self.scores or score > max(self.scores.values()):
            self.best = {n: p.detach().clone() for n, p in pl_module.named_parameters() if p.requires_grad}
        self.scores[trainer.global_step] = score
        pl_module.train()
        self.averaging.on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the best weights; called after the averaged ones were taken."""
        parameters = dict(pl_module.named_parameters())
        with torch.no_grad():
            for name, value in self.best.items():
                parameters[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """What was measured, and the best weights."""
        return {"scores": list(self.scores.items()), "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.scores = {int(step): score for step, score in state_dict["scores"]}
        self.best = state_dict["best"]
