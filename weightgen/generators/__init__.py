"""Generators: models that write weights.

A generator is one file in this folder with a registered class. Training, checkpoints, evaluation and the command line
know generators only through :class:`Generator`.
"""

from __future__ import annotations

import abc
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from weightgen.augment import AugmentConfig
from weightgen.generators.problem import Frame, Problem, TokenSet
from weightgen.mix import MixConfig
from weightgen.shapes import ShapesConfig
from weightgen.types import Batch, Condition, LabelledTexts, Loss
from zoo.build.encoder import TextEncoder
from zoo.config import StrictConfig
from zoo.errors import UsageError
from zoo.networks import architecture_of, takes
from zoo.tokens import UP_PROJECTIONS
from zoo.types import Layout, Weights


class StageConfig(StrictConfig):
    """Optimisation of one training stage."""

    steps: int = Field(default=500, ge=0, description="updates; 0 leaves the stage out")
    batch_size: int = Field(default=64, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    ema: float = Field(default=0.99, ge=0, lt=1, description="decay of the averaged weights that the stage ends with")
    checks: int = Field(
        default=0, ge=0, description="how often validation accuracy is measured on the way, to keep the best weights"
    )


class GeneratorConfig(StrictConfig):
    """Fields that the config of every generator has."""

    generator: str
    seed: int = 0
    threads: int = Field(default=0, ge=0, description="threads of torch while training and judging; 0: its own choice")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of large products while training; weights and sums are float32 either way"
    )
    token_width: int = Field(default=64, ge=1)
    align: bool = Field(default=True, description="bring the zoo into one frame: align hidden units, gauge adapters")
    whole_tasks: bool = Field(
        default=True, description="validation tasks are new ones; false: known tasks, new networks"
    )
    leave_out: list[str] = Field(default=[], description="names of tasks of the zoo that are not learned from")
    text_encoder: str | None = Field(default=None, description="frozen encoder of descriptions and labels, if used")
    shots: int = Field(default=10, ge=1, description="examples a class that a condition holds while training")
    augment: AugmentConfig = AugmentConfig()
    rename_classes: bool = Field(default=True, description="train on random orders of the classes of every task")
    some_labels: bool = Field(default=False, description="of a text task: the behavioural stage draws new ones from it")
    strength: float = Field(default=1.0, ge=0, description="share of the update of an adapter that is written")


@dataclass(frozen=True)
class Stage:
    """One phase of training.

    Attributes:
        name: unique in the generator.
        config: optimisation.
        loss: what to minimise.
        trains: the submodules that learn; everything else stands still.
        condition: whether batches need conditions.
        queries: labelled examples a task that batches need for a behavioural loss.
        mix: which batches are of tasks made at random, without trained networks.
        shapes: which batches are of networks of shapes made at random.
        judged_by: ``"reconstruct"`` or ``"sample"``: which ability validation measures after the stage.
    """

    name: str
    config: StageConfig
    loss: Callable[[Batch], Loss]
    trains: tuple[nn.Module, ...]
    condition: bool = False
    queries: int = 0
    mix: MixConfig | None = None
    shapes: ShapesConfig | None = None
    judged_by: str = "sample"


class Generator(nn.Module, abc.ABC):
    """Writes weights for tasks. Subclasses are final; see ``contract`` tests for what every one of them fulfils.

    Attributes:
        name: the name in configs.
        config_class: its configuration.
        random: whether several networks for one condition differ.
        learns_from: ``"weights"`` of a zoo, or the ``"texts"`` of the tasks of a zoo of adapters. A generator that
            learns from texts runs the base model, chooses the layout for each task, and has no tokens: it overrides
            ``networks``, and neither reconstructs nor writes tokens.
    """

    name: ClassVar[str]
    random: ClassVar[bool] = True
    learns_from: ClassVar[Literal["weights", "texts"]] = "weights"
    config_class: ClassVar[type[GeneratorConfig]]

    def __init__(self, config: GeneratorConfig, problem: Problem) -> None:
        """Keep config and problem."""
        super().__init__()
        self.config, self.problem = config, problem
        self._frames: dict[str, Frame] = {}

    def frame(self, layout: Layout) -> Frame:
        """Tokens of a layout without their values, where the parameters are.

        Raises:
            UsageError: if the layout has a role that the tokenizer has not seen.
        """
        device = next(self.parameters()).device
        known = self._frames.get(layout.fingerprint)
        if known is None or known.mask.device != device:
            known = self._frames[layout.fingerprint] = Frame.of(layout, self.problem.tokenizer).to(device)
        return known

    @abc.abstractmethod
    def stages(self) -> Sequence[Stage]:
        """Training stages in order."""

    @abc.abstractmethod
    def prepare(self, stage: str, networks: Sequence[TokenSet]) -> None:
        """Measure statistics on the tokens of all training networks before a stage starts."""

    def attach(self, encoder: TextEncoder, tasks: Sequence[LabelledTexts] = ()) -> None:
        """Lend the base model, and before training the training tasks, to generators that use them.

        Args:
            encoder: the frozen base model of the adapters.
            tasks: what is learned from; none for a trained generator.
        """

    def finish(self, stage: str) -> None:
        """Measure what has to be kept after a stage."""

    @abc.abstractmethod
    def reconstruct(self, values: Float[Tensor, "b t d"], layout: Layout) -> Float[Tensor, "b t d"]:
        """Encode and decode networks without noise."""

    @abc.abstractmethod
    def write(self, condition: Condition, layout: Layout, generator: torch.Generator) -> Float[Tensor, "b t d"]:
        """Tokens of one network for every task of a batch of conditions."""

    def fill(
        self,
        condition: Condition,
        layout: Layout,
        values: Float[Tensor, "b t d"],
        given: Bool[Tensor, " t"],
        generator: torch.Generator,
    ) -> Float[Tensor, "b t d"]:
        """Write networks of which some tokens are given.

        Args:
            condition: ``b`` tasks.
            layout: layout of the networks.
            values: tokens, right where ``given``, anything elsewhere.
            given: true for tokens that shall stay as they are.
            generator: source of randomness.

        Returns:
            Tokens; those that were given are unchanged to the last bit.

        Raises:
            UsageError: if the generator can only write whole networks.
        """
        raise UsageError(f"the generator {self.name} writes whole networks only", "fill in with d2nwg or igpg")

    def layout_for(self, condition: Condition) -> Layout:
        """The layout to write for a task if the user names none; by default the only one that was learned from.

        Raises:
            UsageError: if several layouts were learned from.
        """
        forms = self.problem.forms
        if len(forms) != 1:
            raise UsageError(f"the generator writes {len(forms)} layouts", "name the one that is wanted")
        return forms[0].layout

    @property
    def any_classes(self) -> bool:
        """Whether output layers are made for each task, so that networks of any number of classes can be written."""
        return False

    def writes(self, layout: Layout) -> bool:
        """Whether networks of a layout can be written.

        By default those that were learned from, and others that are made of the same parts: networks of a family,
        for the same inputs, whose tensors have no role that is new.
        """
        return self.problem.form(layout) is not None or self.input_shape(layout) is not None

    def input_shape(self, layout: Layout) -> tuple[int, ...] | None:
        """Shape of the examples of a network of a layout, or ``None`` if it has other parts than those learned from."""
        if (own := self.problem.form(layout)) is not None:
            return own.input_shape
        if layout.config.get("architecture") is None or {s.role for s in layout.tensors} - {
            *self.problem.tokenizer.roles
        }:
            return None
        architecture = architecture_of(layout)
        for form in self.problem.forms:
            same = (form.layout.kind, form.layout.base_model) == (layout.kind, layout.base_model)
            like = form.layout.config.get("architecture", {})
            if same and like.get("family") == architecture["family"] and takes(architecture, form.input_shape):
                return form.input_shape
        return None

    def strengthened(self, values: Float[Tensor, "*b t d"], layout: Layout) -> Float[Tensor, "*b t d"]:
        """Tokens of adapters with the share of the update that the config says; of networks as they are."""
        if self.config.strength == 1:
            return values
        roles = self.problem.tokenizer.roles
        up = torch.tensor([role in UP_PROJECTIONS for role in roles], device=values.device)
        here = up[self.frame(layout).position[:, 1]]
        return torch.where(here[:, None], values * self.config.strength, values)

    @torch.no_grad()
    def networks(self, condition: Condition, layout: Layout, seed: int, candidates: int = 1) -> dict[str, Tensor]:
        """Generate networks for a batch of tasks.

        Args:
            condition: ``b`` tasks.
            layout: the layout wanted.
            seed: decides the result together with the condition.
            candidates: networks a task.

        Returns:
            State dict whose values have the leading axes ``b`` and ``candidates``.
        """
        generator = torch.Generator().manual_seed(seed)
        values = self.strengthened(self.write(condition.repeat(candidates), layout, generator), layout)
        values = values.unflatten(0, (len(condition), candidates))
        return self.problem.tokenizer.tensors(values, layout)

    def sample(self, condition: Condition, layout: Layout, n: int, seed: int) -> list[Weights]:
        """Generate ``n`` networks for one task.

        Args:
            condition: a batch of one task.
            layout: the layout wanted.
            n: how many.
            seed: decides the result.

        Raises:
            UsageError: if the generator cannot write this layout, or the condition is not exactly one task.
        """
        if not self.writes(layout):
            own = ", ".join(form.layout.fingerprint[:12] for form in self.problem.forms)
            own = "that layout_for gives" if self.learns_from == "texts" else own
            raise UsageError(
                f"the generator writes the layout {own}, not {layout.fingerprint[:12]}",
                "train a generator on a zoo of the wanted layout",
            )
        if len(condition) != 1:
            raise UsageError(f"one task is needed, the condition holds {len(condition)}")
        tensors = self.networks(condition, layout, seed, n)
        return [Weights(layout, {k: v[0, i].contiguous() for k, v in tensors.items()}) for i in range(n)]


_GENERATORS: dict[str, type[Generator]] = {}
G = TypeVar("G", bound=type[Generator])


def register_generator(cls: G) -> G:
    """Class decorator that makes a generator available under its name."""
    _GENERATORS[cls.name] = cls
    return cls


def generator_names() -> list[str]:
    """Names of all registered generators, sorted."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return sorted(_GENERATORS)


def generator_class(name: Any) -> type[Generator]:
    """Look a generator up.

    Raises:
        UsageError: if there is none of that name.
    """
    known = generator_names()
    if name not in _GENERATORS:
        raise UsageError(f"unknown generator {name!r}", f"choose one of {', '.join(known)}")
    return _GENERATORS[name]
