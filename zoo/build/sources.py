"""Labelled data sets that recipes can train on, split once before any task is made."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.errors import UsageError

TRAIN, VAL, TEST = 0, 1, 2


@dataclass(frozen=True, eq=False)
class LabelledData:
    """Examples in [0, 1] with class labels and the part each belongs to (0 train, 1 validation, 2 test)."""

    name: str
    description: str
    license: str
    class_names: tuple[str, ...]
    x: Float[Tensor, "n ..."]
    y: Int[Tensor, " n"]
    part: Int[Tensor, " n"]

    def tensors(self) -> dict[str, Tensor]:
        """What the zoo stores."""
        return {"x": self.x, "y": self.y, "part": self.part}


def _split(y: np.ndarray, val: float, test: float, seed: int) -> Tensor:
    """Stratified assignment of examples to train, validation and test."""
    from sklearn.model_selection import train_test_split

    index = np.arange(len(y))
    _, rest = train_test_split(index, test_size=val + test, stratify=y, random_state=seed)
    val_index, test_index = train_test_split(rest, test_size=test / (val + test), stratify=y[rest], random_state=seed)
    part = torch.full((len(y),), TRAIN)
    part[val_index], part[test_index] = VAL, TEST
    return part


def sklearn_digits(val: float, test: float, seed: int) -> LabelledData:
    """1,797 real handwritten digits of 8 x 8 pixels that come with scikit-learn (UCI, Alpaydin and Kaynak 1998)."""
    datasets = importlib.import_module("sklearn.datasets")
    data = datasets.load_digits()
    pixels, labels = data.images, data.target
    return LabelledData(
        name="sklearn-digits",
        description="handwritten digits, 8 x 8 grey pixels",
        license="CC-BY-4.0",
        class_names=tuple(str(digit) for digit in range(10)),
        x=torch.from_numpy(pixels).float() / 16.0,
        y=torch.from_numpy(labels).long(),
        part=_split(labels, val, test, seed),
    )


SOURCES: dict[str, Callable[[float, float, int], LabelledData]] = {"sklearn-digits": sklearn_digits}


def load_source(name: str, val: float, test: float, seed: int) -> LabelledData:
    """Load a data set by name.

    Args:
        name: one of ``SOURCES``.
        val: share of the examples used for validation.
        test: share of the examples used for the last measurement.
        seed: decides the split.

    Raises:
        UsageError: if the name is unknown.
    """
    if name not in SOURCES:
        raise UsageError(f"unknown data set {name!r}", f"choose one of {', '.join(sorted(SOURCES))}")
    return SOURCES[name](val, test, seed)
