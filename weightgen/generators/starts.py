"""One trained network of each task, to begin at: the best on validation examples.

Networks of independent starts have nothing in common that their mean could hold, so what is written for a task is a
change of one of them: the one whose embedding in the space of the contrastive stage is nearest to the condition's.
While training it is the task's own, or that of another task, which makes known tasks like new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightgen.generators.problem import TokenSet
from zoo.types import Layout


class Starts(nn.Module):
    """The networks, by layout; empty until they are taken from a zoo or loaded."""

    def __init__(self, layouts: Sequence[Layout], token_width: int) -> None:
        """Make room for the networks of some layouts.

        Args:
            layouts: those that are learned from.
            token_width: values a token.
        """
        super().__init__()
        self._number = {layout.fingerprint: i for i, layout in enumerate(layouts)}
        for i in range(len(layouts)):
            self.register_buffer(f"values_{i}", torch.zeros(0, 0, token_width))
            self.register_buffer(f"tasks_{i}", torch.zeros(0, dtype=torch.long))
        self.register_load_state_dict_pre_hook(_take_size)

    def take(self, networks: Sequence[TokenSet]) -> None:
        """Keep the best network of each task of each layout."""
        for one in networks:
            number, tasks = self._number[one.layout.fingerprint], one.task.unique()
            best = [int(one.score.masked_fill(one.task != task, -torch.inf).argmax()) for task in tasks]
            self.register_buffer(f"values_{number}", one.values[best].clone())
            self.register_buffer(f"tasks_{number}", tasks)

    def of(self, layout: Layout) -> Float[Tensor, "k t d"]:
        """Tokens of the networks of a layout; none of a layout that was not learned from."""
        number = self._number.get(layout.fingerprint)
        return self.get_buffer("values_0")[:0] if number is None else self.get_buffer(f"values_{number}")

    def own(self, layout: Layout, task: Int[Tensor, " b"]) -> Float[Tensor, "b t d"]:
        """Those of training tasks, by their numbers."""
        numbers = self.get_buffer(f"tasks_{self._number[layout.fingerprint]}")
        return self.of(layout)[torch.searchsorted(numbers, task)]

    def other(
        self, layout: Layout, task: Int[Tensor, " b"] | None, count: int, generator: torch.Generator
    ) -> Float[Tensor, "b t d"]:
        """Random ones of other tasks than the given ones; where there is no other, the only one.

        Args:
            layout: one that was learned from.
            task: numbers of ``count`` training tasks, or ``None`` if all networks are of other tasks.
            count: how many.
            generator: source of randomness.
        """
        known = self.of(layout)
        chance = torch.ones(count, len(known))
        if task is not None and len(known) > 1:
            numbers = self.get_buffer(f"tasks_{self._number[layout.fingerprint]}")
            chance[(numbers == task[:, None]).cpu()] = 0
        return known[torch.multinomial(chance, 1, generator=generator)[:, 0].to(known.device)]

    def nearest(
        self,
        layout: Layout,
        condition: Float[Tensor, "b e"],
        embed: Callable[[Tensor, Layout], Float[Tensor, "k e"]],
    ) -> Float[Tensor, "b t d"]:
        """Those nearest to conditions, by cosine in the shared space.

        Args:
            layout: one that was learned from.
            condition: unit vectors of conditions.
            embed: gives those of networks.
        """
        known = self.of(layout)
        return known[(condition @ embed(known, layout).T).argmax(-1)]


def _take_size(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before loading: take the number of networks from the file."""
    for name in dict(module.named_buffers(recurse=False)):
        if prefix + name in state_dict:
            module.register_buffer(name, torch.empty_like(state_dict[prefix + name]))
