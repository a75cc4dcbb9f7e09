"""D2NWG: diffusion-based neural network weights generation (arXiv 2402.18153).

A VAE turns networks into latents, the conditioner turns what is known about a task into tokens, and a transformer
denoises latents under that condition. The last stage, ``behaviour``, is not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from pydantic import Field
from torch import Tensor, nn

from weightgen.conditioners.joint import ConditionTokens
from weightgen.diffusion import ProcessName, process_of
from weightgen.generators import GeneratorConfig, Stage, StageConfig, register_generator
from weightgen.generators.latent import LatentConfig, LatentGenerator, LatentStages
from weightgen.generators.problem import Frame, Problem
from weightgen.nn import ConditionedTransformer, PositionEmbedding
from weightgen.types import Condition
from zoo.config import StrictConfig
from zoo.types import Layout


class DenoiserConfig(StrictConfig):
    """Latent diffusion: the denoiser and how it samples."""

    depth: int = Field(default=3, ge=1)
    process: ProcessName = Field(default="v", description="v-prediction with DDIM, or rectified flow")
    schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    condition_dropout: float = Field(default=0.1, ge=0, lt=1)
    sampling_steps: int = Field(default=5, ge=1, le=25)
    guidance: float = Field(default=1.0, ge=0, description="1 is plain conditional sampling, 0 unconditional")


class StagesConfig(LatentStages):
    """Optimisation of each stage."""

    diffusion: StageConfig = StageConfig()


class D2NWGConfig(LatentConfig):
    """Everything that decides a D2NWG training run, except the zoo."""

    generator: Literal["d2nwg"] = "d2nwg"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    denoiser: DenoiserConfig = DenoiserConfig()
    stages: StagesConfig = StagesConfig()


class Denoiser(nn.Module):
    """Predicts the velocity of noisy latents."""

    def __init__(self, width: int, depth: int, heads: int, latent: int, positions: tuple[int, int, int, int]) -> None:
        """Make the network; its output starts at zero.

        Args:
            width: of its tokens and of condition tokens.
            depth: blocks.
            heads: attention heads.
            latent: size of a latent vector.
            positions: number of layers, roles, rows and chunks that occur.
        """
        super().__init__()
        self.into = nn.Linear(latent, width)
        self.position = PositionEmbedding(positions, width)
        self.body = ConditionedTransformer(width, depth, heads)
        self.out = nn.Linear(width, latent)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.unconditional = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.of_class = nn.Linear(width, width)

    def forward(
        self,
        noisy: Float[Tensor, "b t c"],
        time: Shaped[Tensor, " b"],
        condition: ConditionTokens,
        frame: Frame,
    ) -> Float[Tensor, "b t c"]:
        """Velocity at the given time steps.

        Every token attends to all condition tokens. A token with the output weights of one class is told the condition
        token of that class directly, so that renaming the classes of a task renames the outputs of the network.
        """
        hidden = self.into(noisy) + self.position(frame.position)
        has_class = frame.class_of_token >= 0
        if condition.classes and bool(has_class.any()):
            own = self.of_class(condition.tokens)[:, frame.class_of_token.clamp(0, condition.classes - 1)]
            hidden = hidden + own * has_class[:, None]
        return self.out(self.body(hidden, time, condition.tokens, condition.mask))

    def nothing(self, condition: ConditionTokens, where: Shaped[Tensor, " b"]) -> ConditionTokens:
        """The condition with nothing known in some rows."""
        tokens = torch.where(where[:, None, None], self.unconditional, condition.tokens)
        return ConditionTokens(tokens, condition.mask, condition.classes)


@register_generator
class D2NWG(LatentGenerator):
    """Latent diffusion over weights, conditioned on what is known about a task."""

    name: ClassVar[str] = "d2nwg"
    config_class: ClassVar[type[GeneratorConfig]] = D2NWGConfig
    config: D2NWGConfig

    def __init__(self, config: D2NWGConfig, problem: Problem) -> None:
        """Make all parts, untrained."""
        super().__init__(config, problem)
        c = config.denoiser
        self.denoiser = Denoiser(config.width, c.depth, config.heads, config.codec.latent, problem.sizes())
        self.process = process_of(c.process, c.sampling_steps, c.schedule)

    @property
    def finder(self) -> nn.Module:
        """The denoiser."""
        return self.denoiser

    def stages(self) -> Sequence[Stage]:
        """Codec, alignment, diffusion, behaviour."""
        return self.latent_stages("diffusion", self.config.stages.diffusion, self.config.stages)

    def method_loss(
        self, latent: Float[Tensor, "b t c"], condition: ConditionTokens, frame: Frame, generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """Squared error of the predicted velocity at random times, with some conditions dropped."""
        dropped = torch.rand(len(latent), generator=generator) < self.config.denoiser.condition_dropout
        condition = self.denoiser.nothing(condition, dropped.to(latent.device))
        noisy, time, target = self.process.noised(latent, generator)
        return F.mse_loss(self.denoiser(noisy, time, condition, frame), target)

    def aim(self, condition: ConditionTokens, frame: Frame, generator: torch.Generator) -> Float[Tensor, "b t c"]:
        """The sampler's estimate of the clean latent at a random step.

        The steps before run without gradient. So every step of the sampler learns to aim at networks that work.
        """
        noisy = self._noise(condition, frame, generator)
        stop = int(torch.randint(len(self.process.times), (), generator=generator))
        with torch.no_grad():
            for index in range(stop):
                noisy = self._step(noisy, index, condition, frame)[0]
        return self._step(noisy, stop, condition, frame)[1]

    def _noise(self, condition: ConditionTokens, frame: Frame, generator: torch.Generator) -> Float[Tensor, "b t c"]:
        shape = len(condition.tokens), len(frame), self.config.codec.latent
        return torch.randn(shape, generator=generator).to(condition.tokens)

    def _step(
        self,
        noisy: Float[Tensor, "b t c"],
        index: int,
        condition: ConditionTokens,
        frame: Frame,
        guidance: float = 1.0,
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b t c"]]:
        """One deterministic sampler step: the next noisy latent, and the estimate of the clean one."""
        times = self.process.times[index].expand(len(noisy)).to(noisy.device)
        velocity = self.denoiser(noisy, times, condition, frame)
        if guidance != 1.0:  # classifier-free guidance, arXiv 2207.12598
            everywhere = torch.ones(len(noisy), dtype=torch.bool, device=noisy.device)
            free = self.denoiser(noisy, times, self.denoiser.nothing(condition, everywhere), frame)
            velocity = free + guidance * (velocity - free)
        return self.process.step(velocity, index, noisy)

    def find(self, condition: ConditionTokens, frame: Frame, generator: torch.Generator) -> Float[Tensor, "b t c"]:
        """Sample latents."""
        noisy = self._noise(condition, frame, generator)
        for index in range(len(self.process.times)):
            noisy = self._step(noisy, index, condition, frame, self.config.denoiser.guidance)[0]
        return noisy

    @torch.no_grad()
    def fill(
        self,
        condition: Condition,
        layout: Layout,
        values: Float[Tensor, "b t d"],
        given: Bool[Tensor, " t"],
        generator: torch.Generator,
    ) -> Float[Tensor, "b t d"]:
        """Inpainting (RePaint, arXiv 2201.09865); see ``Generator.fill``."""
        frame, encoded = self.frame(layout), self.conditioner(condition)
        begin = self.start(condition, encoded, layout)
        draft = self.decode(self.find(encoded, frame, generator), layout, begin)  # the codec looks at whole networks
        known = self.latents(torch.where(given[:, None], values, draft), layout)
        start = noisy = self._noise(encoded, frame, generator)
        for index in range(len(self.process.times)):
            mixed = torch.where(given[:, None], self.process.noised_to(known, start, index), noisy)
            noisy = self._step(mixed, index, encoded, frame, self.config.denoiser.guidance)[0]
        written = self.decode(torch.where(given[:, None], known, noisy), layout, begin)
        finished = self.finished(torch.where(given[:, None], values, written), condition, layout)
        return torch.where(given[:, None], values, finished)
