"""Weights of any size as vectors of one size whose inner products are kept.

Count sketch (Charikar et al. 2002; Weinberger et al. 2009): every value is added, with a random sign, to one random
place. Tensor sketch (Pham and Pagh, KDD 2013): that of a product of two factors is the circular convolution of the
sketches of the factors, so the update of an adapter is never formed. Both are linear and unbiased: the inner product
of two sketches of size D is that of the originals up to about ``sqrt(2 / D)`` of the product of their norms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightgen.compose.adapters import read_adapter
from zoo import kinds
from zoo.errors import UsageError
from zoo.seeds import seed_of
from zoo.tokens import Tokenizer
from zoo.types import Weights

PIECE = 1 << 22
FIT_ON = 256
"""Networks that scales are measured on."""


def _places(name: str, count: int, size: int) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Random places and signs of ``count`` values; the same for the same name."""
    rng = torch.Generator().manual_seed(seed_of("sketch", name, size))
    place = torch.randint(size, (count,), generator=rng)
    return place, 2.0 * torch.randint(2, (count,), generator=rng) - 1


def count_sketch(values: Float[Tensor, "n r"], name: str, size: int) -> Float[Tensor, "d r"]:
    """Sketch of every column.

    Args:
        values: columns of ``n`` values.
        name: decides the places; only sketches of one name can be compared.
        size: of the sketch.
    """
    place, sign = _places(name, len(values), size)
    result = torch.zeros(size, values.shape[1], dtype=values.dtype)
    return result.index_add_(0, place, values * sign[:, None].to(values.dtype))


def product_sketch(b: Float[Tensor, "o r"], a: Float[Tensor, "r i"], name: str, size: int) -> Float[Tensor, " d"]:
    """Sketch of the matrix ``b @ a``, from the factors."""
    up = torch.fft.rfft(count_sketch(b, f"{name}/outputs", size), dim=0)
    down = torch.fft.rfft(count_sketch(a.mT, f"{name}/inputs", size), dim=0)
    return torch.fft.irfft((up * down).sum(1), n=size)


def update_sketch(weights: Weights, size: int) -> Float[Tensor, " d"]:
    """Sketch of all that a LoRA adapter adds to its base; the gauge of the factors does not matter.

    Raises:
        UsageError: if the adapter is no linear change of its base.
    """
    adapter = read_adapter(weights, "the adapter")
    total = torch.zeros(size, dtype=torch.float64)
    for name, delta in adapter.deltas.items():
        if delta.a is None:
            total += _long(delta.b.reshape(-1), name, size)
        else:
            total += product_sketch(delta.b, delta.a, name, size)
    for name, value in adapter.saved.items():
        total += _long(value.double().reshape(-1), name, size)
    return total.float()


def _long(values: Float[Tensor, " n"], name: str, size: int) -> Float[Tensor, " d"]:
    """Sketch of a long vector, a piece at a time."""
    total = torch.zeros(size, 1, dtype=torch.float64)
    for i, piece in enumerate(values.split(PIECE)):
        total += count_sketch(piece.double()[:, None], f"{name}/{i}", size)
    return total[:, 0]


def fit_scales(networks: Iterable[Weights]) -> dict[str, int]:
    """Scale of every role as a power of two, measured as ``zoo.tokens`` does."""
    return dict(Tokenizer.fit(networks, width=1).exponents)


def network_sketch(weights: Weights, scales: Mapping[str, int], size: int) -> Float[Tensor, " d"]:
    """Sketch of a network in the canonical form of its kind, every role at its scale.

    A network of no more than ``size`` values is not sketched: its values are put one after the other.

    Raises:
        UsageError: if there are no numbers in it, or a role has no scale.
    """
    layout = weights.layout
    canonical = kinds.get(layout.kind).canonical(weights).tensors
    exact, start = layout.numel <= size, 0
    total = torch.zeros(size, dtype=torch.float64)
    for spec in layout.tensors:
        value = canonical[spec.name]
        if not value.is_floating_point():
            continue
        exponent = scales.get(f"{spec.layer}/{spec.role}", scales.get(spec.role))
        if exponent is None:
            raise UsageError(f"the role {spec.role!r} of tensor {spec.name!r} has no scale", "rebuild the index")
        flat = value.reshape(-1).double() / 2.0**exponent
        if exact:
            total[start : start + len(flat)] = flat
            start += len(flat)
        else:
            total += _long(flat, spec.name, size)
    return total.float()
