"""Trained networks of each task to begin at: the best on validation examples.

Networks of independent starts have nothing in common that their mean could hold, so what is written for a task is a
change of one of them: the one that does best on the labelled examples of the condition. While training it is one of the
task's own, or of another task, which makes known tasks like new ones. Or a few of all tasks serve every task and are
learned further in a stage of their own, so that output layers fitted to the examples of any task do well on them (a
meta-learned initialisation whose inner loop is the closed form of the output layer, as in arXiv 1805.08136).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightgen.generators import Stage, StageConfig
from weightgen.generators.head import FittedHead, HeadName
from weightgen.generators.problem import Frame, TokenSet
from weightgen.mix import MixConfig
from weightgen.shapes import ShapesConfig
from weightgen.types import Batch, Loss
from zoo.architectures import resized
from zoo.datasets import Examples
from zoo.errors import UsageError
from zoo.networks import architecture_of, logits_many
from zoo.tokens import Tokenizer
from zoo.types import Layout

StartName = Literal["codec", "task", "other", "learned"]


def check_start(start: StartName, head: HeadName, rename_classes: bool, shapes: ShapesConfig) -> None:
    """Refuse settings of a generator's config that leave no network to start at, or one of no use.

    Raises:
        ValueError: for pydantic to report.
    """
    if start == "task" and rename_classes:
        raise ValueError("networks to start at have their classes in one order: set rename_classes to false")
    if start in ("task", "other") and shapes.share:
        raise ValueError("shapes made at random have no network to start at: set behaviour.shapes.share to 0")
    if start in ("other", "learned") and head != "fitted":
        raise ValueError("output layers of other tasks are of no use: set head to fitted")


class Starts(nn.Module):
    """The networks, by layout; empty until they are taken from a zoo or loaded."""

    def __init__(
        self,
        layouts: Sequence[Layout],
        tokenizer: Tokenizer,
        keep: int = 1,
        bodies: bool = False,
        way: StartName = "task",
    ) -> None:
        """Make room for the networks of some layouts.

        Args:
            layouts: those that are learned from.
            tokenizer: of their tokens.
            keep: networks a task; of all tasks, if they are learned.
            bodies: networks also serve layouts that differ from theirs in the output layer, which is then zero, or in
                shape.
            way: which of them training starts at; if ``"learned"``, they are parameters.
        """
        super().__init__()
        self._tokenizer, self._keep, self._bodies, self._way = tokenizer, keep, bodies, way
        self._frames = [Frame.of(layout, tokenizer) for layout in layouts]
        self.moved = nn.ParameterList(
            nn.Parameter(torch.zeros(keep, len(frame), tokenizer.width)) for frame in self._frames if self.learned
        )
        for i in range(len(layouts)):
            self.register_buffer(f"values_{i}", torch.zeros(0, 0, tokenizer.width))
            self.register_buffer(f"tasks_{i}", torch.zeros(0, dtype=torch.long))
        self.register_load_state_dict_pre_hook(_take_size)

    @property
    def learned(self) -> bool:
        """Whether the networks are parameters."""
        return self._way == "learned"

    def take(self, networks: Sequence[TokenSet]) -> None:
        """Keep the best networks of each layout: of each task, or of all if they are learned."""
        numbers = {frame.layout.fingerprint: i for i, frame in enumerate(self._frames)}
        for one in networks:
            number, best = numbers[one.layout.fingerprint], []
            groups = [torch.ones_like(one.task)] if self.learned else [one.task == t for t in one.task.unique()]
            for group in groups:
                rows = group.nonzero().flatten()
                best.append(rows[one.score[rows].argsort(descending=True, stable=True)[: self._keep]])
            rows = torch.cat(best)
            self.register_buffer(f"values_{number}", one.values[rows].clone())
            self.register_buffer(f"tasks_{number}", one.task[rows])

    def known(self, layout: Layout) -> tuple[Float[Tensor, "k t d"], Int[Tensor, " k"]]:
        """Tokens of the networks that serve a layout, and the numbers of their tasks; perhaps none.

        Where bodies serve other layouts and no network has the wanted body, those that can be brought into its shape.
        """
        for move in (self._same_body, self._resized):
            found = [
                (moved, self.get_buffer(f"tasks_{i}"))
                for i, own in enumerate(self._frames)
                if len(values := self._values(i)) and (moved := move(values, own, layout)) is not None
            ]
            if found:
                values, tasks = zip(*found, strict=True)
                return torch.cat(values), torch.cat(tasks)
        return self.get_buffer("values_0")[:0], self.get_buffer("tasks_0")[:0]

    def check(self, layout: Layout) -> None:
        """See that networks serve a layout.

        Raises:
            UsageError: if none does.
        """
        if len(self.known(layout)[0]):
            return
        architecture = layout.config.get("architecture", layout.fingerprint[:12])
        raise UsageError(
            f"no network that this generator starts at has, or can be brought into, the shape {architecture}",
            "ask for other hidden layers of a perceptron that it learned from, or other blocks of a residual network, "
            "and for everything else as it was learned",
        )

    def _values(self, number: int) -> Float[Tensor, "k t d"]:
        """The networks of one layout as they are by now."""
        taken = self.get_buffer(f"values_{number}")
        if not self.learned or not len(taken):
            return taken
        return taken + self.moved[number][: len(taken)] * self._frames[number].mask.to(taken.device)

    def _same_body(self, values: Float[Tensor, "k t d"], own: Frame, layout: Layout) -> Float[Tensor, "k s d"] | None:
        """Tokens of one layout as those of another; ``None`` if it is another in more than outputs, or must not be."""
        if own.layout.fingerprint == layout.fingerprint:
            return values
        if not self._bodies:
            return None
        functions = {one.config.get("architecture", {}).get("activation") for one in (own.layout, layout)} - {None}
        if len(functions) > 1:
            return None
        other = Frame.of(layout, self._tokenizer)
        here, there = ~own.output, ~other.output
        if int(here.sum()) != int(there.sum()) or not torch.equal(own.position[here], other.position[there]):
            return None
        if not torch.equal(own.mask[here], other.mask[there]):
            return None
        result = values.new_zeros(len(values), len(other), values.shape[2])
        result[:, there] = values[:, here]
        return result

    def _resized(self, values: Float[Tensor, "k t d"], own: Frame, layout: Layout) -> Float[Tensor, "k s d"] | None:
        """Tokens of networks in the shape of another layout of their family."""
        if not self._bodies or "architecture" not in layout.config:
            return None
        tensors = self._tokenizer.tensors(values, own.layout)
        made = resized(architecture_of(own.layout), tensors, architecture_of(layout))
        return None if made is None else self._tokenizer.values(made, layout)

    def while_training(
        self, batch: Batch, head: FittedHead | None, generator: torch.Generator
    ) -> Float[Tensor, "b t d"] | None:
        """Those that the networks of a batch are changes of; ``None`` where none serves the layout.

        Those of the tasks themselves, of other tasks, or, if they are learned, the ones that examples choose.
        """
        if not len(self.known(batch.layout)[0]):
            return None
        if self._way == "task":
            return self.own(batch.layout, batch.task, generator)
        assert batch.condition is not None
        if self.learned:
            assert batch.condition.examples is not None
            return self.fitting(batch.layout, batch.condition.examples, head)
        task = batch.task if len(batch.task) else None  # tasks made at random have no network of their own
        return self.other(batch.layout, task, len(batch.condition), generator)

    def stages(
        self,
        config: StageConfig,
        head: FittedHead | None,
        queries: int,
        mix: MixConfig | None = None,
        shapes: ShapesConfig | None = None,
    ) -> Sequence[Stage]:
        """The stage of learned starts, which minimises the task loss of the starts themselves; none for others.

        Args:
            config: optimisation.
            head: fits output layers.
            queries: labelled examples a task and step.
            mix: which steps are on tasks made at random.
            shapes: which steps are on shapes made at random.
        """
        if not self.learned:
            return []
        assert head is not None

        def loss(batch: Batch) -> Loss:
            start = self.while_training(batch, head, batch.generator())
            assert start is not None
            assert batch.queries is not None
            tensors = head.given(self._tokenizer.tensors(start, batch.layout), batch.condition, batch.layout)
            task = batch.queries.loss(tensors).mean()
            return Loss(task, {"task": task})

        return [Stage("starts", config, loss, (self, head), condition=True, queries=queries, mix=mix, shapes=shapes)]

    def own(self, layout: Layout, task: Int[Tensor, " b"], generator: torch.Generator) -> Float[Tensor, "b t d"]:
        """Random ones of each training task.

        Args:
            layout: one that was learned from.
            task: numbers of training tasks.
            generator: source of randomness.
        """
        known, numbers = self.known(layout)
        return self._draw(known, (numbers == task.to(numbers.device)[:, None]), generator)

    def other(
        self, layout: Layout, task: Int[Tensor, " b"] | None, count: int, generator: torch.Generator
    ) -> Float[Tensor, "b t d"]:
        """Random ones of other tasks than the given ones; where there is no other, any.

        Args:
            layout: one that networks serve.
            task: numbers of ``count`` training tasks, or ``None`` if all networks are of other tasks.
            count: how many.
            generator: source of randomness.
        """
        known, numbers = self.known(layout)
        allowed = torch.ones(count, len(known), dtype=torch.bool, device=known.device)
        if task is not None:
            allowed = numbers != task.to(numbers.device)[:, None]
            allowed |= ~allowed.any(1, keepdim=True)
        return self._draw(known, allowed, generator)

    @staticmethod
    def _draw(known: Tensor, allowed: Tensor, generator: torch.Generator) -> Tensor:
        return known[torch.multinomial(allowed.float().cpu(), 1, generator=generator)[:, 0].to(known.device)]

    def fitting(self, layout: Layout, examples: Examples, head: FittedHead | None) -> Float[Tensor, "b t d"]:
        """Those with the smallest cross-entropy on labelled examples.

        Args:
            layout: one that networks serve.
            examples: of ``b`` tasks; equal tasks in a row are judged once.
            head: where output layers are fitted, networks are judged on examples held back from that.
        """
        known, _ = self.known(layout)
        if len(known) == 1:
            return known.expand(len(examples.mask), -1, -1)
        return known[self._fitting(known.detach(), layout, examples, head)]

    @torch.no_grad()
    def _fitting(self, known: Tensor, layout: Layout, examples: Examples, head: FittedHead | None) -> list[int]:
        tensors, architecture = self._tokenizer.tensors(known, layout), architecture_of(layout)
        chosen: list[int] = []
        for i in range(len(examples.mask)):
            if i and all(torch.equal(part[i], part[i - 1]) for part in (examples.mask, examples.x)):
                chosen.append(chosen[-1])
                continue
            if head is None:
                x, y = examples.flat(i)
                logits = logits_many(architecture, tensors, x.expand(len(known), *x.shape)).float()
                loss = F.cross_entropy(logits.mT, y.expand(len(known), -1), reduction="none").mean(1)
            else:
                same = Examples(*(part[i].expand(len(known), *part[i].shape) for part in (examples.x, examples.mask)))
                loss = head.held_back(architecture, tensors, same)
            chosen.append(int(loss.argmin()))
        return chosen

    def nearest(
        self,
        layout: Layout,
        condition: Float[Tensor, "b e"],
        embed: Callable[[Tensor, Layout], Float[Tensor, "k e"]],
    ) -> Float[Tensor, "b t d"]:
        """Those nearest to conditions, by cosine in a shared space.

        Args:
            layout: one that networks serve.
            condition: unit vectors of conditions.
            embed: gives those of networks.
        """
        known, _ = self.known(layout)
        return known[(condition @ embed(known, layout).T).argmax(-1)]


def _take_size(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before loading: take the number of networks from the file."""
    for name in dict(module.named_buffers(recurse=False)):
        if prefix + name in state_dict:
            module.register_buffer(name, torch.empty_like(state_dict[prefix + name]))
