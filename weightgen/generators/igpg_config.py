"""Everything that decides an IGPG training run, except the zoo."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from weightgen.codecs.vq import VQConfig
from weightgen.conditioners.joint import ConditionerConfig
from weightgen.generators import GeneratorConfig, StageConfig
from weightgen.generators.announce import AnnounceConfig
from weightgen.generators.head import HeadName
from weightgen.generators.prior import PriorConfig, SamplingConfig
from weightgen.generators.refine import RefineConfig
from weightgen.generators.starts import StartName, check_start
from weightgen.nn import check_heads
from weightgen.shapes import ShapesConfig
from zoo.config import StrictConfig


class BehaviourConfig(StrictConfig):
    """What the behavioural stage mixes into the task loss."""

    queries: int = Field(default=64, ge=1, description="labelled examples a task and step")
    prior_weight: float = Field(default=0.1, ge=0, description="of the cross-entropy of trained networks")
    passes: int = Field(default=1, ge=1, description="drafts before the words that are judged")
    softness: float = Field(default=1.0, gt=0, description="temperature of the probabilities that the gradient goes to")
    share: float = Field(default=0.25, gt=0, le=1, description="of the trained networks for the cross-entropy")
    shapes: ShapesConfig = ShapesConfig()


class StagesConfig(StrictConfig):
    """Optimisation of each stage; the codec has one only with an autoencoder, starts only if they are learned."""

    announce: StageConfig = StageConfig(steps=0, lr=3e-3)
    codec: StageConfig = StageConfig()
    starts: StageConfig = StageConfig()
    prior: StageConfig = StageConfig()
    behaviour: StageConfig = StageConfig()


class IGPGConfig(GeneratorConfig):
    """Everything that decides an IGPG training run, except the zoo."""

    generator: Literal["igpg"] = "igpg"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    codec: VQConfig = VQConfig()
    start: StartName = Field(
        default="codec",
        description="what words change: what the codec subtracts; the best network of the task; while training that "
        "of another task, as for tasks that are new; networks for all tasks, learned further",
    )
    starts: int = Field(
        default=1, ge=1, description="best networks that are kept to choose from: of each task, or to be learned of all"
    )
    head: HeadName = Field(
        default="written", description="output layers of classifiers; fitted: in closed form from the given examples"
    )
    conditioner: ConditionerConfig = ConditionerConfig()
    width: int = Field(default=96, ge=8, description="of condition tokens and of the language model")
    heads: int = Field(default=4, ge=1)
    prior: PriorConfig = PriorConfig()
    sampling: SamplingConfig = SamplingConfig()
    refine: RefineConfig = RefineConfig()
    announce: AnnounceConfig = AnnounceConfig()
    behaviour: BehaviourConfig = BehaviourConfig()
    stages: StagesConfig = StagesConfig()

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        check_heads(self.width, self.heads)
        check_heads(self.width, self.conditioner.heads)
        if self.has_own_words and self.codec.quantiser.kind != "vq":
            raise ValueError(
                f"prior.learn_words and prior.word_size need codec.quantiser.kind vq, not {self.codec.quantiser.kind}"
            )
        check_start(self.start, self.head, self.rename_classes, self.behaviour.shapes)
        if self.start != "codec" and "examples" not in self.conditioner.parts:
            raise ValueError("labelled examples say which network to start at: add examples to conditioner.parts")
        return self

    @property
    def has_own_words(self) -> bool:
        """Whether words stand for something else than the codec was fitted to."""
        return self.prior.learn_words or self.prior.word_size != 1
