"""Chains of linear layers of any names, with an elementwise function between them that is not known."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from zoo.architectures import Architecture, UnitGroup, register_family
from zoo.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


@register_family("chain")
class Chain:
    """``{"family": "chain", "layers": ["fc1", "fc2"], "sizes": [64, 16, 5], "biases": [true, true]}``.

    What ``zoo.infer_architecture`` makes of a bare state dict. A file does not tell whether layers of equal width are
    bridged by additions, so they are permuted alike, unless ``sequential`` says that nothing bridges them.
    """

    @staticmethod
    def build(architecture: Architecture) -> nn.Module:
        """Refuse, as the activation is not known.

        Raises:
            UsageError: always.
        """
        raise UsageError("the activation of the network is not known", 'state it, with the family "mlp"')

    @staticmethod
    def groups(architecture: Architecture) -> tuple[UnitGroup, ...]:
        """Return one group a hidden layer, or a hidden width; none of the width of inputs or outputs."""
        layers, sizes, biases = _fields(architecture)
        sequential = architecture.get("sequential", False)
        axes: dict[tuple[int, int], list[tuple[str, int]]] = defaultdict(list)
        for i, size in enumerate(sizes[1:-1]):
            bias = [(f"{layers[i]}.bias", 0)] if biases[i] else []
            key = (size, i if sequential else 0)
            axes[key] += [(f"{layers[i]}.weight", 0), *bias, (f"{layers[i + 1]}.weight", 1)]
        outer = set() if sequential else {sizes[0], sizes[-1]}
        return tuple(UnitGroup(tuple(found), size) for (size, _), found in axes.items() if size not in outer)

    @staticmethod
    def outputs(architecture: Architecture) -> UnitGroup:
        """Return the rows and the bias of the last layer."""
        layers, sizes, biases = _fields(architecture)
        bias = ((f"{layers[-1]}.bias", 0),) if biases[-1] else ()
        return UnitGroup(((f"{layers[-1]}.weight", 0), *bias), sizes[-1])

    @staticmethod
    def describe(architecture: Architecture) -> str:
        """Return a phrase such as ``64-16-5 MLP``."""
        return f"{'-'.join(map(str, _fields(architecture)[1]))} MLP"


def _fields(architecture: Architecture) -> tuple[list[str], list[int], list[bool]]:
    layers, sizes = architecture.get("layers"), architecture.get("sizes")
    biases = architecture.get("biases")
    fits = all(isinstance(part, list) for part in (layers, sizes, biases))
    if not fits or not len(layers) == len(biases) == len(sizes) - 1 or not layers:  # pyright: ignore
        raise UsageError(f"layers {layers!r}, sizes {sizes!r} and biases {biases!r} make no chain")
    return layers, sizes, biases  # pyright: ignore[reportReturnType]
