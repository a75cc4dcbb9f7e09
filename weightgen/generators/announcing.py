"""Generators that are told in words which network to write, and announce its layout."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from weightgen.generators import Generator, Stage, StageConfig
from weightgen.generators.announce import AnnounceConfig, Announcer, Shape, announced
from weightgen.generators.instructions import phrase, phrase_of
from weightgen.types import Batch, Condition, LabelledTexts, Loss, Vectors
from zoo.architectures import family
from zoo.build.encoder import TextEncoder
from zoo.errors import UsageError
from zoo.networks import architecture_of
from zoo.seeds import seed_of
from zoo.types import Layout


class AnnouncingGenerator(Generator):
    """Has an announcer, or none.

    Attributes:
        announcer: from ``make_announcer``.
    """

    announcer: Announcer | None
    _instructions: tuple[Vectors, list[Shape]] | None = None
    _encoder: TextEncoder | None = None

    def make_announcer(self, config: AnnounceConfig, parts: Collection[str], steps: int) -> Announcer | None:
        """For networks that are asked for in words: perceptrons of any sizes, all others by their name.

        Args:
            config: which perceptrons, and sizes.
            parts: what conditions hold; without architectures nothing can be announced.
            steps: of training; 0 for no announcer.
        """
        told = "architecture" in parts and steps > 0
        if not told or any("architecture" not in form.layout.config for form in self.problem.forms):
            return None
        made = [architecture_of(form.layout) for form in self.problem.forms]
        activations = sorted({one["activation"] for one in made if one["family"] == "mlp"})
        others = sorted({family(one).describe(one) for one in made if one["family"] != "mlp"})
        return Announcer(config, activations, others, self.problem.text_size)

    def attach(self, encoder: TextEncoder, tasks: Sequence[LabelledTexts] = ()) -> None:
        """Keep the encoder for the instructions that announcements are learned from."""
        self._encoder = encoder

    def announce_stages(self, config: StageConfig) -> Sequence[Stage]:
        """One stage, if there is anything to announce."""
        return [] if self.announcer is None else [Stage("announce", config, self._announce_loss, (self.announcer,))]

    def write_instructions(self, config: AnnounceConfig) -> None:
        """Instructions to learn announcements from: as vectors of tokens, and the networks that they ask for."""
        assert self.announcer is not None
        assert self._encoder is not None
        rng = torch.Generator().manual_seed(seed_of(self.config.seed, "instructions"))
        shapes, forms = self.announcer.random(config.texts, rng), self.problem.forms
        texts = []
        for shape in shapes:
            if shape.kind in self.announcer.others:
                texts.append(phrase_of(architecture_of(self._named(shape.kind)), rng))
                continue
            form = forms[int(torch.randint(len(forms), (), generator=rng))]
            architecture = architecture_of(form.layout)
            classes = family(architecture).outputs(architecture).size
            texts.append(phrase(shape, form.input_shape, classes, config, rng))
        self._instructions = Vectors(*self._encoder.read(texts)), shapes

    def _named(self, name: str) -> Layout:
        """The layout of the network of that name."""
        layouts = (form.layout for form in self.problem.forms)
        return next(one for one in layouts if (made := architecture_of(one)) and family(made).describe(made) == name)

    def layout_for(self, condition: Condition) -> Layout:
        """The layout that an instruction asks for, with the inputs and classes of the examples.

        Raises:
            UsageError: if there is no instruction, or none was learned from, and several layouts were; or if the
                network that is asked for has other classes.
        """
        if self.announcer is None or condition.architecture is None or condition.examples is None:
            return super().layout_for(condition)
        if len(condition) != 1:
            raise UsageError(f"one task is needed, the condition holds {len(condition)}")
        shape = self.announcer.announce(condition.architecture.x, condition.architecture.mask)[0]
        x = condition.examples.x
        if shape.kind not in self.announcer.others:
            return announced(shape, x.shape[3:], x.shape[1])
        layout = self._named(shape.kind)
        made = architecture_of(layout)
        if (classes := family(made).outputs(made).size) != x.shape[1]:
            raise UsageError(
                f"the instruction asks for a {shape.kind}, which has {classes} classes, not {x.shape[1]}",
                "give examples of as many classes",
            )
        return layout

    def _announce_loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the shapes that random instructions ask for."""
        assert self.announcer is not None
        assert self._instructions is not None
        (texts, shapes), device = self._instructions, batch.values.device
        pick = torch.randint(len(shapes), (len(batch.values),), generator=batch.generator())
        longest = int(texts.mask[pick].sum(1).max())
        x, mask = (part[pick, :longest].to(device) for part in (texts.x, texts.mask))
        nats = self.announcer.loss(x, mask, [shapes[i] for i in pick.tolist()])
        return Loss(nats, {"nats": nats.detach()})
