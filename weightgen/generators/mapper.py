"""The mapper: one pass from condition to latent. The baseline that every diffusion result stands beside.

It is a hypernetwork (arXiv 1609.09106) over the latents of the same codec, with the same conditioner and the same
behavioural stage as D2NWG; what it lacks is noise, so all of its samples for one condition are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from weightgen.conditioners.joint import ConditionTokens
from weightgen.generators import GeneratorConfig, Stage, StageConfig, register_generator
from weightgen.generators.d2nwg import Denoiser
from weightgen.generators.latent import LatentConfig, LatentGenerator, LatentStages
from weightgen.generators.problem import Frame, Problem


class MapperStages(LatentStages):
    """Optimisation of each stage."""

    regression: StageConfig = StageConfig()


class MapperConfig(LatentConfig):
    """Everything that decides a training run of the mapper, except the zoo."""

    generator: Literal["mapper"] = "mapper"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    depth: int = Field(default=3, ge=1)
    stages: MapperStages = MapperStages()


@register_generator
class Mapper(LatentGenerator):
    """Regression from conditions to latents."""

    name: ClassVar[str] = "mapper"
    random: ClassVar[bool] = False
    config_class: ClassVar[type[GeneratorConfig]] = MapperConfig
    config: MapperConfig

    def __init__(self, config: MapperConfig, problem: Problem) -> None:
        """Make all parts, untrained."""
        super().__init__(config, problem)
        self.network = Denoiser(config.width, config.depth, config.heads, config.codec.latent, problem.sizes())

    @property
    def finder(self) -> nn.Module:
        """The regression network."""
        return self.network

    def stages(self) -> Sequence[Stage]:
        """Codec, alignment, regression, behaviour."""
        return self.latent_stages("regression", self.config.stages.regression, self.config.stages)

    def method_loss(
        self, latent: Float[Tensor, "b t c"], condition: ConditionTokens, frame: Frame, generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """Squared error of the latents."""
        return F.mse_loss(self.find(condition, frame, generator), latent)

    def aim(self, condition: ConditionTokens, frame: Frame, generator: torch.Generator) -> Float[Tensor, "b t c"]:
        """As ``find``."""
        return self.find(condition, frame, generator)

    def find(self, condition: ConditionTokens, frame: Frame, generator: torch.Generator) -> Float[Tensor, "b t c"]:
        """The same network, from nothing instead of noise, at time 0."""
        tokens = condition.tokens
        nothing = tokens.new_zeros(len(tokens), len(frame), self.config.codec.latent)
        return self.network(nothing, torch.zeros(len(tokens), device=tokens.device), condition, frame)
