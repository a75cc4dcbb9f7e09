"""From a zoo to tensors for training: aligned networks, and examples of their tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo import kinds
from zoo.architectures import family
from zoo.errors import BadArtefact, UsageError
from zoo.networks import architecture_of
from zoo.symmetry import align, fit_reference
from zoo.tasks import scaled
from zoo.types import Layout, Record, Task, Weights
from zoo.zoo import Zoo


@dataclass(frozen=True, eq=False)
class Members:
    """The networks of one layout and one split, stacked.

    Attributes:
        layout: shared by all.
        records: catalogue rows, in the order of the first axis.
        tensors: state dict whose values have a leading axis over members.
    """

    layout: Layout
    records: tuple[Record, ...]
    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.records)

    def one(self, index: int) -> dict[str, Tensor]:
        """State dict of one member."""
        return {name: value[index] for name, value in self.tensors.items()}

    def aligned(self, reference: Mapping[str, Tensor]) -> Members:
        """The same networks with their hidden units moved onto those of a reference."""
        groups = family(architecture_of(self.layout)).groups(architecture_of(self.layout))
        moved = [align(self.one(i), reference, groups) for i in range(len(self))]
        return Members(self.layout, self.records, {n: torch.stack([m[n] for m in moved]) for n in reference})

    def canonical(self) -> Members:
        """The same weights in the canonical form of their kind."""
        moved = [kinds.canonical(weights).tensors for weights in self.weights()]
        return Members(self.layout, self.records, {n: torch.stack([m[n] for m in moved]) for n in self.tensors})

    def weights(self) -> list[Weights]:
        """The members one by one."""
        return [Weights(self.layout, self.one(i)) for i in range(len(self))]


def load_groups(zoo: Zoo, split: str, *, without: Collection[str] = ()) -> list[Members]:
    """Read all weights of a split, those of one layout together.

    Layouts that differ only in what their kind says does not change the function (the order in which an adapter lists
    its modules, say) count as one: the first of them by fingerprint, over all splits of the zoo.

    Args:
        zoo: where from.
        split: ``"train"``, ``"val"`` or ``"test"``.
        without: names of tasks whose weights are left out.

    Returns:
        One ``Members`` a layout, in the order of the layouts' fingerprints.

    Raises:
        BadArtefact: if there is none.
    """
    records = [record for record in zoo.records(split=split) if record.task not in without]
    if not records:
        raise BadArtefact(f"the zoo {zoo.path} has no networks in the split {split!r}", "build or collect some first")
    layouts: dict[str, Layout] = {}
    for record in zoo.records():
        first = layouts.setdefault(_function_of(record.layout), record.layout)
        if record.layout.fingerprint < first.fingerprint:
            layouts[_function_of(record.layout)] = record.layout
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(layouts[_function_of(record.layout)].fingerprint, []).append(record)
    by_fingerprint = {layout.fingerprint: layout for layout in layouts.values()}
    return [_members(zoo, groups[key], by_fingerprint[key]) for key in sorted(groups)]


def _function_of(layout: Layout) -> str:
    """Equal for layouts whose networks differ in their tensors only."""
    config = kinds.get(layout.kind).function_config(layout)
    return replace(layout, config=config).fingerprint


def _members(zoo: Zoo, records: Sequence[Record], layout: Layout) -> Members:
    networks = [zoo.weights(record).tensors for record in records]
    stacked = {spec.name: torch.stack([network[spec.name] for network in networks]) for spec in layout.tensors}
    return Members(layout, tuple(records), stacked)


def load_members(zoo: Zoo, split: str) -> Members:
    """Read all weights of a split of a zoo with one layout.

    Raises:
        BadArtefact: if there is none, or if they have several layouts.
    """
    groups = load_groups(zoo, split)
    if len(groups) > 1:
        raise BadArtefact(
            f"the split {split!r} of the zoo {zoo.path} holds {len(groups)} layouts", "use a zoo of one layout"
        )
    return groups[0]


def reference_of(members: Members) -> dict[str, Tensor]:
    """Alignment reference fitted on these members; see ``zoo.symmetry.fit_reference``."""
    architecture = architecture_of(members.layout)
    return fit_reference([members.one(i) for i in range(len(members))], family(architecture).groups(architecture))


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled examples of a batch of tasks, grouped by class; the order inside a class means nothing.

    Attributes:
        x: inputs, zero where masked.
        mask: true where there is an example.
    """

    x: Float[Tensor, "b c n ..."]
    mask: Bool[Tensor, "b c n"]

    @classmethod
    def group(cls, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], classes: int | None = None) -> Examples:
        """Group the labelled examples of one task.

        Args:
            x: inputs.
            y: labels ``0 .. classes - 1``.
            classes: number of classes; by default one more than the largest label.

        Raises:
            UsageError: if there is no example, a class has none, or a label lies outside the range.
        """
        if len(y) == 0:
            raise UsageError("there are no examples", "give at least one example of every class")
        count = int(y.max()) + 1 if classes is None else classes
        sizes = torch.bincount(y.long().clamp(min=0), minlength=count)
        if int(y.min()) < 0 or len(sizes) > count:
            raise UsageError(f"labels must be 0 .. {count - 1}, got {int(y.min())} .. {int(y.max())}")
        if int(sizes.min()) == 0:
            raise UsageError(
                f"class {int(sizes.argmin())} of {count} has no example", "give at least one example of every class"
            )
        mask = torch.arange(int(sizes.max())) < sizes[:, None]
        grouped = torch.zeros(*mask.shape, *x.shape[1:], dtype=x.dtype)
        for c in range(count):
            grouped[c, : sizes[c]] = x[y == c]
        return cls(grouped[None], mask[None])

    def flat(self, index: int = 0) -> tuple[Float[Tensor, "n ..."], Int[Tensor, " n"]]:
        """Inputs and labels of one task as a plain list."""
        label = torch.arange(self.mask.shape[1])[:, None].expand_as(self.mask[index])
        return self.x[index][self.mask[index]], label[self.mask[index]]


class ExampleBank:
    """Draws random examples of many tasks at once from one part (train, validation, test) of their data set."""

    def __init__(
        self, dataset: Mapping[str, Tensor], tasks: Sequence[Task], part: int, *, half: int | None = None
    ) -> None:
        """Index the examples.

        Args:
            dataset: ``x``, ``y`` and ``part`` of the data set.
            tasks: tasks on it, all with the same number of classes.
            part: 0 train, 1 validation, 2 test.
            half: 0 or 1 keeps every other example of each class only, so that two banks share no example.

        Raises:
            UsageError: if tasks differ in their number of classes, or a class has no example in this part.
        """
        if len({len(task.classes) for task in tasks}) > 1:
            raise UsageError("tasks with different numbers of classes cannot share a batch")
        keep = dataset["part"] == part
        self.x = dataset["x"][keep]  # as stored: images may be bytes, and are scaled when they are drawn
        labels = dataset["y"][keep].long()
        self.tasks = tuple(tasks)
        self.classes = torch.tensor([task.classes for task in tasks])  # tasks c
        rows = [torch.nonzero(labels == c).flatten() for c in range(int(dataset["y"].max()) + 1)]
        rows = rows if half is None else [row[half::2] for row in rows]
        sizes = torch.tensor([len(row) for row in rows])
        if int(sizes[self.classes.unique()].min()) == 0:
            raise UsageError("a class has no example in this part of the data set", "give it a larger share")
        self.sizes = sizes
        self.index = torch.zeros(len(sizes), int(sizes.max()), dtype=torch.long)
        for row, chosen in zip(self.index, rows, strict=True):
            row[: len(chosen)] = chosen

    def support(
        self,
        tasks: Int[Tensor, " b"],
        shots: int,
        generator: torch.Generator,
        order: Int[Tensor, "b c"] | None = None,
    ) -> Examples:
        """Draw ``shots`` distinct examples of every class of the given tasks (all, where a class has fewer).

        Args:
            tasks: number of each task.
            shots: examples a class.
            generator: source of randomness.
            order: renames the classes of each task: new class ``i`` is old class ``order[i]``.
        """
        classes = self._ordered(tasks, order)
        valid = torch.arange(self.index.shape[1]) < self.sizes[classes][..., None]  # b c n
        order = torch.rand(valid.shape, generator=generator).masked_fill(~valid, 2.0).argsort(-1)[..., :shots]
        mask = valid.gather(-1, order)
        x = scaled(self.x[self.index[classes].gather(-1, order)])
        return Examples(x * mask.view(*mask.shape, *[1] * (x.ndim - 3)), mask)

    def _ordered(self, tasks: Int[Tensor, " b"], order: Int[Tensor, "b c"] | None) -> Int[Tensor, "b c"]:
        classes = self.classes[tasks]
        return classes if order is None else classes.gather(1, order)

    def identity(self, tasks: Int[Tensor, " b"], order: Int[Tensor, "b c"] | None = None) -> Int[Tensor, " b"]:
        """A number that is equal for equal classes in equal order, and differs otherwise but for rare chance."""
        classes = self._ordered(tasks, order)
        digits = 1_000_003 ** torch.arange(classes.shape[1])  # wraps around: a hash
        return ((classes + 1) * digits).sum(1)

    def queries(
        self,
        tasks: Int[Tensor, " b"],
        count: int,
        generator: torch.Generator,
        order: Int[Tensor, "b c"] | None = None,
    ) -> tuple[Float[Tensor, "b q ..."], Int[Tensor, "b q"]]:
        """Draw ``count`` labelled examples a task: a uniform class, then a uniform example of it; see ``support``."""
        classes = self._ordered(tasks, order)
        y = torch.randint(classes.shape[1], (len(tasks), count), generator=generator)
        digit = classes.gather(1, y)
        pick = (torch.rand(y.shape, generator=generator) * self.sizes[digit]).long()
        return scaled(self.x[self.index[digit, pick]]), y

    def all(self, task: int) -> tuple[Float[Tensor, "n ..."], Int[Tensor, " n"]]:
        """Every example of one task with its label."""
        rows = [self.index[c, : self.sizes[c]] for c in self.classes[task]]
        y = torch.cat([torch.full((len(row),), i) for i, row in enumerate(rows)])
        return scaled(self.x[torch.cat(rows)]), y


def bank_of(zoo: Zoo, tasks: Sequence[Task], part: int, *, half: int | None = None) -> ExampleBank:
    """Example bank over tasks on stored data sets; arguments as in ``ExampleBank``.

    Raises:
        BadArtefact: if there is no task, or the data sets have examples of different shapes or types.
    """
    names = sorted({task.dataset for task in tasks})
    if not names:
        raise BadArtefact(f"the zoo {zoo.path} has no tasks to draw examples of", "rebuild the zoo")
    found = {name: zoo.dataset(name) for name in names}
    forms = {(tuple(data["x"].shape[1:]), data["x"].dtype) for data in found.values()}
    if len(forms) > 1:
        raise BadArtefact(f"the data sets {', '.join(names)} have examples of different forms", "rebuild the zoo")
    first, labels, count = {}, [], 0  # classes of one data set follow those of the one before
    for name, data in found.items():
        first[name] = count
        labels.append(data["y"].long() + count)
        count += int(data["y"].max()) + 1
    joined = {key: torch.cat([data[key] for data in found.values()]) for key in ("x", "part")}
    moved = [replace(task, classes=tuple(first[task.dataset] + label for label in task.classes)) for task in tasks]
    return ExampleBank({**joined, "y": torch.cat(labels)}, moved, part, half=half)
