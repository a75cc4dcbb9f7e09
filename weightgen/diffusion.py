"""Noise processes for latent diffusion, around the schedulers of diffusers.

Both speak of a velocity that the network predicts: v-prediction (arXiv 2202.00512) with DDIM steps (arXiv 2010.02502),
and rectified flow (arXiv 2209.03003) with Euler steps.
"""

from __future__ import annotations

import abc
from typing import Any, Literal

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float, Shaped
from torch import Tensor

ProcessName = Literal["v", "flow"]


class Process(abc.ABC):
    """Adds noise to latents, and takes it away in a fixed number of steps.

    Attributes:
        times: time of each sampling step, the noisiest first.
    """

    times: Shaped[Tensor, " s"]

    @abc.abstractmethod
    def noised(
        self, latent: Float[Tensor, "b t c"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "b t c"], Shaped[Tensor, " b"], Float[Tensor, "b t c"]]:
        """Latents with noise of random strength, their times, and the velocity to predict."""

    @abc.abstractmethod
    def step(
        self, velocity: Float[Tensor, "b t c"], index: int, noisy: Float[Tensor, "b t c"]
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b t c"]]:
        """One sampling step: the less noisy latent, and the estimate of the clean one."""

    @abc.abstractmethod
    def noised_to(
        self, latent: Float[Tensor, "b t c"], noise: Float[Tensor, "b t c"], index: int
    ) -> Float[Tensor, "b t c"]:
        """Latents with as much noise as there is before step ``index``; after the last step there is none."""


class VelocityProcess(Process):
    """v-prediction on a variance-preserving schedule, sampled with DDIM."""

    def __init__(self, steps: int, schedule: str) -> None:
        self.scheduler: Any = DDIMScheduler(  # its annotations are narrower than what it takes and returns
            beta_schedule=schedule,
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=True,
            timestep_spacing="trailing",
        )
        self.scheduler.set_timesteps(steps)
        self.times = self.scheduler.timesteps

    def noised(
        self, latent: Float[Tensor, "b t c"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "b t c"], Shaped[Tensor, " b"], Float[Tensor, "b t c"]]:
        """Uniform times."""
        time = torch.randint(self.scheduler.config["num_train_timesteps"], (len(latent),), generator=generator)
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        time = time.to(latent.device)
        noisy = self.scheduler.add_noise(latent, noise, time)
        return noisy, time, self.scheduler.get_velocity(latent, noise, time)

    def step(
        self, velocity: Float[Tensor, "b t c"], index: int, noisy: Float[Tensor, "b t c"]
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b t c"]]:
        """A deterministic DDIM step."""
        out = self.scheduler.step(velocity, self.times[index], noisy)
        return out.prev_sample, out.pred_original_sample

    def noised_to(
        self, latent: Float[Tensor, "b t c"], noise: Float[Tensor, "b t c"], index: int
    ) -> Float[Tensor, "b t c"]:
        """At the time of that step."""
        if index >= len(self.times):
            return latent
        return self.scheduler.add_noise(latent, noise, self.times[index].expand(len(latent)))


class FlowProcess(Process):
    """Straight lines from data to noise, sampled with Euler steps."""

    def __init__(self, steps: int) -> None:
        self.scheduler: Any = FlowMatchEulerDiscreteScheduler()
        self.scheduler.set_timesteps(steps)
        self.times, self.sigmas = self.scheduler.timesteps, self.scheduler.sigmas

    def noised(
        self, latent: Float[Tensor, "b t c"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "b t c"], Shaped[Tensor, " b"], Float[Tensor, "b t c"]]:
        """Uniform times in (0, 1], given to the network in thousandths, as the scheduler does."""
        sigma = 1 - torch.rand(len(latent), generator=generator).to(latent)
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        noisy = torch.lerp(latent, noise, sigma[:, None, None])
        return noisy, sigma * self.scheduler.config["num_train_timesteps"], noise - latent

    def step(
        self, velocity: Float[Tensor, "b t c"], index: int, noisy: Float[Tensor, "b t c"]
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b t c"]]:
        """An Euler step."""
        here, there = self.sigmas[index], self.sigmas[index + 1]
        return noisy + (there - here) * velocity, noisy - here * velocity

    def noised_to(
        self, latent: Float[Tensor, "b t c"], noise: Float[Tensor, "b t c"], index: int
    ) -> Float[Tensor, "b t c"]:
        """On the line between both."""
        return torch.lerp(latent, noise, self.sigmas[index].expand(len(latent))[:, None, None])


def process_of(name: ProcessName, steps: int, schedule: str) -> Process:
    """Make a process by its name; ``schedule`` is the noise schedule of ``v``."""
    return VelocityProcess(steps, schedule) if name == "v" else FlowProcess(steps)
