"""Tasks made at random from the training images of all image tasks; see ``weightgen.mix``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from weightgen.mix import Images, MixConfig, look, turned
from weightgen.subjects.images import ImageQueries, ImageSubject
from weightgen.types import Condition
from zoo.datasets import Examples
from zoo.errors import UsageError
from zoo.tasks import scaled

Source = tuple[int, int]
"""Number of an image subject, and of a class in its bank."""
Part = tuple[Source, int]
"""A class, and the way that its images lie."""


class MixedTasks:
    """Draws tasks of the form of one layout from the classes of several.

    There are as many of them as there are choices of classes and changes, and no network was trained on any. Classes
    that are one over the other have the larger of two values at every pixel.
    """

    def __init__(self, subject: ImageSubject, pool: Sequence[ImageSubject], config: MixConfig) -> None:
        """Collect the classes.

        Args:
            subject: says what networks the tasks are for, and how single images vary.
            pool: where classes come from; ``subject`` may be one of them.
            config: how they are put together.

        Raises:
            UsageError: if examples are no images, or there are not enough classes for one task.
        """
        for one in (subject, *pool):
            if len(one.input_shape) not in (2, 3) or one.input_shape[:-2] not in ((), (1,), (3,)):
                raise UsageError(
                    f"tasks cannot be mixed from examples of shape {one.input_shape}, which are no images",
                    "set behaviour.mix.share to 0",
                )
        self.subject, self.pool, self.config = subject, tuple(pool), config
        self._sets: list[list[Source]] = []  # classes that occur together
        for number, one in enumerate(pool):
            together = {tuple(sorted(set(row))) for row in one.bank.classes.tolist()}
            self._sets += [[(number, c) for c in row] for row in sorted(together)]
        self._all = sorted({source for row in self._sets for source in row})
        self._count = subject.bank.classes.shape[1]
        if len(self._all) < self._count:
            raise UsageError(
                f"{len(self._all)} classes are too few to mix tasks of {self._count} from",
                "set behaviour.mix.share to 0",
            )

    def draw(self, tasks: int, shots: int, queries: int, generator: torch.Generator) -> tuple[Condition, ImageQueries]:
        """Make some tasks.

        Args:
            tasks: how many.
            shots: examples a class in the condition.
            queries: labelled examples a task, for the loss.
            generator: source of randomness.
        """
        drawn = [self._task(shots, queries, generator) for _ in range(tasks)]
        x, y = torch.stack([x for x, _ in drawn]), torch.stack([y for _, y in drawn])
        x = self.subject.varied(x, generator)
        given = x[:, : self._count * shots].unflatten(1, (self._count, shots))
        condition = Condition(Examples(given, torch.ones(given.shape[:3], dtype=torch.bool)))
        asked = slice(self._count * shots, None)
        return condition, ImageQueries(self.subject.architecture, x[:, asked], y[:, asked])

    def _task(
        self, shots: int, queries: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "n ..."], Int[Tensor, " n"]]:
        """Examples of one task: ``shots`` of every class in order, then those of random classes."""
        classes = self._classes(generator)
        given = torch.arange(len(classes)).repeat_interleave(shots)
        y = torch.cat([given, torch.randint(len(classes), (queries,), generator=generator)])
        shape = self.subject.input_shape
        channels = 1 if len(shape) == 2 else shape[0]
        seen = look(channels, self.config.change, generator)
        x = torch.zeros(len(y), channels, *shape[-2:])
        for c, parts in enumerate(classes):
            here = (y == c).nonzero()[:, 0]
            images = [seen(self._images(part, len(here), generator)) for part in parts]
            x[here] = images[0] if len(images) == 1 else torch.maximum(*images)
        return x.view(-1, *shape), y

    def _classes(self, generator: torch.Generator) -> list[list[Part]]:
        """What every class of a task is made of."""
        large = [row for row in self._sets if len(row) >= self._count]
        chosen = self._all
        if large and self._chance(self.config.one_set, generator):
            chosen = large[int(torch.randint(len(large), (), generator=generator))]
        order = torch.randperm(len(chosen), generator=generator)[: self._count].tolist()
        others = torch.randint(len(chosen), (self._count,), generator=generator).tolist()
        result = []
        for first, second in zip(order, others, strict=True):
            both = [first, second] if self._chance(self.config.blend, generator) else [first]
            result.append([(chosen[i], self._way(generator)) for i in both])
        return result

    def _way(self, generator: torch.Generator) -> int:
        return int(torch.randint(8, (), generator=generator)) if self._chance(self.config.turn, generator) else 0

    def _images(self, part: Part, count: int, generator: torch.Generator) -> Images:
        """Random images of a class, in the size that is wanted, with the channels that they have."""
        (number, c), way = part
        bank = self.pool[number].bank
        pick = (torch.rand(count, generator=generator) * bank.sizes[c]).long()
        x = scaled(bank.x[bank.index[c, pick]])
        x = x[:, None] if x.ndim == 3 else x
        side = self.subject.input_shape[-2:]
        if x.shape[-2:] != side:
            x = F.interpolate(x, side, mode="bilinear", antialias=True)
        return turned(x, way)

    @staticmethod
    def _chance(value: float, generator: torch.Generator) -> bool:
        return bool(torch.rand((), generator=generator) < value)
