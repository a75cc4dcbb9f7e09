"""What a generator is built for: the layouts that it writes, their tokens, and the networks that it learns from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.architectures import family
from zoo.networks import architecture_of
from zoo.tokens import Tokenizer
from zoo.types import Layout


@dataclass(frozen=True, eq=False)
class Form:
    """One layout that a generator writes.

    Attributes:
        layout: names and shapes.
        reference: alignment reference in whose frame networks are generated; ``None`` if they are not aligned.
        input_shape: shape of one example; empty for adapters of a text encoder.
    """

    layout: Layout
    reference: Mapping[str, Tensor] | None = None
    input_shape: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Problem:
    """What a generator is built for: the layouts it writes, and the form of a condition.

    Attributes:
        forms: the layouts that it learns from.
        tokenizer: fitted on the train split.
        text_size: size of the vectors that texts of a condition are given as; 0 if there are none.
        text_encoder: name of the frozen encoder that makes them.
    """

    forms: tuple[Form, ...]
    tokenizer: Tokenizer
    text_size: int = 0
    text_encoder: str | None = None

    def form(self, layout: Layout) -> Form | None:
        """The form of a layout, or ``None`` if it was not learned from."""
        return next((form for form in self.forms if form.layout.fingerprint == layout.fingerprint), None)

    def sizes(self) -> tuple[int, int, int, int]:
        """Number of layers, roles, rows and chunks that occur."""
        most = torch.stack([self.tokenizer.template(form.layout)[1].amax(0) for form in self.forms]).amax(0) + 1
        layers, _, rows, chunks = most.tolist()
        return layers, len(self.tokenizer.roles), rows, chunks


@dataclass(frozen=True, eq=False)
class Frame:
    """The tokens of a layout without their values.

    Attributes:
        layout: names and shapes.
        mask: where a token holds a value.
        position: layer, role, row and chunk of each token.
        class_of_token: the class whose output weights a token holds, or -1.
        output: true for tokens of the output layer of a classifier.
    """

    layout: Layout
    mask: Bool[Tensor, "t d"]
    position: Int[Tensor, "t 4"]
    class_of_token: Int[Tensor, " t"]
    output: Bool[Tensor, " t"]

    def __len__(self) -> int:
        return len(self.position)

    @classmethod
    def of(cls, layout: Layout, tokenizer: Tokenizer) -> Frame:
        """Frame of a layout.

        Raises:
            UsageError: if the layout has a role that the tokenizer has not seen.
        """
        mask, position = tokenizer.template(layout)
        return cls(layout, mask, position, *_outputs(layout, tokenizer, position))

    def to(self, device: torch.device) -> Frame:
        """The same frame on another device."""
        own = (self.mask, self.position, self.class_of_token, self.output)
        return Frame(self.layout, *(part.to(device) for part in own))


def _outputs(
    layout: Layout, tokenizer: Tokenizer, position: Int[Tensor, "t 4"]
) -> tuple[Int[Tensor, " t"], Bool[Tensor, " t"]]:
    """The class of each token and whether it is of the last layer, whose rows belong to one class each."""
    classes, output = torch.full((len(position),), -1), torch.zeros(len(position), dtype=torch.bool)
    if layout.config.get("architecture") is None:
        return classes, output
    architecture = architecture_of(layout)
    specs = {spec.name: spec for spec in layout.tensors}
    for name, axis in family(architecture).outputs(architecture).axes:
        spec = specs[name]
        here = (position[:, :2] == torch.tensor([spec.layer, tokenizer.roles.index(spec.role)])).all(-1)
        output |= here
        if axis == 0 and len(spec.shape) > 1:
            classes[here] = position[here, 2]
    return classes, output


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Tokens of the training networks of one layout, for statistics.

    Attributes:
        values: their tokens.
        layout: their names and shapes.
        task: number of the task of each, as in a batch whose classes keep their order.
        score: of each on validation examples; higher is better.
    """

    values: Float[Tensor, "n t d"]
    layout: Layout
    task: Int[Tensor, " n"]
    score: Float[Tensor, " n"]
