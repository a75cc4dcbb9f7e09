"""What generators over latents share: codec, conditioner, contrastive alignment, and the behavioural stage.

A subclass says how a latent is found for a condition. Training has four stages: ``codec``, ``alignment``
(contrastive), one named after the method, and ``behaviour``: the networks that would be written are run on training
tasks (`torch.func.functional_call`), and their task loss flows back through decoder and condition.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from weightgen.codecs.vae import VAE, VAEConfig
from weightgen.conditioners.alignment import Alignment
from weightgen.conditioners.joint import ConditionEncoder, ConditionerConfig, ConditionTokens
from weightgen.generators import Generator, GeneratorConfig, Stage, StageConfig
from weightgen.generators.further import FurtherConfig, trained_further
from weightgen.generators.head import FittedHead, HeadName
from weightgen.generators.problem import Frame, Problem, TokenSet
from weightgen.generators.starts import StartName, Starts, check_start
from weightgen.mix import MixConfig
from weightgen.nn import check_heads
from weightgen.shapes import ShapesConfig
from weightgen.types import Batch, Condition, Loss, Queries
from zoo.config import StrictConfig
from zoo.types import Layout


class BehaviourConfig(StrictConfig):
    """Which tasks the behavioural stage runs networks on, and what it adds to the task loss."""

    queries: int = Field(default=64, ge=1, description="labelled examples a task and step")
    method_weight: float = Field(default=0.3, ge=0, description="of the loss of the stage before")
    reconstruction_weight: float = Field(default=0.3, ge=0)
    alignment_weight: float = Field(default=0.0, ge=0, description="of the contrastive loss; it chooses starts")
    mix: MixConfig = MixConfig()
    shapes: ShapesConfig = ShapesConfig()
    further: FurtherConfig = FurtherConfig()


class LatentConfig(GeneratorConfig):
    """Fields that all generators over latents have."""

    codec: VAEConfig = VAEConfig()
    conditioner: ConditionerConfig = ConditionerConfig()
    width: int = Field(default=96, ge=8, description="of condition tokens and of the network that finds latents")
    heads: int = Field(default=4, ge=1)
    head: HeadName = Field(
        default="written", description="output layers of classifiers; fitted: in closed form from the given examples"
    )
    start: StartName = Field(
        default="codec",
        description="what is written is a change of: what the codec subtracts; the best network of the task; while "
        "training that of another task, as for tasks that are new; networks for all tasks, learned further",
    )
    starts: int = Field(
        default=1, ge=1, description="best networks that are kept to choose from: of each task, or to be learned of all"
    )
    behaviour: BehaviourConfig = BehaviourConfig()

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        check_heads(self.width, self.heads)
        check_heads(self.width, self.conditioner.heads)
        return self

    @model_validator(mode="after")
    def _starts_fit(self) -> Self:
        check_start(self.start, self.head, self.rename_classes, self.behaviour.shapes)
        if self.start == "task" and self.behaviour.mix.share:
            raise ValueError("tasks made at random have no network of their own: set behaviour.mix.share to 0")
        if self.start == "learned" and "examples" not in self.conditioner.parts:
            raise ValueError("labelled examples say which network to start at: add examples to conditioner.parts")
        return self


class LatentStages(StrictConfig):
    """Optimisation of the stages that all generators over latents have."""

    codec: StageConfig = StageConfig()
    starts: StageConfig = StageConfig()
    alignment: StageConfig = StageConfig()
    behaviour: StageConfig = StageConfig()


class LatentGenerator(Generator):
    """Finds a latent for a condition, and decodes it."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: LatentConfig, problem: Problem) -> None:
        """Make the shared parts, untrained."""
        super().__init__(config, problem)
        self._behaviour = config.behaviour
        sizes = problem.sizes()
        shapes = {form.input_shape for form in problem.forms}
        self.codec = VAE(config.codec, problem.tokenizer.width, sizes)
        self.conditioner = ConditionEncoder(config.conditioner, shapes, problem.text_size, config.width)
        self.alignment = Alignment(config.codec.latent, config.width, config.heads, sizes)
        self.head = FittedHead() if config.head == "fitted" else None
        layouts = [form.layout for form in problem.forms]
        self.starts = None
        if config.start != "codec":
            bodies = config.head == "fitted"
            self.starts = Starts(layouts, problem.tokenizer, config.starts, bodies, config.start)
        self.register_buffer("latent_mean", torch.zeros(config.codec.latent))
        self.register_buffer("latent_std", torch.ones(config.codec.latent))

    @property
    def any_classes(self) -> bool:
        """If output layers are fitted."""
        return self.head is not None

    @property
    @abc.abstractmethod
    def finder(self) -> nn.Module:
        """The network that finds latents."""

    @abc.abstractmethod
    def method_loss(
        self, latent: Float[Tensor, "b t c"], condition: ConditionTokens, frame: Frame, generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """What the method minimises, given the standardised latents of trained networks."""

    @abc.abstractmethod
    def aim(self, condition: ConditionTokens, frame: Frame, generator: torch.Generator) -> Float[Tensor, "b t c"]:
        """A latent as sampling would find it; differentiable, for the behavioural stage."""

    @abc.abstractmethod
    def find(self, condition: ConditionTokens, frame: Frame, generator: torch.Generator) -> Float[Tensor, "b t c"]:
        """A standardised latent for every task."""

    def latent_stages(self, method: str, middle: StageConfig, stages: LatentStages) -> Sequence[Stage]:
        """Codec, starts if they are learned, alignment, the method's own stage, behaviour."""
        behaviour = self._behaviour
        learned = (self.finder, self.conditioner)
        aligned = (self.alignment,) if behaviour.alignment_weight else ()
        starts: Sequence[Stage] = []
        if self.starts is not None:
            starts = self.starts.stages(stages.starts, self.head, behaviour.queries, behaviour.mix, behaviour.shapes)
        return (
            Stage("codec", stages.codec, self._codec_loss, (self.codec,), judged_by="reconstruct"),
            *starts,
            Stage(
                "alignment", stages.alignment, self._alignment_loss, (self.alignment, self.conditioner), condition=True
            ),
            Stage(method, middle, self._method_loss, learned, condition=True),
            Stage(
                "behaviour",
                stages.behaviour,
                self._behaviour_loss,
                (*learned, self.codec, *aligned, *([] if self.head is None else [self.head])),
                condition=True,
                queries=behaviour.queries + behaviour.further.examples,
                mix=behaviour.mix,
                shapes=behaviour.shapes,
            ),
        )

    @torch.no_grad()
    def prepare(self, stage: str, networks: Sequence[TokenSet]) -> None:
        """Before the first stage: statistics of weights. Between the first and the last: statistics of latents."""
        if stage == "codec" or not bool(self.codec.normal.fitted):
            frames = [self.frame(one.layout) for one in networks]
            self.codec.fit_normal([(one.values, f.mask, f.position) for one, f in zip(networks, frames, strict=True)])
            if self.starts is not None:
                self.starts.take(networks)
        if stage not in ("codec", "starts", "behaviour"):
            latents = [self._encode_weights(part, one.layout) for one in networks for part in one.values.split(256)]
            flat = torch.cat([latent.flatten(0, 1) for latent in latents])
            self.latent_mean.copy_(flat.mean(0))
            self.latent_std.copy_(flat.std(0, correction=0).clamp(min=1e-6))

    def _encode_weights(self, values: Float[Tensor, "b t d"], layout: Layout) -> Float[Tensor, "b t c"]:
        frame = self.frame(layout)
        return self.codec.encode(values, frame.mask, frame.position)

    @torch.no_grad()
    def reconstruct(self, values: Float[Tensor, "b t d"], layout: Layout) -> Float[Tensor, "b t d"]:
        """Decode the posterior means."""
        frame = self.frame(layout)
        return self.codec.decode(self._encode_weights(values, layout), frame.mask, frame.position)

    @torch.no_grad()
    def latents(self, values: Float[Tensor, "b t d"], layout: Layout) -> Float[Tensor, "b t c"]:
        """Standardised latents of networks, without gradient."""
        return (self._encode_weights(values, layout) - self.latent_mean) / self.latent_std

    def decode(
        self, latent: Float[Tensor, "b t c"], layout: Layout, start: Float[Tensor, "b t d"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """Tokens of networks from standardised latents, as changes of a start if there is one."""
        frame = self.frame(layout)
        values = self.codec.decode(latent * self.latent_std + self.latent_mean, frame.mask, frame.position)
        return values if start is None else values + (start - self.codec.normal(frame.position)[0]) * frame.mask

    def start(self, condition: Condition, encoded: ConditionTokens, layout: Layout) -> Float[Tensor, "b t d"] | None:
        """The networks to start at, if the config has such.

        Those that do best on the labelled examples; without examples, those nearest in the contrastive space.

        Raises:
            UsageError: if no network has or can be given the shape.
        """
        if self.starts is None:
            return None
        self.starts.check(layout)
        if condition.examples is not None:
            return self.starts.fitting(layout, condition.examples, self.head)
        return self.starts.nearest(layout, self.alignment.embed_condition(encoded.pooled()), self.embed_weights)

    def _training_start(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, "b t d"] | None:
        return None if self.starts is None else self.starts.while_training(batch, self.head, generator)

    def embed_condition(self, condition: Condition) -> Float[Tensor, "b e"]:
        """Unit vectors of tasks in the space that the contrastive stage shares between tasks and weights."""
        return self.alignment.embed_condition(self.conditioner(condition).pooled())

    def embed_weights(self, values: Float[Tensor, "b t d"], layout: Layout) -> Float[Tensor, "b e"]:
        """Unit vectors of networks in the same space."""
        return self.alignment.embed_weights(self.latents(values, layout), self.frame(layout).position)

    def _condition(self, batch: Batch, generator: torch.Generator) -> ConditionTokens:
        assert batch.condition is not None
        return self.conditioner(batch.condition, generator)

    def _codec_loss(self, batch: Batch) -> Loss:
        frame = self.frame(batch.layout)
        return self.codec.loss(batch.values, frame.mask, frame.position, batch.generator())

    def _alignment_loss(self, batch: Batch) -> Loss:
        latent = self.latents(batch.values, batch.layout)
        pooled = self._condition(batch, batch.generator()).pooled()
        return self.alignment.loss(latent, self.frame(batch.layout).position, pooled, batch.task)

    def _method_loss(self, batch: Batch) -> Loss:
        generator = batch.generator()
        latent = self.latents(batch.values, batch.layout)
        error = self.method_loss(latent, self._condition(batch, generator), self.frame(batch.layout), generator)
        return Loss(error, {"method": error})

    def _behaviour_loss(self, batch: Batch) -> Loss:
        """Task loss of the networks that would be written, and what keeps them near trained ones, if there are any."""
        assert batch.queries is not None
        config, generator, frame = self._behaviour, batch.generator(), self.frame(batch.layout)
        condition = self._condition(batch, generator)
        clean = self.aim(condition, frame, generator)
        start = self._training_start(batch, generator)
        tensors = self.problem.tokenizer.tensors(self.decode(clean, batch.layout, start), batch.layout)
        if self.head is not None:
            tensors = self.head.given(tensors, batch.condition, batch.layout)
        task = self._task_loss(tensors, batch.queries, generator)
        if not len(batch.values):
            return Loss(task, {"made": task})
        total, parts = task, {"task": task}
        known = self.latents(batch.values, batch.layout) if config.method_weight or config.alignment_weight else None
        if config.method_weight and known is not None:
            method = self.method_loss(known, condition, frame, generator)
            total, parts = total + config.method_weight * method, {**parts, "method": method}
        if config.alignment_weight and known is not None:
            aligned = self.alignment.loss(known, frame.position, condition.pooled(), batch.task)
            total, parts = total + config.alignment_weight * aligned.total, {**parts, **aligned.parts}
        if config.reconstruction_weight:
            with torch.no_grad():
                latent = self._encode_weights(batch.values, batch.layout)
            decoded = self.codec.decode(latent, frame.mask, frame.position)
            reconstruction = self.codec.error(decoded, batch.values, frame.mask, frame.position)
            total = total + config.reconstruction_weight * reconstruction
            parts["reconstruction"] = reconstruction
        return Loss(total, parts)

    def _task_loss(self, tensors: dict[str, Tensor], queries: Queries, generator: torch.Generator) -> Float[Tensor, ""]:
        """Of networks as they are written, or after some training on other examples."""
        config = self._behaviour.further
        if not config.share:
            return queries.loss(tensors).mean()
        *practice, queries = queries.split([config.batch_size] * config.steps + [self._behaviour.queries])
        if torch.rand((), generator=generator) < config.share:
            tensors = trained_further(tensors, practice, config.lr)
        return queries.loss(tensors).mean()

    @torch.no_grad()
    def write(self, condition: Condition, layout: Layout, generator: torch.Generator) -> Float[Tensor, "b t d"]:
        """Find latents and decode them.

        Raises:
            UsageError: if the condition holds nothing that the generator was trained on.
        """
        encoded = self.conditioner(condition)
        latent = self.find(encoded, self.frame(layout), generator)
        values = self.decode(latent, layout, self.start(condition, encoded, layout))
        return self.finished(values, condition, layout)

    def finished(self, values: Float[Tensor, "b t d"], condition: Condition, layout: Layout) -> Float[Tensor, "b t d"]:
        """Tokens with output layers fitted, if the config says so."""
        return values if self.head is None else self.head.tokens(values, condition, layout, self.problem.tokenizer)
