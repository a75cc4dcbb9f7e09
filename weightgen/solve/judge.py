"""What candidates say about the labelled examples: those that learned from them are asked about the others only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightgen.solve.budget import Meter, reading
from weightgen.solve.candidates import Candidate
from weightgen.solve.journal import Journal
from zoo.seeds import seed_of
from zoo.types import Weights

BLOCKS = 4
FEW = 2
"""Examples a label up to which learning is judged by four folds; by two folds above, which cost half as much."""


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


class Base(Protocol):
    """What weights are tried on.

    Attributes:
        meter: what is charged.
        labels: each label, for people.
    """

    @property
    def meter(self) -> Meter: ...
    @property
    def labels(self) -> tuple[str, ...]: ...

    def logits(self, weights: Weights | None, items: Sequence[Any], /) -> Float[Tensor, "n c"]:
        """Answers to some examples under weights, or without any."""
        ...


@final
class Judge:
    """Asks candidates about blocks of the labelled examples, and keeps the answers.

    Attributes:
        base: what candidates are tried on.
        items: the examples.
        y: their labels.
        shots: labelled examples a label.
        blocks: numbers of examples.
        folds: blocks that are held out together when something is learned.
    """

    def __init__(self, base: Base, items: Sequence[Any], y: Int[Tensor, " n"], journal: Journal, seed: int) -> None:
        """Deal the examples."""
        self.base, self.items, self.y, self._journal = base, items, y, journal
        self.blocks = blocks_of(y, seed)
        a_label = self.shots = len(y) / max(1, len(base.labels))
        numbers = list(range(len(self.blocks)))
        half = (len(numbers) + 1) // 2
        self.folds = [[n] for n in numbers] if a_label <= FEW else [numbers[:half], numbers[half:]]
        self.folds = [fold for fold in self.folds if fold]

    @property
    def share(self) -> float:
        """Of the examples that what learns has learned from when it is asked about the others."""
        return 1 - sum(map(len, self.folds)) / len(self.folds) / len(self.blocks)

    def rows(self, blocks: Sequence[int]) -> list[int]:
        """Numbers of the examples of some blocks, in order."""
        return [row for block in blocks for row in self.blocks[block]]

    def others(self, fold: Sequence[int]) -> list[int]:
        """Numbers of the examples that are not in a fold."""
        return self.rows([block for block in range(len(self.blocks)) if block not in fold])

    def ask(self, candidate: Candidate, blocks: Sequence[int]) -> None:
        """Let a candidate answer some blocks, unless it has."""
        missing = self._missing(candidate, blocks)
        if not missing:
            return
        if candidate.learn is None:
            self._keep(candidate, missing, candidate)
            return
        for fold in self.folds:
            if wanted := [block for block in fold if block in missing]:
                made = Candidate(candidate.name, candidate.way, candidate.about, candidate.learn(self.others(fold)))
                self._keep(candidate, wanted, made)

    def cost(self, candidate: Candidate, blocks: Sequence[int], parts: Sequence[Candidate] = ()) -> float:
        """Steps that ``ask`` would cost; what its parts learn for the same answers is theirs."""
        missing = self._missing(candidate, blocks)
        if not missing:
            return 0.0
        shared = sum(self._learning(part, self._missing(part, blocks)) for part in parts)
        learning = max(0.0, self._learning(candidate, missing) - shared)
        return reading(len(self.rows(missing)) + len(self.base.labels)) + learning

    def _missing(self, candidate: Candidate, blocks: Sequence[int]) -> list[int]:
        return [block for block in blocks if self._journal.get(candidate.name, block) is None]

    def _learning(self, candidate: Candidate, missing: Sequence[int]) -> float:
        if candidate.cost is None:
            return 0.0
        return sum(candidate.cost(self.others(fold)) for fold in self.folds if set(fold) & set(missing))

    def answers(self, candidate: Candidate, blocks: Sequence[int]) -> Float[Tensor, "n c"] | None:
        """Logits of a candidate for the examples of some blocks, if it answered them all."""
        found = [self._journal.get(candidate.name, block) for block in blocks]
        kept = [one for one in found if one is not None]
        return torch.cat(kept) if kept and len(kept) == len(found) else None

    def right(self, candidate: Candidate) -> bool:
        """Whether a candidate answered all examples, and every one rightly."""
        answers = self.answers(candidate, range(len(self.blocks)))
        rows = self.rows(range(len(self.blocks)))
        return answers is not None and bool((answers.argmax(-1) == self.y[rows]).all())

    def _keep(self, candidate: Candidate, blocks: Sequence[int], asked: Candidate) -> None:
        rows = self.rows(blocks)
        logits = self.base.logits(asked.weights, [self.items[row] for row in rows])
        for block, part in zip(blocks, logits.split([len(self.blocks[block]) for block in blocks]), strict=True):
            self._journal.put(candidate.name, block, part)
        self._journal.save()
