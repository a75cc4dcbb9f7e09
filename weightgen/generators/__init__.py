"""Generators: models that write weights.

A generator is one file in this folder with a registered class. Training, checkpoints, evaluation and the command line
know generators only through :class:`Generator`.
"""

from __future__ import annotations

import abc
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from weightgen.augment import AugmentConfig
from weightgen.types import Batch, Condition, Loss
from zoo.architectures import family
from zoo.config import StrictConfig
from zoo.errors import UsageError
from zoo.networks import architecture_of
from zoo.tokens import Tokenizer
from zoo.types import Layout, Weights


class StageConfig(StrictConfig):
    """Optimisation of one training stage."""

    steps: int = Field(default=500, ge=0, description="updates; 0 leaves the stage out")
    batch_size: int = Field(default=64, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    ema: float = Field(default=0.99, ge=0, lt=1, description="decay of the averaged weights that the stage ends with")


class GeneratorConfig(StrictConfig):
    """Fields that the config of every generator has."""

    generator: str
    seed: int = 0
    threads: int = Field(default=0, ge=0, description="threads of torch while training and judging; 0: its own choice")
    token_width: int = Field(default=64, ge=1)
    align: bool = Field(default=True, description="align hidden units of the zoo before learning from it")
    shots: int = Field(default=10, ge=1, description="examples a class that a condition holds while training")
    augment: AugmentConfig = AugmentConfig()
    rename_classes: bool = Field(default=True, description="train on random orders of the classes of every task")


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
        judged_by: ``"reconstruct"`` or ``"sample"``: which ability validation measures after the stage.
    """

    name: str
    config: StageConfig
    loss: Callable[[Batch], Loss]
    trains: tuple[nn.Module, ...]
    condition: bool = False
    queries: int = 0
    judged_by: str = "sample"


@dataclass(frozen=True, eq=False)
class Problem:
    """What a generator is built for: the layout it writes, and the form of a condition.

    Attributes:
        layout: layout of the generated networks.
        tokenizer: fitted on the train split.
        reference: alignment reference in whose frame networks are generated, or ``None`` if not aligned.
        input_shape: shape of one example.
    """

    layout: Layout
    tokenizer: Tokenizer
    reference: Mapping[str, Tensor] | None
    input_shape: tuple[int, ...]


class Generator(nn.Module, abc.ABC):
    """Writes weights for tasks. Subclasses are final; see ``contract`` tests for what every one of them fulfils."""

    name: ClassVar[str]
    config_class: ClassVar[type[GeneratorConfig]]

    def __init__(self, config: GeneratorConfig, problem: Problem) -> None:
        """Keep config and problem; positions and mask of the layout become buffers."""
        super().__init__()
        self.config, self.problem = config, problem
        mask, position = problem.tokenizer.template(problem.layout)
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("position", position, persistent=False)
        self.architecture = architecture_of(problem.layout)
        self.register_buffer("class_of_token", self._class_of_token(), persistent=False)

    mask: Tensor
    position: Tensor
    class_of_token: Tensor

    def _class_of_token(self) -> Int[Tensor, " t"]:
        """The class whose output weights a token holds, or -1: rows of the last layer belong to one class each."""
        layout, tokenizer = self.problem.layout, self.problem.tokenizer
        specs = {spec.name: spec for spec in layout.tensors}
        result = torch.full((len(self.position),), -1)
        for name, axis in family(self.architecture).outputs(self.architecture).axes:
            spec = specs[name]
            if axis == 0 and len(spec.shape) > 1:
                where = torch.tensor([spec.layer, tokenizer.roles.index(spec.role)])
                here = (self.position[:, :2] == where).all(-1)
                result[here] = self.position[here, 2]
        return result

    @abc.abstractmethod
    def stages(self) -> Sequence[Stage]:
        """Training stages in order."""

    @abc.abstractmethod
    def prepare(self, stage: str, values: Float[Tensor, "n t d"]) -> None:
        """Measure statistics on the tokens of all training networks before a stage starts."""

    @abc.abstractmethod
    def reconstruct(self, values: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Encode and decode networks without noise."""

    @abc.abstractmethod
    def write(self, condition: Condition, generator: torch.Generator) -> Float[Tensor, "b t d"]:
        """Tokens of one network for every task of a batch of conditions."""

    @torch.no_grad()
    def networks(self, condition: Condition, seed: int, candidates: int = 1) -> dict[str, Tensor]:
        """Generate networks for a batch of tasks.

        Args:
            condition: ``b`` tasks.
            seed: decides the result together with the condition.
            candidates: networks a task.

        Returns:
            State dict whose values have the leading axes ``b`` and ``candidates``.
        """
        generator = torch.Generator().manual_seed(seed)
        values = self.write(condition.repeat(candidates), generator)
        values = values.unflatten(0, (len(condition), candidates))
        return self.problem.tokenizer.tensors(values, self.problem.layout)

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
        if layout.fingerprint != self.problem.layout.fingerprint:
            own = self.problem.layout.fingerprint[:12]
            raise UsageError(
                f"the generator writes the layout {own}, not {layout.fingerprint[:12]}",
                "train a generator on a zoo of the wanted layout",
            )
        if len(condition) != 1:
            raise UsageError(f"one task is needed, the condition holds {len(condition)}")
        tensors = self.networks(condition, seed, n)
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
