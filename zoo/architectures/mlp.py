"""Multi-layer perceptrons on flattened inputs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

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

    @staticmethod
    def resized(
        architecture: Architecture, tensors: Mapping[str, Tensor], wanted: Architecture, seed: int
    ) -> dict[str, Tensor] | None:
        """Return perceptrons of other hidden layers; ``None`` if they differ in inputs or activation too.

        New units come from an initialisation and lead nowhere, so they change nothing; new layers are identities before
        the outputs, which a saturating activation bends. Of units too many the ones of largest weights stay, of layers
        too many the first.
        """
        (sizes, activation), (others, other) = _fields(architecture), _fields(wanted)
        if sizes[0] != others[0] or activation != other:
            return None
        rng = torch.Generator().manual_seed(seed)
        weights = [tensors[f"layers.{i}.weight"] for i in range(len(sizes) - 1)]
        biases = [tensors[f"layers.{i}.bias"] for i in range(len(sizes) - 1)]
        hidden, count = others[1:-1], len(weights[0])
        del weights[len(hidden) : -1], biases[len(hidden) : -1]
        while len(weights) < len(hidden) + 1:
            size = weights[-1].shape[2]
            weights.insert(-1, torch.eye(size).expand(count, -1, -1).to(weights[0]))
            biases.insert(-1, weights[0].new_zeros(count, size))
        for i, size in enumerate(hidden):
            up, down = weights[i], weights[i + 1]
            if down.shape[2] != up.shape[1]:  # layers between were dropped
                weights[i + 1] = down = down.new_zeros(count, down.shape[1], up.shape[1])
            if size < up.shape[1]:
                order = (up.norm(dim=2) * down.norm(dim=1)).argsort(-1, descending=True)[:, :size]
                weights[i] = up.gather(1, order[..., None].expand(-1, -1, up.shape[2]))
                biases[i] = biases[i].gather(1, order)
                weights[i + 1] = down.gather(2, order[:, None].expand(-1, down.shape[1], -1))
            elif size > up.shape[1]:
                more, bound = size - up.shape[1], up.shape[2] ** -0.5
                new = (2 * torch.rand(count, more, up.shape[2], generator=rng) - 1) * bound
                weights[i] = torch.cat([up, new.to(up)], 1)
                biases[i] = torch.cat([biases[i], up.new_zeros(count, more)], 1)
                weights[i + 1] = torch.cat([down, down.new_zeros(count, down.shape[1], more)], 2)
        found = {f"layers.{i}.weight": value for i, value in enumerate(weights)}
        return found | {f"layers.{i}.bias": value for i, value in enumerate(biases)}


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
