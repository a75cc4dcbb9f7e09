"""One adapter for all tasks: plain LoRA on every linear map of the top layers, learned on episodes of the tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightgen.adapted import PREFIX
from weightgen.types import LabelledTexts

SCALE = 2.0
"""Of the update in training, as with alpha = 2 r."""
FRAMES = ("{}", "this text is an example of: {}", "category: {}")
"""Ways to write a label in training; the plain one is taken three times in five."""


class StaticAdapter(nn.Module):
    """Factors by module path. The modules become known with the base model, or with saved factors."""

    def __init__(self, rank: int) -> None:
        """No modules yet."""
        super().__init__()
        self.rank = rank
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        self.register_load_state_dict_pre_hook(_make_room)

    def start(self, modules: Mapping[str, tuple[int, int]], seed: int) -> None:
        """Factors of an update that is zero.

        Args:
            modules: inputs and outputs of every linear map.
            seed: of the down projections.
        """
        rng = torch.Generator().manual_seed(seed)
        for name, (inputs, outputs) in modules.items():
            self.a[_key(name)] = nn.Parameter(torch.randn(self.rank, inputs, generator=rng) * inputs**-0.5)
            self.b[_key(name)] = nn.Parameter(torch.zeros(outputs, self.rank))

    def modules_changed(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of every linear map that the adapter changes."""
        return {_path(key): (a.shape[1], self.b[key].shape[0]) for key, a in self.a.items()}

    def factors(self, strength: float) -> dict[str, tuple[Tensor, Tensor]]:
        """Both factors of every module; their product is the update times ``strength``."""
        return {_path(key): (a, strength * SCALE * self.b[key]) for key, a in self.a.items()}


def _make_room(module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Before loading: parameters of the sizes that a saved adapter has."""
    assert isinstance(module, StaticAdapter)
    for side, known in (("a", module.a), ("b", module.b)):
        start = f"{prefix}{side}."
        known.clear()
        for name, value in state_dict.items():
            if name.startswith(start):
                known[name.removeprefix(start)] = nn.Parameter(torch.empty_like(value))


def _key(path: str) -> str:
    return path.replace(".", "/")


def _path(key: str) -> str:
    return key.replace("/", ".")


def named(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Factors under the names that PEFT gives them."""
    return {
        f"{PREFIX}{module}.lora_{side}.weight": factor
        for module, pair in factors.items()
        for side, factor in zip("AB", pair, strict=True)
    }


class Episodes:
    """Small pseudo-tasks from training tasks: some labels, and some texts that have one of them."""

    def __init__(self, tasks: Sequence[LabelledTexts], tokens: Any, texts: int, labels: int) -> None:
        """Tokenise the labels.

        Args:
            tasks: where to draw from.
            tokens: makes token ids of texts.
            texts: examples an episode.
            labels: most labels an episode.
        """
        self.tasks, self.texts, self.labels = tasks, texts, labels
        self._frames = [[tokens([frame.format(one) for one in task.text.labels]) for frame in FRAMES] for task in tasks]
        self._rows: list[dict[int, list[int]]] = []
        for task in tasks:
            found: dict[int, list[int]] = {}
            for row, label in enumerate(task.y.tolist()):
                found.setdefault(label, []).append(row)
            self._rows.append(found)

    def draw(self, count: int, rng: torch.Generator) -> list[Episode]:
        """Episodes of ``count`` different tasks, or of all if there are fewer."""
        return [self._one(task, rng) for task in torch.randperm(len(self.tasks), generator=rng)[:count].tolist()]

    def _one(self, task: int, rng: torch.Generator) -> Episode:
        def below(count: int) -> int:
            return int(torch.randint(count, (), generator=rng))

        rows = self._rows[task]
        most = 2 + below(max(1, self.labels - 1)) if below(2) else self.labels
        order = torch.randperm(len(rows), generator=rng)[:most].tolist()
        chosen = [sorted(rows)[i] for i in order]
        k = len(chosen)
        y = [i if i < k <= self.texts else below(k) for i in range(self.texts)]
        picked = [rows[chosen[i]][below(len(rows[chosen[i]]))] for i in y]
        frame = 0 if below(5) < 3 else 1 + below(len(FRAMES) - 1)
        labels = self._frames[task][frame]
        return Episode([self.tasks[task].tokens[i] for i in picked], [labels[i] for i in chosen], torch.tensor(y))


class Episode:
    """Texts, labels, and which label each text has."""

    def __init__(self, texts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], y: Int[Tensor, " n"]) -> None:
        """Keep token ids and answers."""
        self.texts, self.labels, self.y = texts, labels, y

    def loss(self, texts: Float[Tensor, "n d"], labels: Float[Tensor, "k d"], scale: float) -> Float[Tensor, ""]:
        """Cross-entropy of scaled cosines, in units of that of guessing."""
        return nn.functional.cross_entropy(scale * texts @ labels.T, self.y) / torch.tensor(float(len(labels))).log()
