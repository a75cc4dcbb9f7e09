"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929), with the tensor names of timm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from zoo.architectures import Architecture, FreeMap, Gauge, Part, UnitGroup, register_family
from zoo.architectures._pretrained import affine, columns, number, rows
from zoo.errors import UsageError

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


def _fields(architecture: Architecture) -> dict[str, int]:
    names = {
        "image": 224,
        "patch": 16,
        "channels": 3,
        "width": 192,
        "layers": 12,
        "heads": 3,
        "mlp": 768,
        "classes": 1000,
    }
    sizes = {name: number(architecture, name, default) for name, default in names.items()}
    for whole, part in (("image", "patch"), ("width", "heads")):
        if sizes[whole] % sizes[part]:
            raise UsageError(
                f"a ViT of {whole} {sizes[whole]} cannot be cut by {part} {sizes[part]}", "choose a divisor"
            )
    if architecture.get("activation", "gelu") not in ACTIVATIONS:
        raise UsageError(f"unknown activation {architecture['activation']!r}", f"known: {', '.join(ACTIVATIONS)}")
    return sizes


@register_family("vit")
class ViT:
    """``{"family": "vit", "image": 32, "patch": 8, "width": 64, "layers": 4, "heads": 4, "mlp": 99, "classes": 9}``."""

    @staticmethod
    def build(architecture: Architecture) -> nn.Module:
        """Return the module: class token, pre-normalisation, linear head.

        Raises:
            UsageError: if sizes or activation cannot be used.
        """
        return _ViT(_fields(architecture), ACTIVATIONS[architecture.get("activation", "gelu")])

    @staticmethod
    def groups(architecture: Architecture) -> tuple[UnitGroup, ...]:
        """Return heads and MLP units of every layer, then the residual stream."""
        sizes = _fields(architecture)
        width = sizes["width"]
        stream = [("cls_token", 2), ("pos_embed", 2), *rows("patch_embed.proj"), *affine("norm"), *columns("head")]
        groups = []
        for i in range(sizes["layers"]):
            qkv, out = f"blocks.{i}.attn.qkv", f"blocks.{i}.attn.proj"
            packed = tuple(Part(*axis, ((k * width, (k + 1) * width),)) for axis in rows(qkv) for k in range(3))
            q, k, v, q_bias, k_bias, v_bias = packed
            outputs = (Part(f"{out}.weight", 1, ((0, width),)),)
            maps = (FreeMap((q, q_bias), (k,), k_bias), FreeMap((v,), outputs, v_bias, f"{out}.bias"))
            groups.append(UnitGroup(columns(out), sizes["heads"], parts=packed, maps=maps))
            ways = (rows(f"blocks.{i}.mlp.fc1"), columns(f"blocks.{i}.mlp.fc2"))
            gauges = (Gauge(*ways, True),) if architecture.get("activation") == "relu" else ()
            groups.append(UnitGroup(ways[0] + ways[1], sizes["mlp"], gauges=gauges))
            stream += [*columns(qkv, f"blocks.{i}.mlp.fc1"), *rows(out, f"blocks.{i}.mlp.fc2")]
            stream += affine(f"blocks.{i}.norm1", f"blocks.{i}.norm2")
        return (*groups, UnitGroup(tuple(stream), width))

    @staticmethod
    def outputs(architecture: Architecture) -> UnitGroup:
        """Return the rows and biases of the head."""
        return UnitGroup(rows("head"), _fields(architecture)["classes"])

    @staticmethod
    def describe(architecture: Architecture) -> str:
        """Return a phrase such as ``4-layer ViT of width 64 on 8-pixel patches``."""
        sizes = _fields(architecture)
        return f"{sizes['layers']}-layer ViT of width {sizes['width']} on {sizes['patch']}-pixel patches"


class _ViT(nn.Module):
    def __init__(self, sizes: dict[str, int], activation: type[nn.Module]) -> None:
        super().__init__()
        width, patch = sizes["width"], sizes["patch"]
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (sizes["image"] // patch) ** 2, width) * 0.02)
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(sizes["channels"], width, patch, patch)
        self.blocks = nn.Sequential(
            *(_Block(width, sizes["heads"], sizes["mlp"], activation) for _ in range(sizes["layers"]))
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, sizes["classes"])

    def forward(self, x):
        h = rearrange(self.patch_embed.proj(x), "b c h w -> b (h w) c")  # pyright: ignore[reportCallIssue]
        h = torch.cat([self.cls_token.expand(len(h), -1, -1), h], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(h))[:, 0])


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.mlp = _MLP(width, mlp, activation)

    def forward(self, x):
        h = x + self.attn(self.norm1(x))
        return h + self.mlp(self.norm2(h))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = rearrange(self.qkv(x), "b t (p h d) -> p b h t d", p=3, h=self.heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h t d -> b t (h d)"))


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), activation(), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))
