"""Adapters of a text encoder: classification without a head, where label texts are embedded by the adapted encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightgen.adapted import AdaptedEncoder
from weightgen.subjects import Subject
from weightgen.types import Condition, LabelledTexts, Queries, TaskText, Vectors
from zoo.build.encoder import TextEncoder
from zoo.seeds import seed_of
from zoo.tasks import TRAIN
from zoo.texts import unpack
from zoo.types import Layout, Task

MOST_LABELS = 12
"""Labels a task that a training step looks at."""
KEPT = 64
"""Texts a task that conditions are drawn from."""
FEWEST_LABELS = 2
NO_LABEL = -1


@dataclass(frozen=True, eq=False)
class TextData:
    """One task as token ids.

    Attributes:
        task: the task.
        text: the task in words, with the texts that conditions are drawn from.
        tokens: token ids of the examples.
        y: label of each.
        labels: token ids of the label texts.
        vectors: of the label texts, the description, and some texts, by the frozen encoder.
    """

    task: Task
    text: TaskText
    tokens: Sequence[Sequence[int]]
    y: Int[Tensor, " n"]
    labels: Sequence[Sequence[int]]
    vectors: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, task: Task, dataset: Mapping[str, Tensor], encoder: TextEncoder, part: int, half: int | None
    ) -> TextData:
        """Read one part of a stored data set; ``half`` keeps every other example only."""
        keep = (dataset["part"] == part).nonzero()[:, 0]
        keep = keep if half is None else keep[half::2]
        longest = encoder.config.train_tokens if part == TRAIN else encoder.config.score_tokens
        everything, labels = unpack(dataset), unpack(dataset, "label")
        texts = [everything[i] for i in keep.tolist()]
        vectors = {
            "labels": encoder.encode(labels),
            "description": encoder.encode([task.description]),
            "texts": encoder.encode(texts[:KEPT]) if texts else torch.zeros(0, 1),
        }
        return cls(
            task,
            TaskText(task.description, tuple(labels), tuple(texts[:KEPT])),
            encoder.tokens(texts, longest),
            dataset["y"][keep].long(),
            encoder.tokens(labels, longest),
            vectors,
        )


@dataclass(frozen=True, eq=False)
class TextQueries(Queries):
    """Labelled texts of each task of a batch: token ids, labels, and the labels' own texts."""

    encoder: AdaptedEncoder
    texts: Sequence[Sequence[Sequence[int]]]
    labels: Sequence[Sequence[Sequence[int]]]
    y: Sequence[Int[Tensor, " q"]]

    def loss(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, " b"]:
        """Cross-entropy of scaled cosines, in units of that of guessing; the encoder computes in bfloat16."""
        losses = []
        for i, (texts, labels, y) in enumerate(zip(self.texts, self.labels, self.y, strict=True)):
            own = {name: value[i] for name, value in tensors.items()}
            with torch.autocast("cpu", torch.bfloat16):
                x, prototypes = (self.encoder.embed(some, own) for some in (texts, labels))
            logits = self.encoder.encoder.config.scale * x @ prototypes.T
            losses.append(F.cross_entropy(logits, y) / torch.tensor(float(len(labels))).log())
        return torch.stack(losses)

    def split(self, sizes: Sequence[int]) -> list[Queries]:
        """In parts."""
        parts, start = list[Queries](), 0
        for size in sizes:
            here = slice(start, start := start + size)
            texts, y = [some[here] for some in self.texts], [some[here] for some in self.y]
            parts.append(TextQueries(self.encoder, texts, self.labels, y))
        return parts

    def to(self, device: torch.device) -> TextQueries:
        """As it is: the encoder decides where texts go."""
        return self


class TextSubject(Subject):
    """Text classification tasks for the adapters of one encoder."""

    input_shape = ()

    def __init__(self, encoder: AdaptedEncoder, data: Sequence[TextData]) -> None:
        """Keep encoder and tasks."""
        self.encoder, self.data = encoder, tuple(data)
        self.tasks = tuple(one.task for one in data)

    @property
    def classes(self) -> int | None:
        """The order of labels means nothing to an adapter."""
        return None

    def some_labels(self, tasks: Int[Tensor, " b"], generator: torch.Generator) -> Int[Tensor, "b c"]:
        """Some labels of each task, at least two that occur: a new task, as ``order`` of ``condition`` and ``queries``.

        Rows are filled up with ``NO_LABEL``.
        """
        rows = []
        for one in (self.data[i] for i in tasks.tolist()):
            occurring = one.y[: len(one.vectors["texts"])].unique()
            most = min(len(occurring), MOST_LABELS)
            count = int(torch.randint(min(FEWEST_LABELS, most), most + 1, (), generator=generator))
            rows.append(occurring[torch.randperm(len(occurring), generator=generator)[:count]])
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NO_LABEL)

    def condition(
        self,
        tasks: Int[Tensor, " b"],
        shots: int,
        generator: torch.Generator,
        order: Int[Tensor, "b c"] | None = None,
    ) -> Condition:
        """Description, label texts and unlabelled texts; ``shots`` texts a task, in place of a class.

        With ``order``, see ``some_labels``, as if a task had these labels only.
        """
        chosen = [self.data[i] for i in tasks.tolist()]
        texts, labels, words = [], [], []
        for i, one in enumerate(chosen):
            known, here = one.vectors["texts"], torch.arange(len(one.labels))
            rows = torch.randperm(len(known), generator=generator)
            if order is not None:
                here = order[i][order[i] != NO_LABEL]
                rows = rows[torch.isin(one.y[rows], here)]
            rows = rows[:shots]
            texts.append(known[rows])
            labels.append(one.vectors["labels"][here])
            words.append(
                TaskText(
                    one.text.description,
                    tuple(one.text.labels[k] for k in here.tolist()),
                    tuple(one.text.texts[k] for k in rows.tolist() if one.text.texts),
                )
            )
        return Condition(
            description=padded([one.vectors["description"] for one in chosen]),
            labels=padded(labels),
            texts=padded(texts),
            words=tuple(words),
        )

    def queries(
        self,
        tasks: Int[Tensor, " b"],
        count: int,
        generator: torch.Generator,
        order: Int[Tensor, "b c"] | None = None,
    ) -> TextQueries:
        """Labelled texts of the labels in ``order``, or of up to ``MOST_LABELS`` random ones, labels evenly."""
        texts, labels, answers = [], [], []
        for number, one in enumerate(self.data[i] for i in tasks.tolist()):
            occurring = one.y.unique() if order is None else order[number][order[number] != NO_LABEL]
            chosen = occurring[torch.randperm(len(occurring), generator=generator)[:MOST_LABELS]]
            y = torch.randint(len(chosen), (count,), generator=generator)
            rows = []
            for label in chosen[y].tolist():
                own = (one.y == label).nonzero()[:, 0]
                rows.append(int(own[int(torch.randint(len(own), (), generator=generator))]))
            texts.append([one.tokens[i] for i in rows])
            labels.append([one.labels[i] for i in chosen.tolist()])
            answers.append(y)
        return TextQueries(self.encoder, texts, labels, answers)

    def labelled(self) -> Sequence[LabelledTexts]:
        """All tasks."""
        return [LabelledTexts(one.text, one.tokens, one.y) for one in self.data]

    def under(self, layout: Layout) -> TextSubject:
        """The same tasks for adapters of another layout of the same encoder; errors as in ``AdaptedEncoder``."""
        return TextSubject(AdaptedEncoder(self.encoder.encoder, layout), self.data)

    def identity(self, tasks: Int[Tensor, " b"], order: Int[Tensor, "b c"] | None = None) -> Int[Tensor, " b"]:
        """A hash of the task's name."""
        return torch.tensor([seed_of(self.tasks[i].name) % 2**62 for i in tasks.tolist()])

    @torch.no_grad()
    def score(self, tensors: Mapping[str, Tensor], task: int) -> Float[Tensor, " m"]:
        """Macro-F1 over the labels that occur; the encoder computes in bfloat16."""
        one = self.data[task]
        return torch.stack([self._f1(one, {k: v[i] for k, v in tensors.items()}) for i in range(_count(tensors))])

    def _f1(self, one: TextData, tensors: Mapping[str, Tensor], batch: int = 64) -> Float[Tensor, ""]:
        order = sorted(range(len(one.tokens)), key=lambda i: len(one.tokens[i]))
        found = torch.empty(len(order), dtype=torch.long)
        with torch.autocast("cpu", torch.bfloat16), self.encoder.applied(tensors):
            labels = self.encoder.encoder.embed(one.labels)
            for start in range(0, len(order), batch):
                rows = order[start : start + batch]
                found[rows] = (self.encoder.encoder.embed([one.tokens[i] for i in rows]) @ labels.T).argmax(1)
        f1 = []
        for label in one.y.unique():
            right = ((found == label) & (one.y == label)).sum()
            f1.append(2 * right / ((found == label).sum() + (one.y == label).sum()))
        return torch.stack(f1).mean()


def _count(tensors: Mapping[str, Tensor]) -> int:
    return len(next(iter(tensors.values())))


def padded(vectors: Sequence[Float[Tensor, "_ e"]]) -> Vectors:
    """Sets of vectors of different sizes as one batch."""
    most = max(1, *(len(one) for one in vectors)) if len(vectors) > 1 else max(1, len(vectors[0]))
    x = torch.zeros(len(vectors), most, vectors[0].shape[-1])
    mask = torch.zeros(len(vectors), most, dtype=torch.bool)
    for i, one in enumerate(vectors):
        x[i, : len(one)], mask[i, : len(one)] = one, True
    return Vectors(x, mask)
