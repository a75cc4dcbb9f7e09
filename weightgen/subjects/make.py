"""The subject of a layout of a zoo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from weightgen.generators import GeneratorConfig
from weightgen.subjects import Subject
from weightgen.subjects.images import ImageSubject
from weightgen.subjects.texts import AdaptedEncoder, TextData, TextSubject
from zoo.architectures import Architecture, family
from zoo.build.encoder import EncoderConfig, TextEncoder
from zoo.datasets import bank_of
from zoo.errors import UsageError
from zoo.networks import architecture_of
from zoo.types import Layout, Task
from zoo.zoo import Zoo


class TextWords:
    """A frozen text encoder, and the vectors it gave for descriptions and class names."""

    def __init__(self, name: str) -> None:
        """Load the encoder; errors as in ``zoo.build.encoder.TextEncoder``."""
        self.encoder = TextEncoder(EncoderConfig(name=name))
        self.encoder.model.requires_grad_(False)
        self.size: int = self.encoder.model.config.hidden_size
        self._known: dict[str, Tensor] = {}

    def vectors(self, texts: Sequence[str]) -> Float[Tensor, "n e"]:
        """Unit vectors; a text is read once, however many tasks and layouts share it."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= zip(new, self.encoder.encode(new), strict=True)
        return torch.stack([self._known[text] for text in texts])

    def of_task(self, task: Task, architecture: Architecture) -> Mapping[str, Tensor]:
        """Vectors of the description, of the class names, and of what the architecture is called."""
        return {
            "description": self.vectors([task.description]),
            "labels": self.vectors(task.class_names),
            "architecture": self.vectors([family(architecture).describe(architecture)]),
        }


def subject_of(
    zoo: Zoo,
    layout: Layout,
    tasks: Sequence[Task],
    part: int,
    config: GeneratorConfig,
    *,
    half: int | None = None,
    words: TextWords | None = None,
    vary: bool = False,
) -> Subject:
    """Make the subject for networks of a layout.

    Args:
        zoo: where examples are stored.
        layout: of the networks.
        tasks: their tasks.
        part: train (0) or validation (1) examples.
        config: of the generator.
        half: 0 or 1 keeps every other example only, so that two subjects share none.
        words: encoder of descriptions and class names; by default they are not part of conditions.
        vary: change examples at random, as the config says.

    Raises:
        UsageError: if networks of the layout cannot be run, or adapters are given without a text encoder.
    """
    if layout.kind == "lora":
        if words is None:
            raise UsageError("adapters are learned from with a text encoder", "set text_encoder in the config")
        adapted = AdaptedEncoder(words.encoder, layout)
        return TextSubject(
            adapted, [TextData.of(task, zoo.dataset(task.dataset), words.encoder, part, half) for task in tasks]
        )
    bank = bank_of(zoo, tasks, part, half=half)
    architecture = architecture_of(layout)
    known = None if words is None else {task.name: words.of_task(task, architecture) for task in tasks}
    return ImageSubject(architecture, bank, tasks, vary=config.augment if vary else None, words=known)
