"""The view of a trained generator: the space that its contrastive stage shares between tasks and weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from weightgen.checkpoint import load_generator, read_config
from weightgen.generators.latent import LatentGenerator
from weightgen.generators.problem import Form
from weightgen.retrieve.query import Query
from weightgen.retrieve.views import Encoder, Report, Tasks, View
from weightgen.subjects.texts import padded
from weightgen.types import Condition, TaskText
from zoo import kinds
from zoo.architectures import family
from zoo.datasets import Examples
from zoo.errors import UsageError
from zoo.networks import architecture_of
from zoo.symmetry import align
from zoo.types import Record, Weights
from zoo.zoo import Zoo


@final
class LatentView(View):
    """Weights by ``embed_weights``, tasks by ``embed_condition``; records of layouts it never saw have no vector."""

    name = "latent"
    reads = ("description", "labels", "texts", "examples", "weights")

    def __init__(self, folder: Path | str) -> None:
        """Load the generator.

        Raises:
            UsageError: if it has no such space.
            BadArtefact: if the folder holds no generator.
        """
        generator = load_generator(folder)
        if not isinstance(generator, LatentGenerator):
            raise UsageError(
                f"the generator {folder} ({generator.name}) shares no space between tasks and weights",
                "give one over latents, such as d2nwg or mapper",
            )
        self._generator = generator.eval()
        self._files = read_config(Path(folder))["files"]
        text = generator.problem.text_encoder
        self._encoder = None if text is None else Encoder(text)

    @property
    def about(self) -> dict[str, Any]:
        return {"generator": hashlib.sha256(repr(sorted(self._files.items())).encode()).hexdigest()[:16]}

    def key(self, record: Record, tasks: Tasks) -> str:
        return ""

    def vectors(self, zoo: Zoo, tasks: Tasks, records: Sequence[Record], report: Report) -> dict[str, Tensor]:
        found = {}
        for done, record in enumerate(records):
            form = self._generator.problem.form(record.layout)
            if form is not None:
                found[record.id] = self._of(zoo.weights(record), form)
            if done % 64 == 0:
                report(done, len(records))
        return found

    @torch.no_grad()
    def _of(self, weights: Weights, form: Form) -> Tensor:
        tensors = dict(weights.tensors)
        if form.reference is not None:
            architecture = architecture_of(form.layout)
            tensors = align(tensors, form.reference, family(architecture).groups(architecture))
        elif self._generator.config.align:
            tensors = dict(kinds.canonical(weights).tensors)
        values = self._generator.problem.tokenizer.values(tensors, form.layout)
        return self._generator.embed_weights(values[None], form.layout)[0]

    @torch.no_grad()
    def query(self, query: Query) -> Tensor | None:
        if query.weights is not None:
            form = self._generator.problem.form(query.weights.layout)
            return None if form is None else self._of(query.weights, form)
        condition = self._condition(query)
        return None if condition is None else self._generator.embed_condition(condition)[0]

    def _condition(self, query: Query) -> Condition | None:
        """What the generator can read of a query."""
        examples, parts = None, {}
        if query.examples is not None:
            x, y = query.examples
            shapes = {form.input_shape for form in self._generator.problem.forms}
            fits = [shape for shape in shapes if shape and torch.Size(shape).numel() == x[0].numel()]
            examples = Examples.group(x.reshape(len(x), *fits[0]), y) if fits else None
        if self._encoder is not None:
            given = {"description": [query.description] if query.description else [], "labels": query.labels}
            given["texts"] = query.texts
            parts = {name: padded([self._encoder.vectors(list(some))]) for name, some in given.items() if some}
        if examples is None and not parts:
            return None
        words = (TaskText(query.description, query.labels, query.texts),)
        return Condition(examples, words=words, **parts)
