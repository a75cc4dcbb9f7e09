"""What is kept of the training tasks: vectors of labels, of their examples, of texts, and inputs of the last layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from weightgen.prototypes.last_layer import Reader
from weightgen.types import LabelledTexts
from zoo.config import StrictConfig

NAMES = ("labels", "centroids", "pool", "keys")


class MemoryConfig(StrictConfig):
    """How much is kept of every training task."""

    texts_per_class: int = Field(default=16, ge=1, description="examples that a class centroid is the mean of")
    pool: int = Field(default=64, ge=1, description="texts kept as vectors")
    keys: int = Field(default=32, ge=1, description="texts whose inputs of the last layer are kept")


class Memory(nn.Module):
    """Buffers in half precision; no text is kept, only what the adapted encoder makes of it.

    Attributes:
        labels: vector of the label text of every class.
        centroids: unit mean of examples of the same class.
        pool: vectors of texts.
        keys: mean inputs of the last dense map, of texts.
    """

    labels: Tensor
    centroids: Tensor
    pool: Tensor
    keys: Tensor

    def __init__(self) -> None:
        """Nothing is known yet."""
        super().__init__()
        for name in NAMES:
            self.register_buffer(name, torch.zeros(0, 0, dtype=torch.float16))
        self.register_load_state_dict_pre_hook(_make_room)

    def fill(self, tasks: Sequence[LabelledTexts], reader: Reader, config: MemoryConfig, seed: int) -> None:
        """Read the training tasks anew."""
        rng = torch.Generator().manual_seed(seed)
        found: dict[str, list[Tensor]] = {name: [] for name in NAMES}
        for task in tasks:
            labels, _ = reader.survey(reader.tokens(task.text.labels))
            for label in task.y.unique().tolist():
                rows = (task.y == label).nonzero()[:, 0]
                rows = rows[torch.randperm(len(rows), generator=rng)[: config.texts_per_class]]
                vectors, _ = reader.survey([task.tokens[i] for i in rows.tolist()])
                found["labels"].append(labels[label : label + 1])
                found["centroids"].append(F.normalize(vectors.mean(0, keepdim=True), dim=-1))
            rows = torch.randperm(len(task.tokens), generator=rng)[: max(config.pool, config.keys)].tolist()
            vectors, keys = reader.survey([task.tokens[i] for i in rows])
            found["pool"].append(vectors[: config.pool])
            found["keys"].append(keys[: config.keys])
        for name, parts in found.items():
            setattr(self, name, torch.cat(parts).half())

    def get(self, name: str) -> Float[Tensor, "n d"]:
        """One of the buffers in single precision."""
        return getattr(self, name).float()


def _make_room(module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Before loading: buffers of the sizes that are saved."""
    for name in NAMES:
        if (value := state_dict.get(prefix + name)) is not None:
            setattr(module, name, torch.empty_like(value))
