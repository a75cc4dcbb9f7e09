"""Mean and deviation of weights, measured on training networks: what a lossy codec subtracts and divides by.

The deviation is that of a (layer, role). The mean is that of a (layer, role), or of every single weight: networks that
share a start, or whose hidden units were aligned, have much in common, and what they have in common needs no bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Networks = tuple[Float[Tensor, "_ _ _"], Bool[Tensor, "_ _"], Int[Tensor, "_ 4"]]
"""Tokens [n t d], mask [t d] and positions [t 4] of some networks of one layout."""

Means = Literal["role", "weight", "member"]
SMALLEST = 1e-6
_BASE = 1 << 15


def _key(position: Int[Tensor, "t 4"]) -> Int[Tensor, " t"]:
    """One number for layer, role, row and chunk, each below 2 ** 15."""
    key = position[:, 0].long()
    for i in range(1, 4):
        key = key * _BASE + position[:, i]
    return key


def _signature(position: Int[Tensor, "t 4"]) -> Int[Tensor, ""]:
    """A number that two layouts share only if they have the same positions."""
    key = _key(position)
    mixed = (key ^ (key >> 29)) * 0x1B873593CC9E2D51  # wraps around, as a hash may
    return (mixed ^ (mixed >> 32)).sum()


class Standardiser(nn.Module):
    """Maps weights to numbers of mean 0 and deviation 1 on the training networks, and back."""

    mean: Tensor
    deviation: Tensor
    keys: Tensor
    offsets: Tensor
    layouts: Tensor
    fitted: Tensor

    def __init__(self, token_width: int, positions: Sequence[int], means: Means) -> None:
        """Make a standardiser that changes nothing until it is fitted.

        Args:
            token_width: values a token.
            positions: number of layers and roles that occur; more numbers are ignored.
            means: what is subtracted: the mean of the weights of a (layer, role), the mean of the same weight of all
                networks, or one network of each layout (``"member"``). The mean of networks of independent starts
                does not work, a network does, so it is the better place to start from where codes are not learned.
        """
        super().__init__()
        self.means = means
        layers, roles = positions[0], positions[1]
        self.register_buffer("mean", torch.zeros(layers + 1, roles))
        self.register_buffer("deviation", torch.ones(layers + 1, roles))
        self.register_buffer("fitted", torch.tensor(False))
        self.register_buffer("keys", torch.zeros(0, dtype=torch.long))
        self.register_buffer("offsets", torch.zeros(0, token_width))
        self.register_buffer("layouts", torch.zeros(0, dtype=torch.long))
        self.register_load_state_dict_pre_hook(_take_size)

    def fit(self, networks: Sequence[Networks]) -> None:
        """Measure the training networks, group by group of one layout.

        A layer that has no weights of a role, and layers beyond those that occur, take those of the role everywhere.
        """
        self.keys, self.offsets, self.layouts = self.keys[:0], self.offsets[:0], self.layouts[:0]
        layers = len(self.mean) - 1
        for role in range(self.mean.shape[1]):
            parts = list(_of_role(networks, role))
            if not parts:
                continue
            layer, value = (torch.cat([part[i] for part in parts]) for i in (0, 1))
            for number in (slice(None), *range(layers)):
                here = value if isinstance(number, slice) else value[layer == number]
                if len(here):
                    self.mean[number, role] = here.mean()
                    self.deviation[number, role] = here.std(correction=0).clamp(min=SMALLEST)
        self.fitted.fill_(True)
        if self.means == "weight":
            self._fit_weights(networks)
        elif self.means == "member":
            self._take_member(networks)

    def _take_member(self, networks: Sequence[Networks]) -> None:
        """Subtract a network of usual size of each layout; of layouts not among them, that of the most frequent one."""
        keys, offsets, layouts = [], [], []
        for values, mask, position in sorted(networks, key=lambda one: -len(one[0])):
            rest = (values - self(position)[0]) * mask
            size = rest.flatten(1).norm(dim=1)
            known, order = _key(position).sort()
            keys.append(known)
            offsets.append(rest[int((size - size.median()).abs().argmin())][order])
            layouts.append(_signature(position).expand(len(known)))
        self.keys, self.offsets, self.layouts = torch.cat(keys), torch.cat(offsets), torch.cat(layouts)

    def _fit_weights(self, networks: Sequence[Networks]) -> None:
        """Measure the mean of every weight, as its difference from the role's, and the deviations around it.

        Means of few networks are noisy. They are shrunk towards the role's by the share of their spread that noise
        explains (empirical Bayes), so that networks with nothing in common lose nothing.
        """
        keys = torch.cat([_key(position) for _, _, position in networks]).unique()
        sums = torch.zeros(3, len(keys), self.offsets.shape[1], dtype=torch.float64)  # count, total, squares
        for values, mask, position in networks:
            rest = (values - self(position)[0]).double() * mask
            place = torch.searchsorted(keys, _key(position))
            for part, value in zip(sums, (mask.double() * len(values), rest.sum(0), rest.square().sum(0)), strict=True):
                part.index_add_(0, place, value)
        count, total, squares = sums
        known, offset = count > 0, total / count.clamp(min=1)
        last = len(self.mean) - 1
        layer, role = (keys // _BASE**3).clamp(max=last), (keys // _BASE**2) % _BASE
        for where in {*zip(layer.tolist(), role.tolist(), strict=True)}:
            here = known & ((layer == where[0]) & (role == where[1]))[:, None]
            within = (squares - total * offset)[here].sum() / count[here].sum().clamp(min=2)
            between = offset[here].square().mean().clamp(min=SMALLEST**2)
            noise = (within / (count[here] - 1).clamp(min=1)).mean()
            offset[here] *= (1 - noise / between).clamp(min=0)
        left = (squares - 2 * offset * total + offset.square() * count).sum(1)
        for number in (*layer.unique().tolist(), last):
            for kind in role.unique().tolist():
                here = (role == kind) & ((layer == number) | (number == last))
                if here.any():
                    variance = left[here].sum() / count[here].sum()
                    self.deviation[number, kind] = variance.clamp(min=0).sqrt().clamp(min=SMALLEST)
        self.keys, self.offsets, self.layouts = keys, offset.float(), torch.zeros_like(keys)

    def forward(self, position: Int[Tensor, "t 4"]) -> tuple[Float[Tensor, "t _"], Float[Tensor, "t 1"]]:
        """Mean and deviation at some positions; unknown positions have those of their role."""
        layer, role = position[:, 0].clamp(max=len(self.mean) - 1), position[:, 1]
        mean, deviation = self.mean[layer, role][:, None], self.deviation[layer, role][:, None]
        if len(self.keys):
            own = self.layouts == _signature(position)
            here = own if own.any() else self.layouts == self.layouts[0]
            key, known = _key(position), self.keys[here]
            place = torch.searchsorted(known, key).clamp(max=len(known) - 1)
            mean = mean + self.offsets[here][place] * (known[place] == key)[:, None]
        return mean, deviation


def _take_size(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before loading: take the number of known positions from the file; older ones know no layouts."""
    if prefix + "keys" in state_dict:
        state_dict.setdefault(prefix + "layouts", torch.zeros_like(state_dict[prefix + "keys"]))
    for name in ("keys", "offsets", "layouts"):
        if prefix + name in state_dict:
            module.register_buffer(name, torch.empty_like(state_dict[prefix + name]))


def _of_role(networks: Sequence[Networks], role: int) -> Iterator[tuple[Int[Tensor, " v"], Float[Tensor, " v"]]]:
    """Layer and value of every weight of a role, layout by layout."""
    for values, mask, position in networks:
        here = mask & (position[:, 1] == role)[:, None]
        if here.any():
            layer = position[:, 0][:, None].expand_as(mask)[here]
            yield layer.repeat(len(values)), values[:, here].flatten()
