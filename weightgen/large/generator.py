"""Latent diffusion over the chunks of one model: the only place that knows the blocks it shares with D2NWG.

The VAE sees one standardised chunk; the denoiser sees its noisy latents, the place of the chunk (layer, role, row,
column) and, unless they are withheld, the latents of the four chunks around it in the given model (arXiv 2402.18153,
section on large language models: chunks of chosen layers as the items to generate).
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from weightgen.codecs.vae import VAE, VAEConfig
from weightgen.nn import ConditionedTransformer, PositionEmbedding, check_heads
from weightgen.types import Loss
from zoo.config import StrictConfig

WITHHELD = 0.5
"""Share of the training chunks whose neighbours are withheld, so that free sampling is learned as well."""


class ChunkDenoiserConfig(StrictConfig):
    """The denoiser and how it samples."""

    width: int = Field(default=96, ge=8)
    depth: int = Field(default=3, ge=1)
    heads: int = Field(default=4, ge=1)
    schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    condition_dropout: float = Field(default=0.1, ge=0, lt=1)
    sampling_steps: int = Field(default=20, ge=1, le=100)
    guidance: float = Field(default=1.0, ge=0, description="1 is plain conditional sampling, 0 unconditional")


class ChunkModelConfig(StrictConfig):
    """Codec and denoiser."""

    codec: VAEConfig = VAEConfig(latent=32, width=96, depth=2, kl_weight=1e-4)
    denoiser: ChunkDenoiserConfig = ChunkDenoiserConfig()

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        check_heads(self.denoiser.width, self.denoiser.heads)
        return self


class ChunkDenoiser(nn.Module):
    """Predicts the velocity of noisy latents of a chunk; its output starts at zero."""

    def __init__(self, config: ChunkDenoiserConfig, latent: int, inside: tuple[int, int, int, int]) -> None:
        """Make the network.

        Args:
            config: sizes.
            latent: numbers a token.
            inside: number of positions of the tokens of a chunk.
        """
        super().__init__()
        self.into = nn.Linear(latent, config.width)
        self.position = PositionEmbedding(inside, config.width)
        self.body = ConditionedTransformer(config.width, config.depth, config.heads)
        self.out = nn.Linear(config.width, latent)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.unconditional = nn.Parameter(torch.randn(1, 1, config.width) * 0.1)

    def forward(
        self,
        noisy: Float[Tensor, "b t c"],
        time: Int[Tensor, " b"],
        condition: Float[Tensor, "b k h"],
        position: Int[Tensor, "t 4"],
    ) -> Float[Tensor, "b t c"]:
        """Velocity at the given time steps."""
        return self.out(self.body(self.into(noisy) + self.position(position), time, condition))


class ChunkModel(nn.Module):
    """Writes chunks of weights for places of a model."""

    latent_mean: Tensor
    latent_std: Tensor
    position: Tensor
    mask: Tensor

    def __init__(self, config: ChunkModelConfig, rows: int, columns: int, sizes: tuple[int, int, int, int]) -> None:
        """Make all parts, untrained.

        Args:
            config: sizes of the networks.
            rows: tokens a chunk.
            columns: weights a token.
            sizes: number of layers, roles, rows and columns of places.
        """
        super().__init__()
        c, width = config, config.denoiser.width
        inside = (1, 1, rows, 1)
        self.config = config
        self.codec = VAE(c.codec, columns, inside)
        self.place = PositionEmbedding(sizes, width)
        self.beside = nn.Linear(rows * c.codec.latent, width)
        self.side = nn.Parameter(torch.randn(4, width) * 0.1)
        self.absent = nn.Parameter(torch.randn(4, width) * 0.1)
        self.denoiser = ChunkDenoiser(c.denoiser, c.codec.latent, inside)
        row = torch.arange(rows)
        zero = torch.zeros_like(row)
        self.register_buffer("position", torch.stack([zero, zero, row, zero], -1), persistent=False)
        self.register_buffer("mask", torch.ones(rows, columns, dtype=torch.bool), persistent=False)
        self.register_buffer("latent_mean", torch.zeros(c.codec.latent))
        self.register_buffer("latent_std", torch.ones(c.codec.latent))
        self.scheduler: Any = DDIMScheduler(  # its annotations are narrower than what it takes and returns
            beta_schedule=c.denoiser.schedule,
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=True,
            timestep_spacing="trailing",
        )
        self.scheduler.set_timesteps(c.denoiser.sampling_steps)

    def codec_loss(self, values: Float[Tensor, "b t d"], generator: torch.Generator) -> Loss:
        """Loss of the autoencoder on standardised chunks."""
        return self.codec.loss(values, self.mask, self.position, generator)

    @torch.no_grad()
    def encode(self, values: Float[Tensor, "b t d"]) -> Float[Tensor, "b t c"]:
        """Standardised latents of standardised chunks."""
        return (self.codec.encode(values, self.mask, self.position) - self.latent_mean) / self.latent_std

    @torch.no_grad()
    def decode(self, latent: Float[Tensor, "b t c"]) -> Float[Tensor, "b t d"]:
        """Standardised chunks."""
        return self.codec.decode(latent * self.latent_std + self.latent_mean, self.mask, self.position)

    def condition(
        self,
        place: Int[Tensor, "b 4"],
        near: Float[Tensor, "b 4 t c"],
        known: Bool[Tensor, "b 4"],
    ) -> Float[Tensor, "b 5 h"]:
        """Condition tokens: the place, then one a neighbour.

        Args:
            place: layer, role, row and column.
            near: latents of the chunks above, below, left and right.
            known: where there is one and it is not withheld.
        """
        around = torch.where(known[..., None], self.beside(near.flatten(2)) + self.side, self.absent)
        return torch.cat([self.place(place)[:, None], around], 1)

    def diffusion_loss(
        self,
        latent: Float[Tensor, "b t c"],
        place: Int[Tensor, "b 4"],
        near: Float[Tensor, "b 4 t c"],
        known: Bool[Tensor, "b 4"],
        generator: torch.Generator,
    ) -> Loss:
        """Squared error of the predicted velocity at random times (v-prediction, arXiv 2202.00512)."""
        kept = torch.rand(len(latent), 1, generator=generator) >= WITHHELD
        condition = self.condition(place, near, known & kept)
        dropped = torch.rand(len(latent), 1, 1, generator=generator) < self.config.denoiser.condition_dropout
        condition = torch.where(dropped, self.denoiser.unconditional, condition)
        time = torch.randint(self.scheduler.config["num_train_timesteps"], (len(latent),), generator=generator)
        noise = torch.randn(latent.shape, generator=generator)
        noisy = self.scheduler.add_noise(latent, noise, time)
        target = self.scheduler.get_velocity(latent, noise, time)
        error = F.mse_loss(self._velocity(noisy, time, condition), target)
        return Loss(error, {"denoising": error})

    def _velocity(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Float[Tensor, "b t c"]:
        return self.denoiser(noisy, time, condition, self.position)

    def effective_strength(self, strength: float) -> float:
        """The strength that is used: whole sampling steps, at least one."""
        steps = len(self.scheduler.timesteps)
        return min(steps, max(1, math.ceil(strength * steps - 1e-9))) / steps

    @torch.no_grad()
    def renew(
        self,
        latent: Float[Tensor, "b t c"],
        condition: Float[Tensor, "b k h"],
        strength: float,
        noise: Float[Tensor, "b t c"],
    ) -> Float[Tensor, "b t c"]:
        """Noise latents up to a point and denoise them (SDEdit, arXiv 2108.01073).

        Args:
            latent: where to start from.
            condition: what to denoise under.
            strength: how far up; at 1 nothing of ``latent`` is left.
            noise: standard normal.
        """
        times = self.scheduler.timesteps
        first = len(times) - round(self.effective_strength(strength) * len(times))
        guidance = self.config.denoiser.guidance
        noisy = noise if first == 0 else self.scheduler.add_noise(latent, noise, times[first].expand(len(latent)))
        for time in times[first:]:
            velocity = self._velocity(noisy, time.expand(len(noisy)), condition)
            if guidance != 1.0:
                nothing = self.denoiser.unconditional.expand_as(condition)
                free = self._velocity(noisy, time.expand(len(noisy)), nothing)
                velocity = free + guidance * (velocity - free)
            noisy = self.scheduler.step(velocity, time, noisy).prev_sample
        return noisy
