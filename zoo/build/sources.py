"""Labelled data sets that recipes can train on, split once before any task is made; files are read by ``images``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from zoo.errors import UsageError
from zoo.tasks import TEST, TRAIN, VAL


@dataclass(frozen=True, eq=False)
class LabelledData:
    """Examples with class labels and the part each belongs to (0 train, 1 validation, 2 test).

    Inputs are bytes (pixels, see ``zoo.tasks.scaled``) or numbers to be taken as they are; channels come first.
    """

    name: str
    description: str
    license: str | None
    class_names: tuple[str, ...]
    x: Shaped[Tensor, "n ..."]
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


def take_validation(
    y: np.ndarray, part: Int[Tensor, " n"], share: float, seed: int, into: int = VAL
) -> Int[Tensor, " n"]:
    """Move a share of the training examples into another part, every class alike where it is large enough.

    Args:
        y: label of each example.
        part: part of each example; a changed copy is returned.
        share: of the training examples, below 1; 0 moves none.
        seed: decides which.
        into: number of the other part.
    """
    rng = np.random.default_rng(seed)
    result = part.clone()
    train = np.flatnonzero(part.numpy() == TRAIN)
    for label in np.unique(y[train]):
        own = rng.permutation(train[y[train] == label])
        result[torch.from_numpy(own[: round(share * len(own))].copy())] = into
    return result


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
    """Load a data set by name, or from a file.

    Args:
        name: one of ``SOURCES``, or the path of a file that ``zoo.build.images`` reads.
        val: share of the examples used for validation; of the training examples where the file has test examples.
        test: share of the examples used for the last measurement; not used where the file has test examples.
        seed: decides the split.

    Raises:
        UsageError: if the name is unknown.
        BadArtefact: if the file is damaged.
    """
    if name in SOURCES:
        return SOURCES[name](val, test, seed)
    if not Path(name).exists():
        raise UsageError(
            f"unknown data set {name!r}", f"choose one of {', '.join(sorted(SOURCES))}, or give the path of a file"
        )
    from zoo.build.images import load_images

    return load_images(Path(name), val, test, seed)
