"""Multi-layer perceptrons on flattened inputs."""

from __future__ import annotations

import itertools

from torch import nn

from zoo.architectures import Architecture, Gauge, UnitGroup, register_family
from zoo.errors import UsageError

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}
ODD = {"tanh"}


def _fields(architecture: Architecture) -> tuple[list[int], str]:
    sizes, activation = architecture.get("sizes"), architecture.get("activation", "relu")
    if not isinstance(sizes, list) or len(sizes) < 2 or not all(isinstance(s, int) and s > 0 for s in sizes):
        raise UsageError(f"an MLP needs at least two positive sizes, got {sizes!r}", "for example sizes: [64, 16, 5]")
    if activation not in ACTIVATIONS:
        raise UsageError(f"unknown activation {activation!r}", f"choose one of {', '.join(sorted(ACTIVATIONS))}")
    return sizes, activation


@register_family("mlp")
class MLP:
    """``sizes[0]`` inputs, hidden layers of one activation, ``sizes[-1]`` logits; tensors ``layers.I.weight/bias``."""

    @staticmethod
    def build(architecture: Architecture) -> nn.Module:
        """Return the module; weights and biases follow torch's default initialisation.

        Raises:
            UsageError: if sizes or activation cannot be used.
        """
        sizes, activation = _fields(architecture)
        return _Perceptron(sizes, ACTIVATIONS[activation]())

    @staticmethod
    def groups(architecture: Architecture) -> tuple[UnitGroup, ...]:
        """Return one group a hidden layer: its rows, its biases, and the columns of the next layer."""
        sizes, activation = _fields(architecture)
        groups = []
        for i, size in enumerate(sizes[1:-1]):
            up, down = ((f"layers.{i}.weight", 0), (f"layers.{i}.bias", 0)), ((f"layers.{i + 1}.weight", 1),)
            gauges = (Gauge(up, down, True),) if activation == "relu" else ()
            groups.append(UnitGroup(up + down, size, activation in ODD, gauges=gauges))
        return tuple(groups)

    @staticmethod
    def outputs(architecture: Architecture) -> UnitGroup:
        """Return the rows and biases of the last layer."""
        sizes, _ = _fields(architecture)
        last = len(sizes) - 2
        return UnitGroup(((f"layers.{last}.weight", 0), (f"layers.{last}.bias", 0)), sizes[-1], False)

    @staticmethod
    def describe(architecture: Architecture) -> str:
        """Return a phrase such as ``64-16-5 tanh MLP``."""
        sizes, activation = _fields(architecture)
        return f"{'-'.join(map(str, sizes))} {activation} MLP"


class _Perceptron(nn.Module):
    def __init__(self, sizes: list[int], activation: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.activation = activation

    def forward(self, x):
        h = x.flatten(1)
        for layer in self.layers[:-1]:
            h = self.activation(layer(h))
        return self.layers[-1](h)
