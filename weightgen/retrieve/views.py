"""Views: ways to see a record and a query as vectors of one space. Each record may have a vector in it, or none."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from weightgen.retrieve.query import Query
from weightgen.retrieve.sketches import FIT_ON, fit_scales, network_sketch, update_sketch
from zoo.architectures import family
from zoo.build.encoder import EncoderConfig, TextEncoder
from zoo.errors import UsageError
from zoo.seeds import seed_of
from zoo.tasks import TRAIN, TaskData
from zoo.texts import unpack
from zoo.types import Layout, Record, Task, Weights
from zoo.zoo import Zoo

TEXTS = 64
"""Texts of a task that its mean is taken over."""
SIDE, CHANNELS, BLOCKS = 8, 3, 16
SKETCH = 2048

Report = Callable[[int, int], None]


class Encoder:
    """A text encoder that is loaded when the first text is read; texts are read once."""

    def __init__(self, name: str) -> None:
        """Keep the name: id on the Hub, or folder."""
        self.name = name
        self._known: dict[str, Tensor] = {}

    @functools.cached_property
    def model(self) -> TextEncoder:
        """The encoder; errors as in ``zoo.build.encoder.TextEncoder``."""
        return TextEncoder(EncoderConfig(name=self.name))

    def vectors(self, texts: Sequence[str]) -> Float[Tensor, "n e"]:
        """Unit vectors."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= dict(zip(new, self.model.encode(new), strict=True))
        return torch.stack([self._known[text] for text in texts])

    def mean(self, texts: Sequence[str]) -> Float[Tensor, " e"]:
        """Mean of the unit vectors of some texts."""
        return self.vectors(texts).mean(0)


class Tasks:
    """The tasks that a zoo stores, with their examples."""

    def __init__(self, zoo: Zoo) -> None:
        """Read the tasks; examples are read when they are asked for."""
        self._zoo = zoo
        self._tasks = {task.name: task for task in zoo.tasks()}
        self.names = frozenset(self._tasks)
        self._data = functools.lru_cache(maxsize=4)(zoo.dataset)

    def get(self, record: Record) -> Task | None:
        """The stored task of a record."""
        return self._tasks.get(record.task or "")

    def data(self, task: Task) -> dict[str, Tensor]:
        """Arrays of its data set."""
        return self._data(task.dataset)


class View(abc.ABC):
    """One way to see records and queries.

    Attributes:
        name: unique; vectors are stored under it.
        reads: parts of a query that it can see, by their names.
        centred: whether the mean of all records is taken off first, where most of a vector is common to all.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    centred: ClassVar[bool] = False

    @property
    def about(self) -> dict[str, Any]:
        """What the vectors depend on beside the records; where it differs, they are made again."""
        return {}

    @abc.abstractmethod
    def key(self, record: Record, tasks: Tasks) -> str:
        """What the vector of a record depends on beside its id; where it differs, it is made again."""

    @abc.abstractmethod
    def vectors(self, zoo: Zoo, tasks: Tasks, records: Sequence[Record], report: Report) -> dict[str, Tensor]:
        """Vectors of those records that have one, by id."""

    @abc.abstractmethod
    def query(self, query: Query) -> Tensor | None:
        """Vector of a query, or ``None`` if it holds nothing for this view."""


class _TaskView(View):
    """A view of the task of a record; records of one task share a vector."""

    def key(self, record: Record, tasks: Tasks) -> str:
        task = tasks.get(record)
        return f"{record.task}|{record.description}|{task.dataset if task else None}"

    def vectors(self, zoo: Zoo, tasks: Tasks, records: Sequence[Record], report: Report) -> dict[str, Tensor]:
        known: dict[str, Tensor | None] = {}
        for done, record in enumerate(records):
            key = self.key(record, tasks)
            if key not in known:
                known[key] = self.of_task(record, tasks.get(record), tasks)
                report(done, len(records))
        found = {record.id: known[self.key(record, tasks)] for record in records}
        return {id: vector for id, vector in found.items() if vector is not None}

    @abc.abstractmethod
    def of_task(self, record: Record, task: Task | None, tasks: Tasks) -> Tensor | None:
        """The vector, or ``None``."""


class _TextView(_TaskView):
    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    @property
    def about(self) -> dict[str, Any]:
        return {"encoder": self.encoder.name}


@final
class DescriptionView(_TextView):
    """What the record says about its task, by a frozen text encoder."""

    name = "description"
    reads = ("description",)

    def of_task(self, record: Record, task: Task | None, tasks: Tasks) -> Tensor | None:
        text = record.description or (task.description if task else None) or (record.task or "").replace("_", " ")
        return self.encoder.mean([text]) if text.strip() else None

    def query(self, query: Query) -> Tensor | None:
        return self.encoder.mean([query.description]) if query.description else None


@final
class LabelsView(_TextView):
    """The label texts (or class names) of the task, their mean."""

    name = "labels"
    reads = ("labels",)

    def of_task(self, record: Record, task: Task | None, tasks: Tasks) -> Tensor | None:
        if task is None or not task.class_names:
            return None
        data = tasks.data(task)
        return self.encoder.mean(unpack(data, "label") if "label_bytes" in data else task.class_names)

    def query(self, query: Query) -> Tensor | None:
        return self.encoder.mean(query.labels) if query.labels else None


@final
class TextsView(_TextView):
    """Example texts of the task without their labels, their mean."""

    name = "texts"
    reads = ("texts",)

    def of_task(self, record: Record, task: Task | None, tasks: Tasks) -> Tensor | None:
        data = {} if task is None else tasks.data(task)
        if "text_bytes" not in data:
            return None
        rows = (data["part"] == TRAIN).nonzero()[:, 0]
        rng = torch.Generator().manual_seed(seed_of("retrieve", record.task))
        texts = unpack(data)
        chosen = rows[torch.randperm(len(rows), generator=rng)[:TEXTS]]
        return self.encoder.mean([texts[i] for i in chosen.tolist()]) if len(chosen) else None

    def query(self, query: Query) -> Tensor | None:
        return self.encoder.mean(query.texts) if query.texts else None


@final
class ArchitectureView(_TextView):
    """The phrase of the network's family, or the form of an adapter."""

    name = "architecture"
    reads = ("architecture",)

    def key(self, record: Record, tasks: Tasks) -> str:
        return record.layout.fingerprint

    def of_task(self, record: Record, task: Task | None, tasks: Tasks) -> Tensor | None:
        text = describe(record.layout)
        return self.encoder.mean([text]) if text else None

    def query(self, query: Query) -> Tensor | None:
        return self.encoder.mean([query.architecture]) if query.architecture else None


def describe(layout: Layout) -> str:
    """One phrase about a layout; empty if nothing is known of it."""
    if layout.config.get("architecture") is not None:
        architecture = layout.config["architecture"]
        return family(architecture).describe(architecture)
    peft = layout.config.get("peft")
    if not peft:
        return ""
    targets = peft.get("target_modules") or ""
    where = targets if isinstance(targets, str) else ", ".join(sorted(targets))
    return f"{peft.get('peft_type', layout.kind)} adapter of rank {peft.get('r')} on {where} of {layout.base_model}"


class _ExampleView(_TaskView):
    reads = ("examples",)
    centred = True

    def of_task(self, record: Record, task: Task | None, tasks: Tasks) -> Tensor | None:
        data = {} if task is None else tasks.data(task)
        if task is None or "x" not in data:
            return None
        return self.of_examples(*TaskData.select(data, task.classes).part(TRAIN))

    def query(self, query: Query) -> Tensor | None:
        return None if query.examples is None else self.of_examples(*query.examples)

    @abc.abstractmethod
    def of_examples(self, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]) -> Tensor:
        """Vector of labelled examples."""


@final
class ExamplesView(_ExampleView):
    """Pixels of the task's examples in any order of the classes: mean, spread of the class means, spread."""

    name = "examples"

    def of_examples(self, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]) -> Tensor:
        pixels = _pixels(x)
        means = _class_means(pixels, y)
        parts = (pixels.mean(0), means.std(0, correction=0), pixels.std(0, correction=0))
        return torch.cat(parts)


@final
class ClassesView(_ExampleView):
    """Mean pixels of every class, in the order of the network's outputs."""

    name = "classes"

    def of_examples(self, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]) -> Tensor:
        means = _class_means(_pixels(x), y)
        result = torch.zeros(BLOCKS, means.shape[1])
        for c, mean in enumerate(means):  # classes beyond the blocks share one, each with signs of its own
            rng = torch.Generator().manual_seed(seed_of("classes", c // BLOCKS))
            signs = 2.0 * torch.randint(2, mean.shape, generator=rng) - 1 if c >= BLOCKS else 1.0
            result[c % BLOCKS] += signs * mean
        return result.flatten()


def _pixels(x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
    """Examples at one size: images are averaged to 8 x 8 and three channels, rows of numbers cut or padded."""
    size = CHANNELS * SIDE * SIDE
    if x.ndim < 3:
        flat = x.reshape(len(x), -1)
        return F.pad(flat, (0, size - flat.shape[1])) if flat.shape[1] <= size else flat[:, :size]
    images = x.reshape(len(x), -1, *x.shape[-2:])
    images = images if images.shape[1] == CHANNELS else images.mean(1, keepdim=True).expand(-1, CHANNELS, -1, -1)
    return F.adaptive_avg_pool2d(images, SIDE).flatten(1)


def _class_means(pixels: Float[Tensor, "n d"], y: Int[Tensor, " n"]) -> Float[Tensor, "c d"]:
    means = torch.zeros(int(y.max()) + 1, pixels.shape[1]).index_add_(0, y, pixels)
    return means / torch.bincount(y).clamp(min=1)[:, None]


@final
class WeightsView(View):
    """The weights themselves: for LoRA the update of the base, for all else the canonical form of the kind."""

    name = "weights"
    reads = ("weights",)
    centred = True

    def __init__(self, scales: Mapping[str, int] | None = None) -> None:
        """Take the scales of the roles, if they were measured before."""
        self.scales = dict(scales or {})

    @property
    def about(self) -> dict[str, Any]:
        return {"size": SKETCH}

    def key(self, record: Record, tasks: Tasks) -> str:
        return ""

    def vectors(self, zoo: Zoo, tasks: Tasks, records: Sequence[Record], report: Report) -> dict[str, Tensor]:
        others = [record for record in records if record.layout.kind != "lora"]
        if others and not self.scales:
            step = -(-len(others) // FIT_ON)
            self.scales = fit_scales(zoo.weights(record) for record in others[::step])
        found = {}
        for done, record in enumerate(records):
            vector = self._of(zoo.weights(record))
            if vector is not None:
                found[record.id] = vector
            if done % 64 == 0:
                report(done, len(records))
        return found

    def _of(self, weights: Weights) -> Tensor | None:
        """Sketch, scaled so that kinds do not outweigh each other; ``None`` for what is not comparable."""
        try:
            lora = weights.layout.kind == "lora"
            sketch = update_sketch(weights, SKETCH) if lora else network_sketch(weights, self.scales, SKETCH)
        except UsageError:
            return None
        size = float(sketch.norm())
        return sketch / size if size > 0 else None

    def query(self, query: Query) -> Tensor | None:
        if query.weights is None:
            return None
        vector = self._of(query.weights)
        if vector is None:
            raise UsageError(
                f"weights of the kind {query.weights.layout.kind!r} are not comparable with those of the zoo",
                "give a plain LoRA adapter, or a network with the same kinds of layers",
            )
        return vector
