"""Adapters from label texts, and from unlabelled texts if there are some, without training on the task.

Three parts. One static LoRA adapter, learned on all training tasks and used at half strength. A memory of the training
tasks, which says where texts about a label lie. And a closed-form edit of the encoder's last dense map, which moves the
label texts there. With unlabelled texts the space is centred and the labels follow the texts near them.

What it is worth is in docs/adapters.md: 32 unlabelled texts are a real gain in F1; from label texts alone it is no
better than the static adapter; the description does nothing that any other sentence would not do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from weightgen.adapted import AdaptedEncoder
from weightgen.generators import Generator, GeneratorConfig, Stage, StageConfig, register_generator
from weightgen.generators.problem import Problem, TokenSet
from weightgen.prototypes.edit import Edit, make_edit
from weightgen.prototypes.labels import CONTEXT_TOKENS, contexts, recalled, soft_means
from weightgen.prototypes.last_layer import Reader, Stack
from weightgen.prototypes.memory import Memory, MemoryConfig
from weightgen.prototypes.static import Episodes, StaticAdapter, named
from weightgen.types import Batch, Condition, LabelledTexts, Loss, TaskText
from zoo.build.encoder import MINILM, EncoderConfig, TextEncoder
from zoo.config import StrictConfig
from zoo.errors import UsageError
from zoo.kinds import lora
from zoo.types import Layout

KEY_TEXTS = 256
"""Most of the user's texts that the edit looks at."""
ROWS_AT_ONCE = 16
"""Texts and labels that a training step runs at once; neighbours in length, so that little is padding."""


class StaticConfig(StrictConfig):
    """The adapter that all tasks share."""

    rank: int = Field(default=16, ge=1)
    layers: int | None = Field(default=None, ge=1, description="top layers that it changes; by default the upper half")
    strength: float = Field(default=0.5, ge=0, le=1, description="share of what was learned that is written")
    texts: int = Field(default=8, ge=1, description="examples of one task in a training step")
    labels: int = Field(default=8, ge=2, description="most labels of one task in a training step")
    bfloat16: bool = Field(default=True, description="train in bfloat16 arithmetic")


class LabelsConfig(StrictConfig):
    """Where label prototypes lie; weights are in units of the label's own vector."""

    context: float = Field(default=0.5, ge=0, description="of the label inside two sentences")
    classes: float = Field(default=0.4, ge=0, description="of remembered classes with similar labels")
    pool: float = Field(default=0.3, ge=0, description="of remembered texts near it")
    temperature: float = Field(default=10.0, gt=0)
    centre: float = Field(default=0.6, ge=0, le=1, description="share of the mean unlabelled text that is taken off")
    pull: float = Field(default=0.7, ge=0, description="of the unlabelled texts near it")
    pull_temperature: float = Field(default=20.0, gt=0)


class EditConfig(StrictConfig):
    """The edit of the last dense map."""

    ridge: float = Field(default=0.01, gt=0)
    steps: int = Field(default=12, ge=1)
    own_weight: float = Field(default=6.0, gt=0, description="of one of the user's texts; a remembered one counts 1")


class PrototypeStages(StrictConfig):
    """Optimisation of the static adapter; ``batch_size`` is tasks a step."""

    static: StageConfig = StageConfig(steps=600, batch_size=5, lr=1e-3, weight_decay=0.05, ema=0.9)


class PrototypeConfig(GeneratorConfig):
    """Everything that decides a training run, except the zoo."""

    generator: Literal["prototype"] = "prototype"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    text_encoder: str | None = MINILM
    align: bool = False
    static: StaticConfig = StaticConfig()
    memory: MemoryConfig = MemoryConfig()
    labels: LabelsConfig = LabelsConfig()
    edit: EditConfig = EditConfig()
    stages: PrototypeStages = PrototypeStages()


@register_generator
class Prototype(Generator):
    """A static adapter, a memory of labels, and an edit of the last layer."""

    name: ClassVar[str] = "prototype"
    random: ClassVar[bool] = False
    learns_from: ClassVar[Literal["weights", "texts"]] = "texts"
    config_class: ClassVar[type[GeneratorConfig]] = PrototypeConfig
    config: PrototypeConfig

    def __init__(self, config: PrototypeConfig, problem: Problem) -> None:
        """Make all parts, untrained."""
        super().__init__(config, problem)
        self.static = StaticAdapter(config.static.rank)
        self.memory = Memory()
        self._encoder: TextEncoder | None = None
        self._tasks: Sequence[LabelledTexts] = ()
        self._episodes: Episodes | None = None

    def attach(self, encoder: TextEncoder, tasks: Sequence[LabelledTexts] = ()) -> None:
        """Take the base model, and with tasks get ready to learn from them.

        Raises:
            UsageError: if the encoder has another form, or is not the one that the generator was trained for.
        """
        stack = Stack.of(encoder)
        layers = self.config.static.layers or max(1, len(stack.layers) // 2)
        modules = stack.linear(encoder, layers)
        if not len(self.static.a):
            self.static.start(modules, self.config.seed)
        elif self.static.modules_changed() != modules:
            raise UsageError(
                f"the top {layers} layers of {encoder.base_model} are not those that the generator was made for",
                "give the base model that the generator was made for",
            )
        encoder.model.requires_grad_(False).eval()
        self._encoder, self._stack = encoder, stack
        if tasks:
            if alone := [task.text.description for task in tasks if len(task.y.unique()) < 2]:
                raise UsageError(f"the task {alone[0]!r} has one label only", "leave it out with leave_out")
            self._tasks = tasks
            longest = encoder.config.train_tokens
            config = self.config.static
            self._episodes = Episodes(tasks, lambda texts: encoder.tokens(texts, longest), config.texts, config.labels)

    @property
    def encoder(self) -> TextEncoder:
        """The base model; the one that the generator was trained for is loaded if none was given."""
        if self._encoder is None:
            assert self.problem.text_encoder is not None
            self.attach(TextEncoder(EncoderConfig(name=self.problem.text_encoder)))
        assert self._encoder is not None
        return self._encoder

    def stages(self) -> Sequence[Stage]:
        """The static adapter; the memory is filled when it is done."""
        return (Stage("static", self.config.stages.static, self._static_loss, (self.static,)),)

    def prepare(self, stage: str, networks: Sequence[TokenSet]) -> None:
        """Nothing: the weights of the zoo are not looked at."""

    def finish(self, stage: str) -> None:
        """Fill the memory through the static adapter."""
        self.memory.fill(self._tasks, self.reader(), self.config.memory, self.config.seed)

    def reconstruct(self, values: Float[Tensor, "b t d"], layout: Layout) -> Float[Tensor, "b t d"]:
        """Not possible.

        Raises:
            UsageError: always.
        """
        raise UsageError("the generator 'prototype' learns from texts and reconstructs no weights")

    def write(self, condition: Condition, layout: Layout, generator: torch.Generator) -> Float[Tensor, "b t d"]:
        """Not possible.

        Raises:
            UsageError: always.
        """
        raise UsageError("the generator 'prototype' writes no tokens", "call networks or sample")

    def layout_for(self, condition: Condition) -> Layout:
        """Rank of the static adapter, one direction for each label, one for the shift of all texts."""
        return self._layout(self.config.static.rank + 1 + max(len(task.labels) for task in _words(condition)))

    def writes(self, layout: Layout) -> bool:
        """Whether it is such a layout for some number of labels."""
        rank = layout.config.get("peft", {}).get("r", 0)
        return rank > self.config.static.rank and layout.fingerprint == self._layout(rank).fingerprint

    @torch.no_grad()
    def networks(self, condition: Condition, layout: Layout, seed: int, candidates: int = 1) -> dict[str, Tensor]:
        """Write one adapter for each task; candidates are equal, for nothing is random.

        Raises:
            UsageError: if a task is not given in words, or has more labels than the layout has room for.
        """
        rank = int(layout.config["peft"]["r"])
        adapters = [self._written(task, rank) for task in _words(condition)]
        return {
            name: torch.stack([one[name] for one in adapters for _ in range(candidates)]).unflatten(
                0, (len(adapters), candidates)
            )
            for name in adapters[0]
        }

    def _layout(self, rank: int) -> Layout:
        """Layout of plain LoRA of one rank; the update is the plain product of the factors."""
        modules = self.static.modules_changed() or (self.encoder and self.static.modules_changed())
        shapes = {name: (torch.empty(rank, i), torch.empty(o, rank)) for name, (i, o) in modules.items()}
        config = {
            "base_model_name_or_path": self.problem.forms[0].layout.base_model,
            "bias": "none",
            "inference_mode": True,
            "lora_alpha": rank,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": rank,
            "target_modules": sorted(modules),
            "task_type": "FEATURE_EXTRACTION",
        }
        return lora.layout(named(shapes), config)

    def reader(self) -> Reader:
        """The base model under the static adapter."""
        encoder = self.encoder
        adapted = AdaptedEncoder(encoder, self._layout(self.config.static.rank))
        tensors = {k: v.detach() for k, v in named(self.static.factors(self.config.static.strength)).items()}
        return Reader(encoder, self._stack, adapted, tensors)

    def _static_loss(self, batch: Batch) -> Loss:
        """Loss of the static adapter at full strength on episodes of some tasks."""
        assert self._episodes is not None
        episodes = self._episodes.draw(len(batch.values), batch.generator())
        tokens = [row for one in episodes for row in (*one.texts, *one.labels)]
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        adapted = AdaptedEncoder(self.encoder, self._layout(self.config.static.rank))
        quick = torch.autocast("cpu", torch.bfloat16, enabled=self.config.static.bfloat16)
        with quick, adapted.applied(named(self.static.factors(1.0))):
            groups = [order[start : start + ROWS_AT_ONCE] for start in range(0, len(order), ROWS_AT_ONCE)]
            found = [self.encoder.embed([tokens[i] for i in rows]) for rows in groups]
        vectors = torch.cat(found)[torch.tensor(order).argsort()]
        losses, start, scale = [], 0, self.encoder.config.scale
        for one in episodes:
            middle, end = start + len(one.texts), start + len(one.texts) + len(one.labels)
            losses.append(one.loss(vectors[start:middle], vectors[middle:end], scale))
            start = end
        total = torch.stack(losses).mean()
        return Loss(total, {"task": total})

    def prototypes(self, task: TaskText, labels: Float[Tensor, "k d"], reader: Reader) -> Float[Tensor, "k d"]:
        """Where the labels should lie, as far as label texts and memory tell."""
        config, found = self.config.labels, labels
        if config.context:
            for texts in contexts(task.description, task.labels):
                found = found + config.context * reader.survey(reader.tokens(texts, CONTEXT_TOKENS))[0]
        if len(self.memory.labels):
            known = self.memory.get("labels"), self.memory.get("centroids")
            found = found + config.classes * recalled(labels, *known, config.temperature)
            pool = self.memory.get("pool")
            found = found + config.pool * recalled(labels, pool, pool, config.temperature)
        return F.normalize(found, dim=-1)

    def edit_for(self, task: TaskText) -> Edit | None:
        """What the last layer is told about one task; nothing without labels."""
        if not task.labels:
            return None
        config, reader = self.config, self.reader()
        labels = reader.read(reader.tokens(task.labels))
        target = self.prototypes(task, labels.vectors(), reader)
        shift = torch.zeros(target.shape[1])
        others = self.memory.get("keys").reshape(-1, labels.keys.shape[-1])
        weights = torch.ones(len(others))
        if task.texts:
            vectors, keys = reader.survey(reader.tokens(task.texts))
            target, middle = soft_means(
                target, vectors, config.labels.centre, config.labels.pull, config.labels.pull_temperature
            )
            shift, keys = -middle, keys[:KEY_TEXTS]
            others = torch.cat([keys, others])
            weights = torch.cat([torch.full((len(keys),), config.edit.own_weight), weights])
        return make_edit(labels, target, shift, others, weights, config.edit.ridge, config.edit.steps)

    def _written(self, task: TaskText, rank: int) -> dict[str, Tensor]:
        """All factors of one adapter, padded with zeros to one rank."""
        own = self.config.static.rank
        if rank < own + 1 + len(task.labels):
            raise UsageError(
                f"the task has {len(task.labels)} labels, the layout has room for {rank - own - 1}",
                "use the layout that layout_for gives",
            )
        edit, padded = self.edit_for(task), {}
        for module, (a, b) in self.static.factors(self.config.static.strength).items():
            down, up = torch.zeros(rank, a.shape[1]), torch.zeros(b.shape[0], rank)
            down[:own], up[:, :own] = a, b
            if edit is not None and module == self._stack.dense:
                down[own : own + len(edit.a)], up[:, own : own + len(edit.a)] = edit.a, edit.b
            padded[module] = (down, up)
        return named(padded)


def _words(condition: Condition) -> Sequence[TaskText]:
    if not condition.words or len(condition.words) != len(condition):
        raise UsageError("the generator needs every task in words", "give a description and labels")
    return condition.words
