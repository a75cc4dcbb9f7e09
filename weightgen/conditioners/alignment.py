"""Contrastive alignment of weights and conditions (D2NWG, arXiv 2402.18153, eq. 5; CLIP, arXiv 2103.00020).

Both sides are projected to one space, normalised, and matched with a learned temperature. Several networks of one task
in a batch are all right answers for each other's condition.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightgen.nn import PositionEmbedding, transformer
from weightgen.types import Loss


class Alignment(nn.Module):
    """Two projections into a shared space, and their contrastive loss."""

    def __init__(
        self, latent: int, width: int, heads: int, positions: tuple[int, int, int, int], size: int = 64
    ) -> None:
        """Make the projections.

        Args:
            latent: size of one latent vector of a network.
            width: size of a condition token, also used inside.
            heads: attention heads of the layer that reads latents.
            positions: number of layers, roles, rows and chunks that occur.
            size: dimension of the shared space.
        """
        super().__init__()
        self.position = PositionEmbedding(positions, width)
        self.from_latent = nn.Linear(latent, width)
        self.reader = transformer(width, 1, heads)
        self.weights_side = nn.Linear(width, size)
        self.condition_side = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def embed_weights(self, latent: Float[Tensor, "b t c"], position: Int[Tensor, "t 4"]) -> Float[Tensor, "b e"]:
        """Unit vectors of networks."""
        hidden = self.reader(self.from_latent(latent) + self.position(position))
        return F.normalize(self.weights_side(hidden.mean(1)), dim=-1)

    def embed_condition(self, pooled: Float[Tensor, "b h"]) -> Float[Tensor, "b e"]:
        """Unit vectors of conditions, from the mean of their tokens."""
        return F.normalize(self.condition_side(pooled), dim=-1)

    def loss(
        self,
        latent: Float[Tensor, "b t c"],
        position: Int[Tensor, "t 4"],
        pooled: Float[Tensor, "b h"],
        task: Int[Tensor, " b"],
    ) -> Loss:
        """Symmetric cross-entropy over the batch; ``accuracy`` is how often the best match is of the same task."""
        similarity = self.embed_weights(latent, position) @ self.embed_condition(pooled).T
        scaled = similarity * self.log_scale.exp().clamp(max=100.0)
        same = (task[:, None] == task[None, :]).to(scaled.dtype)
        target = same / same.sum(1, keepdim=True)
        total = 0.5 * (F.cross_entropy(scaled, target) + F.cross_entropy(scaled.T, target))
        hit = same.gather(1, similarity.argmax(1, keepdim=True)).mean()
        return Loss(total, {"contrastive": total, "accuracy": hit})
