"""The nouns of the toolkit: what a set of weights is, where it came from, how it looks as tokens.

All of them are frozen dataclasses. Importing this module loads no numerical library.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zoo.errors import BadArtefact, UsageError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named tensor of a layout.

    Attributes:
        name: key in the state dict.
        shape: sizes; ``()`` for a scalar.
        dtype: safetensors name of the element type, for example ``"F32"`` or ``"BF16"``.
        layer: index of the layer the tensor belongs to, counted in execution order.
        role: function of the tensor inside its layer (``"weight"``, ``"bias"``, ``"lora_A"`` ...).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layer: int
    role: str

    @property
    def numel(self) -> int:
        """Number of elements."""
        n = 1
        for size in self.shape:
            n *= size
        return n


@dataclass(frozen=True)
class Layout:
    """Everything needed to rebuild a set of weights bit for bit, except the values.

    Attributes:
        kind: registered kind that reads and writes it (``"dense"``, ``"lora"``).
        base_model: identifier of the model that an adapter belongs to, or ``None``.
        tensors: one spec a tensor, in the order of the source file.
        config: JSON-serialisable description (architecture of a network, PEFT configuration of an adapter).
    """

    kind: str
    base_model: str | None
    tensors: tuple[TensorSpec, ...]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def numel(self) -> int:
        """Number of weights over all tensors."""
        return sum(spec.numel for spec in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form; ``from_json`` is its inverse."""
        return {
            "kind": self.kind,
            "base_model": self.base_model,
            "tensors": [[s.name, list(s.shape), s.dtype, s.layer, s.role] for s in self.tensors],
            "config": dict(self.config),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layout:
        """Rebuild a layout from ``to_json``.

        Raises:
            BadArtefact: if a field is missing or of the wrong form.
        """
        try:
            tensors = tuple(
                TensorSpec(name, tuple(shape), dtype, layer, role)
                for name, shape, dtype, layer, role in data["tensors"]
            )
            return cls(data["kind"], data["base_model"], tensors, dict(data["config"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BadArtefact(f"layout description is damaged ({error!r})", "rebuild or collect it again") from None

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the canonical JSON form; equal layouts have equal fingerprints."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.fingerprint)


@dataclass(frozen=True, eq=False)
class Weights:
    """One trained network, head or adapter: a layout and the values that fill it."""

    layout: Layout
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        expected = {spec.name: spec.shape for spec in self.layout.tensors}
        given = {name: tuple(value.shape) for name, value in self.tensors.items()}
        if expected != given:
            wrong = sorted(set(expected.items()) ^ set(given.items()))[:4]
            raise UsageError(f"weights do not fill their layout; first differences: {wrong}")


@dataclass(frozen=True, slots=True)
class Task:
    """A data set that networks of a zoo were trained on, stored beside them.

    Attributes:
        name: unique name in the zoo.
        description: one sentence for people and text encoders.
        dataset: name of the stored data set (``Zoo.dataset``) the examples come from.
        classes: labels of that data set that make up the task, in the order of the network's outputs.
        class_names: readable name of each class.
        split: ``"train"``, ``"val"`` or ``"test"``: whole tasks are held out.
    """

    name: str
    description: str
    dataset: str
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class Record:
    """One row of the catalogue.

    Attributes:
        id: short content identifier, unique in the zoo.
        blob: SHA-256 of the stored tensors.
        layout: how to read the blob.
        task: name of the task it was trained on, if known.
        description: free text, if known.
        lineage: what it descends from; members of one lineage never cross splits.
        split: ``"train"``, ``"val"``, ``"test"`` or ``None`` before splitting.
        metrics: measured numbers, for example ``{"val_accuracy": 0.98}``.
        license: SPDX identifier or text as stated by the source; ``None`` if not stated.
        source: where it came from (path, hub id, recipe).
        dataset: name of the data it was trained on, if known.
        revision: revision of the base model, if known.
    """

    id: str
    blob: str
    layout: Layout
    task: str | None = None
    description: str | None = None
    lineage: str | None = None
    split: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    license: str | None = None
    source: str | None = None
    dataset: str | None = None
    revision: str | None = None


@dataclass(frozen=True, eq=False)
class Tokens:
    """Weights as a sequence of fixed-width tokens.

    Attributes:
        values: standardised weights, zero where masked.
        mask: true where a value is a weight, false where it is padding.
        position: layer, role, row and chunk of each token.
    """

    values: Float[Tensor, "*b t d"]
    mask: Bool[Tensor, "*b t d"]
    position: Int[Tensor, "*b t 4"]
