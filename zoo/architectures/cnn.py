"""Small convolutional networks: convolutions with max-pooling, then linear layers.

With the defaults this is the network of the published model zoos (Schuerholt et al. 2022, arXiv 2209.14764): 2,464
weights on grey images of 28 x 28, 2,864 on colour images of that size.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from zoo.architectures import Architecture, Gauge, UnitGroup, register_family
from zoo.architectures._convolution import pooled_convolution, tanh
from zoo.errors import UsageError

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}
ODD = {"tanh"}
BLOCK = 600_000
"""Values that a convolution gives at once, over all networks: few enough to stay in the caches of a processor."""


@dataclass(frozen=True)
class Fields:
    """The checked fields of an architecture; see ``CNN``. ``maps`` are height and width after each convolution."""

    input: tuple[int, int, int]
    channels: tuple[int, ...]
    kernel: tuple[int, ...]
    pool: tuple[int, ...]
    hidden: tuple[int, ...]
    classes: int
    activation: str
    maps: tuple[tuple[int, int], ...]

    @property
    def features(self) -> int:
        """Inputs of the first linear layer."""
        return self.channels[-1] * self.maps[-1][0] * self.maps[-1][1]


def fields(architecture: Architecture) -> Fields:
    """Read and check an architecture.

    Raises:
        UsageError: if a field is wrong, or an image does not fit through the layers.
    """
    channels = _sizes(architecture, "channels", [8, 6, 4])
    kernel = _sizes(architecture, "kernel", [5, 5, 2], len(channels))
    pool = _sizes(architecture, "pool", [2, 2, 1], len(channels))
    shape = _sizes(architecture, "input", [1, 28, 28])
    hidden = _sizes(architecture, "hidden", [20]) if architecture.get("hidden") != [] else ()
    (classes,) = _sizes(architecture, "classes", 10, 1)
    if len(shape) != 3:
        raise UsageError(f"input is {list(shape)}", "give channels, height and width, for example [1, 28, 28]")
    activation = architecture.get("activation", "tanh")
    if activation not in ACTIVATIONS:
        raise UsageError(f"unknown activation {activation!r}", f"choose one of {', '.join(sorted(ACTIVATIONS))}")
    maps, (height, width) = [], shape[1:]
    for k, p in zip(kernel, pool, strict=True):
        height, width = (height - k + 1) // p, (width - k + 1) // p
        if min(height, width) < 1:
            raise UsageError(
                f"images of {shape[1]} x {shape[2]} do not fit through the convolutions", "lower kernel or pool"
            )
        maps.append((height, width))
    return Fields((shape[0], shape[1], shape[2]), channels, kernel, pool, hidden, classes, activation, tuple(maps))


def _sizes(
    architecture: Architecture, name: str, default: list[int] | int, count: int | None = None
) -> tuple[int, ...]:
    """A list of positive sizes; one number stands for ``count`` equal ones."""
    value = architecture.get(name, default)
    sizes = [value] * count if isinstance(value, int) and count else value
    listed = isinstance(sizes, list | tuple)
    if not (listed and sizes and all(type(s) is int and s > 0 for s in sizes) and count in (None, len(sizes))):
        raise UsageError(f"{name} is {value!r}, not {count or 'some'} positive whole numbers", f"for example {default}")
    return tuple(sizes)


@register_family("cnn")
class CNN:
    """Convolutions without padding, each followed by max-pooling and the activation; then linear layers.

    Fields: ``input`` (channels, height, width), ``channels``, ``kernel`` and ``pool`` (a list, or one number for all;
    1 is no pooling) of the convolutions, ``hidden`` sizes of the linear layers, ``classes``, ``activation``. Tensors
    are ``convs.I.weight/bias`` and ``linears.I.weight/bias``. Grey images need no axis of channels.
    """

    @staticmethod
    def build(architecture: Architecture) -> nn.Module:
        """Return the module; weights and biases follow torch's default initialisation.

        Raises:
            UsageError: if a field cannot be used.
        """
        return _ConvNet(fields(architecture))

    @staticmethod
    def groups(architecture: Architecture) -> tuple[UnitGroup, ...]:
        """Return one group a convolution (its channels) and one a hidden linear layer.

        The channels of the last convolution reach the first linear layer as blocks of columns. Max-pooling keeps no
        sign, so signs are free only where nothing is pooled; it keeps positive factors, which are free behind a ReLU.
        """
        f = fields(architecture)
        names = [f"convs.{i}" for i in range(len(f.channels))] + [f"linears.{i}" for i in range(len(f.hidden) + 1)]
        pooled = [p > 1 for p in f.pool] + [False] * len(f.hidden)
        sizes = (*f.channels, *f.hidden)
        groups = []
        for i, size in enumerate(sizes):
            up, down = ((f"{names[i]}.weight", 0), (f"{names[i]}.bias", 0)), ((f"{names[i + 1]}.weight", 1),)
            gauges = (Gauge(up, down, True),) if f.activation == "relu" else ()
            groups.append(UnitGroup(up + down, size, f.activation in ODD and not pooled[i], gauges=gauges))
        return tuple(groups)

    @staticmethod
    def outputs(architecture: Architecture) -> UnitGroup:
        """Return the rows and biases of the last layer."""
        f = fields(architecture)
        last = f"linears.{len(f.hidden)}"
        return UnitGroup(((f"{last}.weight", 0), (f"{last}.bias", 0)), f.classes, False)

    @staticmethod
    def describe(architecture: Architecture) -> str:
        """Return a phrase such as ``8-6-4 tanh CNN with 20 hidden units for 1 x 28 x 28 images and 10 classes``."""
        f = fields(architecture)
        hidden = f" with {'-'.join(map(str, f.hidden))} hidden units" if f.hidden else ""
        size = " x ".join(map(str, f.input))
        channels = "-".join(map(str, f.channels))
        return f"{channels} {f.activation} CNN{hidden} for {size} images and {f.classes} classes"

    @staticmethod
    def many(
        architecture: Architecture, tensors: Mapping[str, Tensor], inputs: Float[Tensor, "m n ..."]
    ) -> Float[Tensor, "m n c"]:
        """Logits of ``m`` networks at once; see ``zoo.networks.logits_many``.

        Faster where all networks see the same images (``images.expand(m, ...)``), and inside of ``torch.autocast`` to
        bfloat16, where convolutions run in bfloat16 and linear layers, as ever, in float32.
        """
        f = fields(architecture)
        m, n = inputs.shape[:2]
        same = inputs.stride(0) == 0
        images = (inputs[:1] if same else inputs).reshape(-1, n, *f.input)
        mixed = torch.is_autocast_enabled("cpu") and inputs.device.type == "cpu"
        h = _multiplied(f, tensors, images) if mixed else _grouped(f, tensors, images, m)
        with torch.autocast("cpu", enabled=False):
            for i in range(len(f.hidden) + 1):
                h = _active(h, f.activation) if i else h
                h = torch.baddbmm(tensors[f"linears.{i}.bias"][:, None], h, tensors[f"linears.{i}.weight"].mT)
        return h


def _multiplied(
    f: Fields, tensors: Mapping[str, Tensor], images: Float[Tensor, "g n ic ih iw"]
) -> Float[Tensor, "m n d"]:
    """All convolutions as products of matrices in the type of ``torch.autocast``; ``g`` is 1 for common images."""
    x = images.to(torch.get_autocast_dtype("cpu")).movedim(1, -1)
    for i, pool in enumerate(f.pool):
        squash, (weight, bias) = f.activation == "tanh", (tensors[f"convs.{i}.{part}"] for part in ("weight", "bias"))
        x = pooled_convolution(x, weight, bias, pool, squash)
        x = x if squash else _active(x, f.activation)
    return x.flatten(1, 3).mT.float()


def _grouped(
    f: Fields, tensors: Mapping[str, Tensor], images: Float[Tensor, "g n ic ih iw"], m: int
) -> Float[Tensor, "m n d"]:
    """All convolutions as convolutions in groups; ``g`` is 1 for common images.

    That is what ``vmap`` makes of a convolution: with channels in the last place of memory and few images at a time it
    is several times as fast.
    """
    x, first = images.transpose(0, 1).flatten(1, 2), len(images)  # n (g c) h w
    height, width = f.input[1:]
    for i, (kernel, pool) in enumerate(zip(f.kernel, f.pool, strict=True)):
        weight, bias = tensors[f"convs.{i}.weight"].flatten(0, 1), tensors[f"convs.{i}.bias"].flatten()
        size = len(bias) * (height - kernel + 1) * (width - kernel + 1)
        parts = []
        for block in x.split(max(1, BLOCK // size)):
            part = F.conv2d(_channels_last(block), weight, bias, groups=first if i == 0 else m)
            parts.append(_active(F.max_pool2d(part, pool) if pool > 1 else part, f.activation))
        x = torch.cat(parts) if len(parts) > 1 else parts[0]
        height, width = f.maps[i]
    return x.unflatten(1, (m, f.channels[-1])).transpose(0, 1).flatten(2)


def _channels_last(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """The same values with channels in the last place of memory, and strides that say so even of a single channel."""
    _, c, h, w = x.shape
    last = x.contiguous(memory_format=torch.channels_last)
    return last.as_strided(last.shape, (h * w, 1, w, 1)) if c == 1 else last


def _active(x: Tensor, activation: str) -> Tensor:
    if activation == "tanh":
        return tanh(x)
    return F.relu(x) if activation == "relu" else F.gelu(x)


class _ConvNet(nn.Module):
    def __init__(self, f: Fields) -> None:
        super().__init__()
        inputs = (f.input[0], *f.channels)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, k) for a, b, k in zip(inputs, f.channels, f.kernel, strict=False))
        sizes = (f.features, *f.hidden, f.classes)
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.activation = ACTIVATIONS[f.activation]()
        self.shape, self.pool = f.input, f.pool

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        h = x.reshape(len(x), *self.shape)
        for conv, pool in zip(self.convs, self.pool, strict=True):
            h = self.activation(F.max_pool2d(conv(h), pool) if pool > 1 else conv(h))
        h = h.flatten(1)
        for layer in self.linears[:-1]:
            h = self.activation(layer(h))
        return self.linears[-1](h)
