"""A variational autoencoder over weight tokens (D2NWG, arXiv 2402.18153, section 3.1).

Encoder and decoder are transformers, so every latent knows the whole network. Tokens are standardised by layer and
role with mean and deviation of the training networks before the encoder and after the decoder; this is where the
statistics that cost exactness live (the tokenizer itself is exact).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from weightgen.codecs.standardise import Means, Networks, Standardiser
from weightgen.nn import PositionEmbedding, check_heads, transformer
from weightgen.types import Loss
from zoo.config import StrictConfig


class VAEConfig(StrictConfig):
    """Size of the autoencoder."""

    latent: int = Field(default=16, ge=1, description="latent numbers a token")
    width: int = Field(default=96, ge=8)
    depth: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    kl_weight: float = Field(default=1e-3, ge=0)
    means: Means = Field(default="role", description="what is subtracted, see codecs.standardise")
    zero_start: bool = Field(default=False, description="untrained, decode everything to what is subtracted")

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        check_heads(self.width, self.heads)
        return self


class VAE(nn.Module):
    """Maps the tokens of a network to as many latent vectors, and back."""

    def __init__(self, config: VAEConfig, token_width: int, positions: tuple[int, int, int, int]) -> None:
        """Make encoder and decoder.

        Args:
            config: sizes.
            token_width: values a token.
            positions: number of layers, roles, rows and chunks that occur.
        """
        super().__init__()
        self.config = config
        self.position = PositionEmbedding(positions, config.width)
        self.into = nn.Linear(token_width, config.width)
        self.encoder = transformer(config.width, config.depth, config.heads)
        self.to_latent = nn.Linear(config.width, 2 * config.latent)
        self.from_latent = nn.Linear(config.latent, config.width)
        self.decoder = transformer(config.width, config.depth, config.heads)
        self.out = nn.Linear(config.width, token_width)
        if config.zero_start:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)
        self.normal = Standardiser(token_width, positions, config.means)

    def fit_normal(self, networks: Sequence[Networks]) -> None:
        """Measure mean and deviation on the training networks; see ``codecs.standardise``."""
        self.normal.fit(networks)

    def posterior(
        self, values: Float[Tensor, "b t d"], mask: Bool[Tensor, "t d"], position: Int[Tensor, "t 4"]
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b t c"]]:
        """Mean and log-variance of the latents of some networks."""
        mean, std = self.normal(position)
        hidden = self.into((values - mean) / std * mask) + self.position(position)
        latent_mean, log_variance = self.to_latent(self.encoder(hidden)).chunk(2, -1)
        return latent_mean, log_variance.clamp(-8.0, 4.0)

    def encode(
        self, values: Float[Tensor, "b t d"], mask: Bool[Tensor, "t d"], position: Int[Tensor, "t 4"]
    ) -> Float[Tensor, "b t c"]:
        """Posterior mean of the latents."""
        return self.posterior(values, mask, position)[0]

    def decode(
        self, latent: Float[Tensor, "b t c"], mask: Bool[Tensor, "t d"], position: Int[Tensor, "t 4"]
    ) -> Float[Tensor, "b t d"]:
        """Tokens of the networks that the latents stand for, zero where masked."""
        mean, std = self.normal(position)
        hidden = self.decoder(self.from_latent(latent) + self.position(position))
        return (self.out(hidden) * std + mean) * mask

    def loss(
        self,
        values: Float[Tensor, "b t d"],
        mask: Bool[Tensor, "t d"],
        position: Int[Tensor, "t 4"],
        generator: torch.Generator,
    ) -> Loss:
        """Squared error of standardised weights plus weighted KL divergence to a standard normal."""
        latent_mean, log_variance = self.posterior(values, mask, position)
        noise = torch.randn(latent_mean.shape, generator=generator)
        decoded = self.decode(latent_mean + noise * (0.5 * log_variance).exp(), mask, position)
        error = self.error(decoded, values, mask, position)
        kl = 0.5 * (latent_mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return Loss(error + self.config.kl_weight * kl, {"reconstruction": error, "kl": kl})

    def error(
        self,
        decoded: Float[Tensor, "b t d"],
        values: Float[Tensor, "b t d"],
        mask: Bool[Tensor, "t d"],
        position: Int[Tensor, "t 4"],
    ) -> Float[Tensor, ""]:
        """Mean squared error in units of each (layer, role)'s variance; 1 is what predicting the mean gives."""
        _, std = self.normal(position)
        return (((decoded - values) / std).square() * mask).sum() / (mask.sum() * len(values))
