"""Perceptrons of one shape, brought into another without training: what a generator of new shapes is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def nearest_shape(wanted: Sequence[int], known: Sequence[Sequence[int]]) -> list[int]:
    """The shape of the zoo with the nearest depth, then the nearest width; of two equally near ones the smaller."""
    return list(min(known, key=lambda one: (abs(len(one) - len(wanted)), abs(one[0] - wanted[0]), len(one), one[0])))


def resized(networks: Mapping[str, Tensor], have: Sequence[int], want: Sequence[int], seed: int) -> dict[str, Tensor]:
    """Perceptrons copied into another shape of as many or more hidden layers.

    New units come from an initialisation and lead nowhere, so they change nothing; new layers are identities before the
    outputs. Of units too many the ones of largest weights stay.

    Args:
        networks: state dict with a first axis over networks.
        have: sizes of their hidden layers.
        want: sizes wanted.
        seed: of the incoming weights of new units.
    """
    import torch

    rng = torch.Generator().manual_seed(seed)
    weights = [networks[f"layers.{i}.weight"] for i in range(len(have) + 1)]
    biases = [networks[f"layers.{i}.bias"] for i in range(len(have) + 1)]
    while len(weights) < len(want) + 1:
        size = weights[-1].shape[-1]
        weights.insert(-1, torch.eye(size).expand(len(weights[0]), size, size).clone())
        biases.insert(-1, torch.zeros(len(weights[0]), size))
    for i, size in enumerate(want):
        up, down = weights[i], weights[i + 1]
        if size < up.shape[1]:
            order = (up.norm(dim=2) * down.norm(dim=1)).argsort(-1, descending=True)[:, :size]
            weights[i] = up.gather(1, order[..., None].expand(-1, -1, up.shape[2]))
            biases[i] = biases[i].gather(1, order)
            weights[i + 1] = down.gather(2, order[:, None].expand(-1, down.shape[1], -1))
        elif size > up.shape[1]:
            more, bound = size - up.shape[1], up.shape[2] ** -0.5
            new = (2 * torch.rand(len(up), more, up.shape[2], generator=rng) - 1) * bound
            weights[i] = torch.cat([up, new], 1)
            biases[i] = torch.cat([biases[i], torch.zeros(len(up), more)], 1)
            weights[i + 1] = torch.cat([down, torch.zeros(len(down), down.shape[1], more)], 2)
    found = {f"layers.{i}.weight": value for i, value in enumerate(weights)}
    return found | {f"layers.{i}.bias": value for i, value in enumerate(biases)}
