"""Residual networks (He et al. 2016, arXiv 1512.03385): those for CIFAR, and those of torchvision and timm."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from zoo.architectures import Architecture, UnitGroup, register_family
from zoo.architectures._pretrained import number, rows
from zoo.errors import UsageError

ACTIVATIONS: dict[str | None, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    None: nn.GELU,  # stands for any function in ``groups``; ``build`` refuses
}
STYLES = {"cifar": ("shortcut", "linear"), "torchvision": ("downsample", "fc")}
PREFIXES = ("", "module.")


@register_family("resnet")
class ResNet:
    """``{"family": "resnet", "style": "cifar", "blocks": [3, 3, 3], "widths": [16, 32, 64], "classes": 10}``.

    Further fields: ``style`` (``cifar``, or ``torchvision``, whose names timm has too: names, and the stem),
    ``expansion`` (null for basic blocks; for bottlenecks how much wider the stream is than ``widths``, mostly 4),
    ``shortcut`` where the width changes (``conv``; ``pool``, an average pool and a convolution; ``pad`` with zeros on
    both sides, the option A of the paper), ``norm`` (batch norm, or biases instead), ``activation`` (null if not
    known), ``stem`` (kernel of the first layer, or ``deep`` for three layers of 3), ``channels`` of the input,
    ``prefix`` (``module.``).
    """

    @staticmethod
    def build(architecture: Architecture) -> nn.Module:
        """Return the module.

        Raises:
            UsageError: if a field cannot be used, or the activation is not known.
        """
        if architecture.get("activation", "relu") is None:
            raise UsageError("the activation of the network is not known", "state it in a weightgen.json side-car")
        network = _build(architecture)
        network.register_forward_pre_hook(_with_channels)
        return network

    @staticmethod
    def groups(architecture: Architecture) -> tuple[UnitGroup, ...]:
        """Return the channels inside of each block and those of the residual streams, found by tracing."""
        return _groups(json.dumps(dict(architecture), sort_keys=True))

    @staticmethod
    def outputs(architecture: Architecture) -> UnitGroup:
        """Return the rows and biases of the last layer."""
        fields = _fields(architecture)
        return UnitGroup(rows(f"{fields['prefix']}{STYLES[fields['style']][1]}"), fields["classes"])

    @staticmethod
    def describe(architecture: Architecture) -> str:
        """Return a phrase such as ``ResNet-20 of widths 16-32-64``."""
        fields = _fields(architecture)
        depth = (3 if fields["expansion"] else 2) * sum(fields["blocks"]) + 2
        return f"ResNet-{depth} of widths {'-'.join(map(str, fields['widths']))}"

    @staticmethod
    def resized(
        architecture: Architecture, tensors: Mapping[str, Tensor], wanted: Architecture, seed: int
    ) -> dict[str, Tensor] | None:
        """Return networks of other numbers of blocks; ``None`` if they differ in more than that.

        New blocks end with zeros, so that they add nothing (a ReLU leaves what another gave as it is); of blocks too
        many the last of a stage go.
        """
        have, want = _fields(architecture), _fields(wanted)
        if any(have[key] != want[key] for key in have if key not in ("blocks", "classes")):
            return None
        rng, outputs = torch.Generator().manual_seed(seed), {name for name, _ in ResNet.outputs(wanted).axes}
        last = ("bn" if want["norm"] else "conv") + ("3" if want["expansion"] else "2")
        some, found = next(iter(tensors.values())), {}
        for name, shape in shapes_of(wanted).items():
            if name in tensors or name in outputs:
                found[name] = tensors[name]
                continue
            layer, part = name.split(".")[-2:]
            value = some.new_zeros(len(some), *shape)
            if len(shape) == 4 and layer != last:  # He et al. 2015, arXiv 1502.01852
                value = torch.randn(value.shape, generator=rng).to(some) * (2 / math.prod(shape[1:])) ** 0.5
            elif part == "running_var" or (part == "weight" and len(shape) == 1 and layer != last):
                value = torch.ones_like(value)
            found[name] = value
        return found


def _with_channels(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Grey images may come without an axis of channels."""
    (x,) = inputs
    return (rearrange(x, "n h w -> n 1 h w") if x.ndim == 3 else x,)


def _fields(architecture: Architecture) -> dict[str, Any]:
    cifar = architecture.get("style", "cifar") == "cifar"
    found: dict[str, Any] = {
        "blocks": [3, 3, 3],
        "widths": [16, 32, 64],
        "style": "cifar",
        "expansion": None,
        "shortcut": "pad" if cifar and architecture.get("expansion") is None else "conv",
        "norm": True,
        "activation": "relu",
        "stem": 3 if cifar else 7,
        "prefix": "",
    }
    found |= {key: value for key, value in architecture.items() if key != "family"}
    found |= {"classes": number(architecture, "classes", 10), "channels": number(architecture, "channels", 3)}
    blocks, widths = found["blocks"], found["widths"]
    for numbers, limit in ((blocks, 400), (widths, 1 << 14)):
        right = isinstance(numbers, list) and all(type(n) is int and 0 < n <= limit for n in numbers)
        if not right or not 0 < len(numbers) <= 8 or len(blocks) != len(widths):
            raise UsageError(f"a ResNet cannot have blocks {blocks!r} of widths {widths!r}", "give one of each a stage")
    for key, choices in (
        ("style", STYLES),
        ("expansion", (None, 1, 2, 4, 8)),
        ("shortcut", ("conv", "pool", "pad")),
        ("activation", ACTIVATIONS),
        ("prefix", PREFIXES),
        ("norm", (True, False)),
        ("stem", (1, 3, 5, 7, "deep")),
    ):
        if isinstance(found[key], list | dict) or found[key] not in choices:
            raise UsageError(f"{key} of the ResNet is {found[key]!r}", f"known: {', '.join(map(repr, choices))}")
    if found["shortcut"] == "pad" and found["expansion"] is not None:
        raise UsageError("bottlenecks have no padded shortcuts", 'use shortcut "conv"')
    if found["shortcut"] == "pad" and any(b < a or (b - a) % 2 for a, b in itertools.pairwise(widths)):
        raise UsageError(f"widths {widths} cannot be padded evenly", 'use shortcut "conv"')
    return found


def shapes_of(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the state dict.

    Raises:
        UsageError: if a field cannot be used.
    """
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in _build(architecture).state_dict().items()}


def _build(architecture: Architecture) -> nn.Module:
    fields = _fields(architecture)
    network = _ResNet(fields)
    if not fields["prefix"]:
        return network
    outer = nn.Sequential()
    outer.add_module(fields["prefix"].rstrip("."), network)
    return outer


@functools.lru_cache(maxsize=32)
def _groups(text: str) -> tuple[UnitGroup, ...]:
    from zoo.tracing import trace

    architecture = json.loads(text)
    with torch.device("meta"):
        return trace(_build(architecture), torch.empty(2, number(architecture, "channels", 3), 64, 64))


class _ResNet(nn.Module):
    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        blocks, widths, large = fields["blocks"], fields["widths"], fields["style"] == "torchvision"
        self.conv1 = _stem(fields, widths[0], 2 if large else 1)
        self.bn1 = nn.BatchNorm2d(widths[0]) if fields["norm"] else nn.Identity()
        self.act = ACTIVATIONS[fields["activation"]]()
        self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        self.stages = [f"layer{i + 1}" for i in range(len(blocks))]
        before = widths[0]
        for i, (name, count, width) in enumerate(zip(self.stages, blocks, widths, strict=True)):
            made = []
            after = width * (fields["expansion"] or 1)
            for j in range(count):
                made.append(_Block(before, width, after, 2 if i > 0 and j == 0 else 1, fields))
                before = after
            self.add_module(name, nn.Sequential(*made))
        self.head = STYLES[fields["style"]][1]
        self.add_module(self.head, nn.Linear(before, fields["classes"]))

    def forward(self, x):
        h = self.pool(self.act(self.bn1(self.conv1(x))))
        for name in self.stages:
            h = getattr(self, name)(h)
        return getattr(self, self.head)(F.adaptive_avg_pool2d(h, 1).flatten(1))


def _stem(fields: Mapping[str, Any], width: int, stride: int) -> nn.Module:
    kernel, biased = fields["stem"], not fields["norm"]
    if kernel != "deep":
        return nn.Conv2d(fields["channels"], width, kernel, stride, kernel // 2, bias=biased)
    half, layers, before = max(1, width // 2), [], fields["channels"]
    for after, step in ((half, stride), (half, 1)):
        norm = nn.BatchNorm2d(after) if fields["norm"] else nn.Identity()
        layers += [nn.Conv2d(before, after, 3, step, 1, bias=biased), norm, ACTIVATIONS[fields["activation"]]()]
        before = after
    return nn.Sequential(*layers, nn.Conv2d(before, width, 3, 1, 1, bias=biased))


class _Block(nn.Module):
    """A basic block of two convolutions, or a bottleneck of three, the middle one with the stride."""

    def __init__(self, before: int, width: int, after: int, stride: int, fields: Mapping[str, Any]) -> None:
        super().__init__()
        biased = not fields["norm"]
        norm = nn.BatchNorm2d if fields["norm"] else lambda _: nn.Identity()
        self.narrow = fields["expansion"] is not None
        if self.narrow:
            self.conv1, self.bn1 = nn.Conv2d(before, width, 1, bias=biased), norm(width)
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=biased), norm(width)
            self.conv3, self.bn3 = nn.Conv2d(width, after, 1, bias=biased), norm(after)
        else:
            self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=biased), norm(width)
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=biased), norm(width)
        self.act = ACTIVATIONS[fields["activation"]]()
        self.way = STYLES[fields["style"]][0]
        way: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            if fields["shortcut"] == "conv":
                way = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=biased), norm(after))
            elif fields["shortcut"] == "pool":
                pool = nn.AvgPool2d(2, 2, ceil_mode=True) if stride > 1 else nn.Identity()
                way = nn.Sequential(pool, nn.Conv2d(before, after, 1, bias=biased), norm(after))
            else:
                way = _Pad(stride, (after - before) // 2)
        self.add_module(self.way, way)

    def forward(self, x):
        h = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        if self.narrow:
            h = self.bn3(self.conv3(self.act(h)))
        return self.act(h + getattr(self, self.way)(x))


class _Pad(nn.Module):
    """Shortcut without weights: every other pixel, zeros for the new channels."""

    def __init__(self, stride: int, side: int) -> None:
        super().__init__()
        self.stride, self.side = stride, side

    def forward(self, x):
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.side, self.side))
