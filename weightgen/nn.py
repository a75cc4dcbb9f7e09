"""Building blocks shared by codecs, conditioners and generators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn


def check_heads(width: int, heads: int) -> None:
    """Fail if attention heads do not share a width evenly.

    Raises:
        ValueError: with both numbers; in a validator of a config it becomes an error that names the key.
    """
    if width % heads:
        raise ValueError(f"a width of {width} cannot be shared by {heads} attention heads, it must be a multiple")


def transformer(width: int, depth: int, heads: int) -> nn.TransformerEncoder:
    """Pre-norm transformer encoder without dropout, feed-forward layers of twice the width."""
    layer = nn.TransformerEncoderLayer(
        width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)


class PositionEmbedding(nn.Module):
    """Embeds a token's layer, role, row and chunk.

    Positions up to ``sizes`` are learned one by one. Beyond them only a linear map of sines and cosines speaks, which
    every position has, so that longer layouts than those learned from have embeddings too (arXiv 1706.03762, 3.5).
    """

    WAVES = 32

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        """Make one table a coordinate; ``sizes`` holds the number of entries of each."""
        super().__init__()
        tables = [nn.Embedding(size + 1, width, padding_idx=size) for size in sizes]
        for table in tables:
            nn.init.normal_(table.weight, std=0.1)
            nn.init.zeros_(table.weight[-1])
        self.tables = nn.ModuleList(tables)
        self.waves = nn.Linear(3 * self.WAVES, width, bias=False)

    def forward(self, position: Int[Tensor, "*b t 4"]) -> Float[Tensor, "*b t h"]:
        """Embed positions."""
        tables = [table for table in self.tables if isinstance(table, nn.Embedding)]
        parts = [table(position[..., i].clamp(max=table.num_embeddings - 1)) for i, table in enumerate(tables)]
        order = position[..., (0, 2, 3)]  # a role has no order
        waves = get_timestep_embedding(order.reshape(-1), self.WAVES, flip_sin_to_cos=True, max_period=1000)
        return torch.stack(parts).sum(0) + self.waves(0.1 * waves.view(*order.shape[:-1], -1))


class AttentionPool(nn.Module):
    """Learned query that attends to a set: pooling by multi-head attention (Set Transformer, arXiv 1810.00825)."""

    def __init__(self, width: int, heads: int) -> None:
        """Make one query of the given width."""
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, items: Float[Tensor, "b n h"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b h"]:
        """Pool the items where ``mask`` is true; every row needs at least one."""
        query = self.query.expand(len(items), -1, -1)
        pooled, _ = self.attention(query, items, items, key_padding_mask=~mask, need_weights=False)
        weight = mask.to(items.dtype)[..., None]
        return pooled[:, 0] + (items * weight).sum(1) / weight.sum(1)


class ConditionedTransformer(nn.Module):
    """Transformer whose tokens attend to each other and to condition tokens, modulated by a time step (DiT)."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        """Make ``depth`` blocks of diffusers' transformer with a single adaptive norm (PixArt-alpha, 2310.00426)."""
        super().__init__()
        self.width = width
        self.time = nn.Sequential(TimestepEmbedding(width, width), nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(
            BasicTransformerBlock(
                width,
                heads,
                width // heads,
                cross_attention_dim=width,
                norm_type="ada_norm_single",
                activation_fn="gelu",
                attention_bias=True,
                ff_inner_dim=2 * width,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        tokens: Float[Tensor, "b t h"],
        time: Shaped[Tensor, " b"],
        condition: Float[Tensor, "b c h"],
        condition_mask: Bool[Tensor, "b c"] | None = None,
    ) -> Float[Tensor, "b t h"]:
        """Run the blocks.

        Args:
            tokens: input tokens, positions added.
            time: diffusion time step of each row.
            condition: tokens to attend to.
            condition_mask: true where there is a condition token; by default everywhere.
        """
        modulation = self.time(get_timestep_embedding(time, self.width, flip_sin_to_cos=True))
        hidden = None
        if condition_mask is not None and not bool(condition_mask.all()):
            hidden = torch.where(condition_mask, 0.0, -1e4).to(tokens.dtype)[:, None]  # b 1 c
        for block in self.blocks:
            tokens = block(tokens, encoder_hidden_states=condition, encoder_attention_mask=hidden, timestep=modulation)
        return self.norm(tokens)
