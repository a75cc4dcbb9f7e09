"""The examples of a task: a selection of the classes of a stored data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

TRAIN, VAL, TEST = 0, 1, 2
"""Parts of a data set."""


def scaled(x: Shaped[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Examples as networks take them: bytes are pixels and become [0, 1], everything else its float32 value."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x.float()


@dataclass(frozen=True, eq=False)
class TaskData:
    """Examples of one task; labels count the task's own classes.

    Attributes:
        x: inputs as they are stored; images may be bytes, see ``scaled``.
        y: class of each example, ``0 .. number of classes - 1``.
        parts: 0 train, 1 validation, 2 test.
    """

    x: Shaped[Tensor, "n ..."]
    y: Int[Tensor, " n"]
    parts: Int[Tensor, " n"]

    @classmethod
    def select(cls, dataset: Mapping[str, Tensor], classes: Sequence[int]) -> TaskData:
        """Keep the examples of some classes of a data set with the tensors ``x``, ``y`` and ``part``."""
        index = torch.full((int(dataset["y"].max()) + 1,), -1)
        index[torch.tensor(classes)] = torch.arange(len(classes))
        label = index[dataset["y"].long()]
        keep = label >= 0
        return cls(dataset["x"][keep], label[keep], dataset["part"][keep])

    def part(self, number: int) -> tuple[Float[Tensor, "n ..."], Int[Tensor, " n"]]:
        """Inputs (``scaled``) and labels of the train (0), validation (1) or test (2) examples."""
        x, y = self.stored(number)
        return scaled(x), y

    def stored(self, number: int) -> tuple[Shaped[Tensor, "n ..."], Int[Tensor, " n"]]:
        """As ``part``, the inputs as they are stored: a quarter of the memory where images are bytes."""
        keep = self.parts == number
        return self.x[keep], self.y[keep]
