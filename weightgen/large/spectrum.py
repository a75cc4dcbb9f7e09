"""Which layers carry information: eigenvalues outside of the Marchenko-Pastur bulk.

A matrix of independent entries of variance s^2, with m rows and n >= m columns, has eigenvalues of W W^T / n that fill
the interval s^2 (1 -+ sqrt(q))^2 with q = m / n (Marchenko and Pastur 1967). What training has learned stands out
above its upper edge. D2NWG (arXiv 2402.18153) picks layers of language models by this law; its measure is not used
here. Ours: the share of the energy (sum of eigenvalues) that lies above the edge. The variance of the noise is
estimated robustly, by the median eigenvalue over the median of the law (Gavish and Donoho, arXiv 1305.5870), so that
large learned eigenvalues do not raise the edge that they are compared with.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from weightgen.large.config import LayersConfig
from weightgen.large.folder import ModelFolder
from weightgen.progress import Progress
from zoo.errors import UsageError
from zoo.naming import natural_key

BLOCK = re.compile(r"^(?P<stack>.*?)\.?(?P<layer>\d+)\.(?P<role>.+)$")
TRAINABLE = ("F64", "F32", "F16", "BF16")
GRID = 20_001
COLUMNS_AT_ONCE = 1 << 12


@dataclass(frozen=True)
class Spectrum:
    """How far a matrix is from noise.

    Attributes:
        name: the tensor.
        sigma: deviation of the noise that explains the median eigenvalue.
        edge: upper end of the bulk.
        outside: number of eigenvalues above it.
        outside_share: the same as a share of all.
        energy_share: share of the energy above the edge, what layers are ranked by.
    """

    name: str
    sigma: float
    edge: float
    outside: int
    outside_share: float
    energy_share: float


@functools.lru_cache(maxsize=256)
def law_median(q: float) -> float:
    """Median eigenvalue of the Marchenko-Pastur law of variance 1, by integration of its density.

    Args:
        q: rows over columns, above 0 and at most 1.
    """
    low, high = (1 - q**0.5) ** 2, (1 + q**0.5) ** 2
    # x = middle + radius * sin(angle) takes the square root out of the density at both ends.
    angle = np.linspace(-np.pi / 2, np.pi / 2, GRID)
    middle, radius = (low + high) / 2, (high - low) / 2
    x = middle + radius * np.sin(angle)
    density = np.cos(angle) ** 2 / np.maximum(x, 1e-12)
    total = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(np.interp(total[-1] / 2, total, x))


def spectrum(name: str, weight: Float[Tensor, "r c"]) -> Spectrum:
    """Compare the eigenvalues of a matrix with the law; the larger side may be read in pieces."""
    matrix = weight if weight.shape[0] <= weight.shape[1] else weight.T
    m, n = matrix.shape
    gram = torch.zeros(m, m, dtype=torch.float64)
    for start in range(0, n, COLUMNS_AT_ONCE):
        part = matrix[:, start : start + COLUMNS_AT_ONCE].float()
        gram += part @ part.T
    values = torch.linalg.eigvalsh(gram / n).clamp(min=0)
    total = values.sum().item()
    if total == 0:
        return Spectrum(name, 0.0, 0.0, 0, 0.0, 0.0)
    q = m / n
    variance = values.median().item() / law_median(q)
    edge = variance * (1 + q**0.5) ** 2
    above = values[values > edge]
    return Spectrum(name, variance**0.5, edge, len(above), len(above) / m, above.sum().item() / total)


def block_matrices(model: ModelFolder) -> list[str]:
    """Weight matrices inside of numbered blocks: no embeddings, heads, biases or norms."""
    return sorted(
        (
            name
            for name, info in model.tensors.items()
            if len(info.shape) >= 2 and min(info.shape) > 1 and info.dtype in TRAINABLE and BLOCK.match(name)
        ),
        key=natural_key,
    )


def choose(
    model: ModelFolder, config: LayersConfig, progress: Progress | None = None
) -> tuple[list[str], tuple[Spectrum, ...]]:
    """Choose the matrices to sample anew.

    Args:
        model: the checkpoint; each matrix is read once, one at a time.
        config: by spectrum, or by a regular expression that is searched for in the names.
        progress: told what is done.

    Returns:
        The names in order of the blocks, and the spectra, first choice first; none for a regular expression.

    Raises:
        UsageError: if the expression is wrong or nothing fits.
    """
    candidates = block_matrices(model)
    if config.select != "auto":
        return _by_name(model, config.select), ()
    if not candidates:
        raise UsageError(f"{model.name} has no weight matrix in numbered blocks", "name tensors with --layers REGEX")
    spectra: list[Spectrum] = []
    for name, tensor in model.stream(candidates):
        spectra.append(spectrum(name, tensor.flatten(1)))
        if progress is not None:
            progress("spectrum", len(spectra), len(candidates))
    sign = -1 if config.prefer == "signal" else 1
    spectra.sort(key=lambda s: (sign * s.energy_share, natural_key(s.name)))
    return sorted((s.name for s in spectra[: config.top]), key=natural_key), tuple(spectra)


def _by_name(model: ModelFolder, expression: str) -> list[str]:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise UsageError(f"--layers {expression!r} is no regular expression ({error})", "or use 'auto'") from None
    names = [name for name, i in model.tensors.items() if len(i.shape) >= 2 and i.dtype in TRAINABLE]
    found = sorted((name for name in names if pattern.search(name)), key=natural_key)
    if not found:
        raise UsageError(
            f"--layers {expression!r} fits no weight matrix of {model.name}", f"there are {_examples(names)}"
        )
    return found


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
