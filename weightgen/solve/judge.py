"""What candidates say about the labelled examples: those that learned from them are asked about the others only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightgen.generate.task import GivenTask
from weightgen.solve.base import Base
from weightgen.solve.budget import reading
from weightgen.solve.candidates import Candidate
from weightgen.solve.journal import Journal
from zoo.seeds import seed_of

BLOCKS = 4
FEW = 8
"""Examples a label up to which learning is judged by four folds; by two folds above."""


def blocks_of(y: Int[Tensor, " n"], seed: int) -> list[list[int]]:
    """Deal the examples into blocks, the labels evenly."""
    rng = torch.Generator().manual_seed(seed_of("blocks", seed))
    blocks: list[list[int]] = [[] for _ in range(BLOCKS)]
    dealt = 0
    for label in y.unique().tolist():
        rows = torch.nonzero(y == label)[:, 0]
        for row in rows[torch.randperm(len(rows), generator=rng)].tolist():
            blocks[dealt % BLOCKS].append(row)
            dealt += 1
    return [sorted(block) for block in blocks if block]


@final
class Judge:
    """Asks candidates about blocks of the labelled examples, and keeps the answers.

    Attributes:
        task: with the labelled examples.
        blocks: numbers of examples.
        folds: blocks that are held out together when something is learned.
    """

    def __init__(self, base: Base, task: GivenTask, journal: Journal, seed: int) -> None:
        """Deal the examples."""
        self.base, self.task, self._journal = base, task, journal
        self.blocks = blocks_of(task.y, seed)
        a_label = len(task.y) / max(1, len(task.text.labels))
        numbers = list(range(len(self.blocks)))
        half = (len(numbers) + 1) // 2
        self.folds = [[n] for n in numbers] if a_label <= FEW else [numbers[:half], numbers[half:]]
        self.folds = [fold for fold in self.folds if fold]

    def rows(self, blocks: Sequence[int]) -> list[int]:
        """Numbers of the examples of some blocks, in order."""
        return [row for block in blocks for row in self.blocks[block]]

    def ask(self, candidate: Candidate, blocks: Sequence[int]) -> None:
        """Let a candidate answer some blocks, unless it has."""
        missing = [block for block in blocks if self._journal.get(candidate.name, block) is None]
        if not missing:
            return
        if candidate.learn is None:
            self._keep(candidate, missing, candidate)
            return
        for fold in self.folds:
            if wanted := [block for block in fold if block in missing]:
                known = self.rows([block for block in range(len(self.blocks)) if block not in fold])
                made = Candidate(candidate.name, candidate.way, candidate.about, candidate.learn(known))
                self._keep(candidate, wanted, made)

    def cost(self, candidate: Candidate, blocks: Sequence[int]) -> float:
        """Steps that ``ask`` would cost."""
        missing = [block for block in blocks if self._journal.get(candidate.name, block) is None]
        if not missing:
            return 0.0
        total = reading(len(self.rows(missing)) + len(self.task.text.labels))
        if candidate.cost is not None:
            for fold in self.folds:
                if set(fold) & set(missing):
                    total += candidate.cost(len(self.task.y) - len(self.rows(fold)))
        return total

    def answers(self, candidate: Candidate, blocks: Sequence[int]) -> Float[Tensor, "n c"] | None:
        """Logits of a candidate for the examples of some blocks, if it answered them all."""
        found = [self._journal.get(candidate.name, block) for block in blocks]
        kept = [one for one in found if one is not None]
        return torch.cat(kept) if kept and len(kept) == len(found) else None

    def _keep(self, candidate: Candidate, blocks: Sequence[int], asked: Candidate) -> None:
        rows = self.rows(blocks)
        logits = self.base.logits(asked.weights, [self.task.texts[row] for row in rows])
        for block, part in zip(blocks, logits.split([len(self.blocks[block]) for block in blocks]), strict=True):
            self._journal.put(candidate.name, block, part)
        self._journal.save()
