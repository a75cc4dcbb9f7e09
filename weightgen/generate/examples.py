"""Labelled examples from a file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from zoo.errors import BadArtefact, UsageError


def read_examples(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Read labelled examples.

    Args:
        path: ``.npz`` file with ``x`` and ``y``.

    Returns:
        Inputs as float32 and labels.

    Raises:
        BadArtefact: if the file is missing or no npz archive.
        UsageError: if an array is missing, empty, of the wrong type, or not finite.
    """
    if not path.is_file():
        raise BadArtefact(f"{path} does not exist", "give an .npz file with the arrays x and y")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name in ("x", "y")}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise BadArtefact(
            f"{path} is not a plain .npz archive ({error})", "save it with numpy.savez(x=..., y=...)"
        ) from None
    missing = {"x", "y"} - set(arrays)
    if missing:
        raise UsageError(f"{path} lacks the array {missing.pop()!r}", "save it with numpy.savez(x=..., y=...)")
    x, y = arrays["x"], arrays["y"]
    if y.ndim != 1 or len(x) != len(y) or len(y) == 0:
        raise UsageError(f"{path}: x is {x.shape} and y is {y.shape}", "give one label an example, at least one")
    if not np.issubdtype(y.dtype, np.integer):
        raise UsageError(f"{path}: labels are {y.dtype}", "give integers 0 .. classes - 1")
    if x.dtype == np.uint8:
        x = x.astype(np.float32) / 255.0
    elif not np.issubdtype(x.dtype, np.number) or np.issubdtype(x.dtype, np.complexfloating):
        raise UsageError(f"{path}: inputs are {x.dtype}", "give numbers")
    x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise UsageError(f"{path}: inputs hold NaN or infinity", "remove or repair these examples")
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))
