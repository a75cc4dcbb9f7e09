"""D2NWG: diffusion-based neural network weights generation (arXiv 2402.18153).

A VAE turns networks into latents; a Set Transformer turns labelled examples of a task into condition tokens; a
transformer denoises latents under that condition. Training has four stages: ``codec``, ``alignment`` (contrastive),
``diffusion``, and ``behaviour``, which is not in the paper: the networks that the sampler would write are run on
training tasks (`torch.func.functional_call`), and their task loss flows back through decoder, denoiser and conditioner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from weightgen.codecs.vae import VAE, VAEConfig
from weightgen.conditioners.alignment import Alignment
from weightgen.conditioners.dataset import SetEncoder, SetEncoderConfig
from weightgen.generators import Generator, GeneratorConfig, Problem, Stage, StageConfig, register_generator
from weightgen.nn import ConditionedTransformer, PositionEmbedding, check_heads
from weightgen.types import Batch, Condition, Loss
from zoo.config import StrictConfig
from zoo.errors import UsageError
from zoo.networks import logits_many


class DenoiserConfig(StrictConfig):
    """Latent diffusion: the denoiser and how it samples."""

    width: int = Field(default=96, ge=8)
    depth: int = Field(default=3, ge=1)
    heads: int = Field(default=4, ge=1)
    schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    condition_dropout: float = Field(default=0.1, ge=0, lt=1)
    sampling_steps: int = Field(default=5, ge=1, le=25)
    guidance: float = Field(default=1.0, ge=0, description="1 is plain conditional sampling")


class BehaviourConfig(StrictConfig):
    """What the behavioural stage mixes into the task loss."""

    queries: int = Field(default=64, ge=1, description="labelled examples a task and step")
    diffusion_weight: float = Field(default=0.3, ge=0)
    reconstruction_weight: float = Field(default=0.3, ge=0)


class StagesConfig(StrictConfig):
    """Optimisation of each stage."""

    codec: StageConfig = StageConfig()
    alignment: StageConfig = StageConfig()
    diffusion: StageConfig = StageConfig()
    behaviour: StageConfig = StageConfig()


class D2NWGConfig(GeneratorConfig):
    """Everything that decides a D2NWG training run, except the zoo."""

    generator: Literal["d2nwg"] = "d2nwg"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    codec: VAEConfig = VAEConfig()
    conditioner: SetEncoderConfig = SetEncoderConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    behaviour: BehaviourConfig = BehaviourConfig()
    stages: StagesConfig = StagesConfig()

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        check_heads(self.denoiser.width, self.denoiser.heads)
        check_heads(self.denoiser.width, self.conditioner.heads)
        return self


class Denoiser(nn.Module):
    """Predicts the velocity of noisy latents (v-prediction, arXiv 2202.00512)."""

    def __init__(self, config: DenoiserConfig, latent: int, positions: tuple[int, int, int, int]) -> None:
        """Make the network; its output starts at zero."""
        super().__init__()
        self.into = nn.Linear(latent, config.width)
        self.position = PositionEmbedding(positions, config.width)
        self.body = ConditionedTransformer(config.width, config.depth, config.heads)
        self.out = nn.Linear(config.width, latent)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.unconditional = nn.Parameter(torch.randn(1, 1, config.width) * 0.1)
        self.of_class = nn.Linear(config.width, config.width)

    def forward(
        self,
        noisy: Float[Tensor, "b t c"],
        time: Int[Tensor, " b"],
        condition: Float[Tensor, "b k h"],
        position: Int[Tensor, "t 4"],
        class_of_token: Int[Tensor, " t"],
    ) -> Float[Tensor, "b t c"]:
        """Velocity at the given time steps.

        Every token attends to all condition tokens. A token with the output weights of one class is told the condition
        token of that class directly, so that renaming the classes of a task renames the outputs of the network.
        """
        hidden = self.into(noisy) + self.position(position)
        own = self.of_class(condition)[:, class_of_token.clamp(min=0)]
        hidden = hidden + own * (class_of_token >= 0)[:, None]
        return self.out(self.body(hidden, time, condition))


@register_generator
class D2NWG(Generator):
    """Latent diffusion over the weights of one layout, conditioned on labelled examples of a task."""

    name: ClassVar[str] = "d2nwg"
    config_class: ClassVar[type[GeneratorConfig]] = D2NWGConfig
    config: D2NWGConfig
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: D2NWGConfig, problem: Problem) -> None:
        """Make all parts, untrained."""
        super().__init__(config, problem)
        c = config
        sizes = (self.position.amax(0) + 1).tolist()
        positions = (sizes[0], sizes[1], sizes[2], sizes[3])
        width = c.denoiser.width
        self.codec = VAE(c.codec, problem.tokenizer.width, positions)
        self.conditioner = SetEncoder(c.conditioner, torch.Size(problem.input_shape).numel(), width)
        self.alignment = Alignment(c.codec.latent, width, c.denoiser.heads, positions)
        self.denoiser = Denoiser(c.denoiser, c.codec.latent, positions)
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

    def stages(self) -> Sequence[Stage]:
        """Codec, alignment, diffusion, behaviour."""
        c = self.config.stages
        return (
            Stage("codec", c.codec, self._codec_loss, (self.codec,), judged_by="reconstruct"),
            Stage("alignment", c.alignment, self._alignment_loss, (self.alignment, self.conditioner), condition=True),
            Stage("diffusion", c.diffusion, self._diffusion_loss, (self.denoiser, self.conditioner), condition=True),
            Stage(
                "behaviour",
                c.behaviour,
                self._behaviour_loss,
                (self.denoiser, self.conditioner, self.codec),
                condition=True,
                queries=self.config.behaviour.queries,
            ),
        )

    def prepare(self, stage: str, values: Float[Tensor, "n t d"]) -> None:
        """Before the codec: statistics of the weights. Before alignment and diffusion: statistics of the latents."""
        if stage == "codec":
            self.codec.fit_normal(values, self.mask, self.position)
        elif stage in ("alignment", "diffusion"):
            with torch.no_grad():
                latent = self.codec.encode(values, self.mask, self.position)
            self.latent_mean.copy_(latent.mean((0, 1)))
            self.latent_std.copy_(latent.std((0, 1), correction=0).clamp(min=1e-6))

    @torch.no_grad()
    def reconstruct(self, values: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Decode the posterior means."""
        return self.codec.decode(self.codec.encode(values, self.mask, self.position), self.mask, self.position)

    def _latents(self, values: Float[Tensor, "b t d"]) -> Float[Tensor, "b t c"]:
        """Standardised latents of networks, without gradient."""
        with torch.no_grad():
            return (self.codec.encode(values, self.mask, self.position) - self.latent_mean) / self.latent_std

    def _decode(self, latent: Float[Tensor, "b t c"]) -> Float[Tensor, "b t d"]:
        return self.codec.decode(latent * self.latent_std + self.latent_mean, self.mask, self.position)

    def _encode(self, condition: Condition | None) -> Float[Tensor, "b k h"]:
        if condition is None or condition.examples is None:
            raise UsageError(
                "D2NWG was trained on labelled examples and got none", "give labelled examples of the task"
            )
        return self.conditioner(condition.examples)

    def embed_condition(self, condition: Condition) -> Float[Tensor, "b e"]:
        """Unit vectors of tasks in the space that the contrastive stage shares between tasks and weights."""
        return self.alignment.embed_condition(self._encode(condition))

    def embed_weights(self, values: Float[Tensor, "b t d"]) -> Float[Tensor, "b e"]:
        """Unit vectors of networks in the same space."""
        return self.alignment.embed_weights(self._latents(values), self.position)

    def _codec_loss(self, batch: Batch) -> Loss:
        return self.codec.loss(batch.values, self.mask, self.position, batch.generator())

    def _alignment_loss(self, batch: Batch) -> Loss:
        latent = self._latents(batch.values)
        return self.alignment.loss(latent, self.position, self._encode(batch.condition), batch.task)

    def _diffusion_loss(self, batch: Batch) -> Loss:
        error = self._denoising_error(batch, self._encode(batch.condition), batch.generator())
        return Loss(error, {"denoising": error})

    def _denoising_error(
        self, batch: Batch, condition: Float[Tensor, "b k h"], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """Squared error of the predicted velocity at random times, with some conditions dropped."""
        latent = self._latents(batch.values)
        dropped = torch.rand(len(latent), 1, 1, generator=generator) < self.config.denoiser.condition_dropout
        condition = torch.where(dropped, self.denoiser.unconditional, condition)
        time = torch.randint(self.scheduler.config["num_train_timesteps"], (len(latent),), generator=generator)
        noise = torch.randn(latent.shape, generator=generator)
        noisy = self.scheduler.add_noise(latent, noise, time)
        target = self.scheduler.get_velocity(latent, noise, time)
        return F.mse_loss(self._velocity(noisy, time, condition), target)

    def _velocity(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Float[Tensor, "b t c"]:
        return self.denoiser(noisy, time, condition, self.position, self.class_of_token)

    def _behaviour_loss(self, batch: Batch) -> Loss:
        """Task loss of the networks that the sampler would write.

        The sampler runs to a random step without gradient; its estimate of the clean latent there is decoded, and the
        network is run on labelled examples. So every step of the sampler learns to aim at networks that work.
        """
        assert batch.queries is not None
        config, generator = self.config.behaviour, batch.generator()
        condition = self._encode(batch.condition)
        noisy = torch.randn((len(condition), *self._latent_shape()), generator=generator)
        stop = int(torch.randint(len(self.scheduler.timesteps), (), generator=generator))
        with torch.no_grad():
            for time in self.scheduler.timesteps[:stop]:
                noisy = self._step(noisy, time, condition)[0]
        clean = self._step(noisy, self.scheduler.timesteps[stop], condition)[1]
        tensors = self.problem.tokenizer.tensors(self._decode(clean), self.problem.layout)
        logits = logits_many(self.architecture, tensors, batch.queries.x)
        task = F.cross_entropy(logits.flatten(0, 1), batch.queries.y.flatten())
        denoising = self._denoising_error(batch, condition, generator)
        with torch.no_grad():
            latent = self.codec.encode(batch.values, self.mask, self.position)
        decoded = self.codec.decode(latent, self.mask, self.position)
        reconstruction = self.codec.error(decoded, batch.values, self.mask, self.position)
        total = task + config.diffusion_weight * denoising + config.reconstruction_weight * reconstruction
        parts = {"task": task, "denoising": denoising, "reconstruction": reconstruction}
        return Loss(total, parts)

    def _latent_shape(self) -> tuple[int, int]:
        return len(self.position), self.config.codec.latent

    def _step(
        self, noisy: Float[Tensor, "b t c"], time: Tensor, condition: Float[Tensor, "b k h"], guidance: float = 1.0
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b t c"]]:
        """One deterministic sampler step: the next noisy latent, and the estimate of the clean one."""
        times = time.expand(len(noisy))
        velocity = self._velocity(noisy, times, condition)
        if guidance != 1.0:
            nothing = self.denoiser.unconditional.expand_as(condition)
            free = self._velocity(noisy, times, nothing)
            velocity = free + guidance * (velocity - free)
        out = self.scheduler.step(velocity, time, noisy)
        return out.prev_sample, out.pred_original_sample

    @torch.no_grad()
    def write(self, condition: Condition, generator: torch.Generator) -> Float[Tensor, "b t d"]:
        """Sample latents and decode them.

        Raises:
            UsageError: if the condition holds no examples.
        """
        encoded = self._encode(condition)
        noisy = torch.randn((len(encoded), *self._latent_shape()), generator=generator)
        for time in self.scheduler.timesteps:
            noisy = self._step(noisy, time, encoded, self.config.denoiser.guidance)[0]
        return self._decode(noisy)
