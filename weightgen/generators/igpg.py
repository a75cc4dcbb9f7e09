"""IGPG: instruction-guided parameter generation, weights written as a language (arXiv 2504.02012).

A discrete codec turns networks into lines of words (docs/igpg.md), the conditioner turns what is known about a task
into a prefix, and a causal language model writes the words. The last stage, ``behaviour``, is not in the paper:
networks that the model would write are run on training tasks, and their task loss flows back through the words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from weightgen.codecs.quantisers import Codebooks
from weightgen.codecs.vq import VQ
from weightgen.conditioners.joint import ConditionEncoder, ConditionTokens
from weightgen.generators import GeneratorConfig, Stage, register_generator
from weightgen.generators.announcing import AnnouncingGenerator
from weightgen.generators.head import FittedHead
from weightgen.generators.igpg_config import IGPGConfig
from weightgen.generators.line import Line, Vocabulary
from weightgen.generators.prior import Prior, draw, windows
from weightgen.generators.problem import Frame, Problem, TokenSet
from weightgen.generators.refine import Refinement
from weightgen.generators.starts import Starts
from weightgen.types import Batch, Condition, Loss
from zoo.errors import UsageError
from zoo.seeds import seed_of
from zoo.types import Layout


@register_generator
class IGPG(AnnouncingGenerator):
    """A language model over the codes of weights, conditioned on what is known about a task."""

    name: ClassVar[str] = "igpg"
    config_class: ClassVar[type[GeneratorConfig]] = IGPGConfig
    config: IGPGConfig
    fitted: Tensor

    def __init__(self, config: IGPGConfig, problem: Problem) -> None:
        """Make all parts, untrained."""
        super().__init__(config, problem)
        sizes = problem.sizes()
        shapes = {form.input_shape for form in problem.forms}
        self.codec = VQ(config.codec, problem.tokenizer.width, sizes)
        self.conditioner = ConditionEncoder(config.conditioner, shapes, problem.text_size, config.width)
        layouts = [form.layout for form in problem.forms]
        self.head = FittedHead() if config.head == "fitted" else None
        self.starts = None
        if config.start != "codec":
            bodies = config.head == "fitted"
            self.starts = Starts(layouts, problem.tokenizer, config.starts, bodies, config.start)
        self.vocabulary = Vocabulary(self.codec.quantiser.vocabulary)
        self.prior = Prior(
            config.prior,
            config.width,
            config.heads,
            sizes,
            self.vocabulary,
            len(self.codec.vocabulary),
            config.codec.group,
        )
        refine = config.refine
        self.refine = Refinement(refine, config.width, config.heads, config.codec.group) if refine.depth else None
        self.announcer = self.make_announcer(config.announce, config.conditioner.parts, config.stages.announce.steps)
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self._lines: dict[str, Line] = {}

    @property
    def any_classes(self) -> bool:
        """If output layers are fitted."""
        return self.head is not None

    def stages(self) -> Sequence[Stage]:
        """Codec, if it has parameters; starts, if they are; prior; behaviour; announcements, if there are any."""
        behaviour, stages, learned = self.config.behaviour, self.config.stages, (self.prior, self.conditioner)
        refined = (*learned, *(part for part in (self.refine, self.head) if part is not None))
        codec = Stage("codec", stages.codec, self._codec_loss, (self.codec,), judged_by="reconstruct")
        starts: Sequence[Stage] = []
        if self.starts is not None:
            starts = self.starts.stages(stages.starts, self.head, behaviour.queries, shapes=behaviour.shapes)
        return (
            *([] if self.config.codec.autoencoder == "none" else [codec]),
            *starts,
            Stage("prior", stages.prior, self._prior_loss, learned, condition=True),
            Stage(
                "behaviour",
                stages.behaviour,
                self._behaviour_loss,
                refined,
                condition=True,
                queries=behaviour.queries,
                shapes=behaviour.shapes,
            ),
            *self.announce_stages(stages.announce),
        )

    @torch.no_grad()
    def prepare(self, stage: str, networks: Sequence[TokenSet]) -> None:
        """Before the first stage: fit the codec. Before the first of the prior: what words stand for."""
        if not bool(self.fitted):
            frames = [self.frame(one.layout) for one in networks]
            generator = torch.Generator().manual_seed(seed_of(self.config.seed, "codec"))
            self.codec.fit(
                [(one.values, frame.mask, frame.position) for one, frame in zip(networks, frames, strict=True)],
                generator,
            )
            self.fitted.fill_(True)
            self._lines.clear()
            if self.starts is not None:
                self.starts.take(networks)
        if stage == "announce":
            self.write_instructions(self.config.announce)
        if stage == ("prior" if self.config.stages.prior.steps else "behaviour"):
            self.prior.vectors.copy_(self.config.prior.word_size * self.vocabulary.vectors(self.codec))

    def finish(self, stage: str) -> None:
        """After those of the prior: the codec says what words stand for now."""
        if stage in ("prior", "behaviour") and self.config.has_own_words:
            assert isinstance(self.codec.quantiser, Codebooks)
            self.codec.quantiser.replace(self.prior.keep_meaning())

    def line(self, layout: Layout) -> Line:
        """Places of the words of a layout, where the parameters are.

        Raises:
            UsageError: if the layout has a role that the tokenizer has not seen.
        """
        frame = self.frame(layout)
        known = self._lines.get(layout.fingerprint)
        if known is None or known.token.device != frame.mask.device:
            known = self._lines[layout.fingerprint] = Line.of(frame, self.codec)
        return known

    @torch.no_grad()
    def words(
        self, values: Float[Tensor, "b t d"], layout: Layout, start: Float[Tensor, "b t d"] | None = None
    ) -> Int[Tensor, "b n"]:
        """Networks, as changes of a start if there is one, as words in the order of ``line``."""
        frame = self.frame(layout)
        if start is not None:
            values = values - self._beyond(start, frame)
        return self.vocabulary.words(self.codec.encode(values, frame.mask, frame.position), self.line(layout))

    def start(self, condition: Condition, layout: Layout) -> Float[Tensor, "b t d"] | None:
        """The networks to start at, if the config has such: those that do best on the labelled examples.

        Raises:
            UsageError: if there are no labelled examples, or no network has or can be given the shape.
        """
        if self.starts is None:
            return None
        self.starts.check(layout)
        if condition.examples is None:
            raise UsageError(
                "this generator changes trained networks, and examples say which", "give labelled examples"
            )
        return self.starts.fitting(layout, condition.examples, self.head)

    def _beyond(self, start: Float[Tensor, "b t d"], frame: Frame) -> Float[Tensor, "b t d"]:
        """A start less what the codec adds by itself."""
        return (start - self.codec.normal(frame.position)[0]) * frame.mask

    def read(
        self,
        words: Int[Tensor, "b n"],
        layout: Layout,
        condition: ConditionTokens | None = None,
        start: Float[Tensor, "b t d"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Tokens of the networks that words stand for.

        Args:
            words: in the order of ``line``.
            layout: of the networks.
            condition: refined for it, if the generator does that.
            start: what the words change, if not what the codec subtracts.
        """
        vectors, line = self.prior.meaning[words], self.line(layout)
        if condition is not None:
            vectors = self._refined(vectors, words, line, condition)
        return self._decode(vectors, layout, line, start)

    def reconstruct(self, values: Float[Tensor, "b t d"], layout: Layout) -> Float[Tensor, "b t d"]:
        """Encode and decode."""
        frame = self.frame(layout)
        with torch.no_grad():
            return self.codec.reconstruct(values, frame.mask, frame.position)

    @torch.no_grad()
    def write(self, condition: Condition, layout: Layout, generator: torch.Generator) -> Float[Tensor, "b t d"]:
        """Draw words and read them.

        Raises:
            UsageError: if the condition holds nothing that the generator was trained on.
        """
        line, encoded = self.line(layout), self.conditioner(condition)
        uniform = torch.rand(len(encoded.tokens), len(line), generator=generator).to(encoded.tokens.device)
        words = self.prior.write(line, encoded, uniform, self.config.sampling)
        return self._finished(self.read(words, layout, encoded, self.start(condition, layout)), condition, layout)

    def _finished(self, values: Float[Tensor, "b t d"], condition: Condition, layout: Layout) -> Float[Tensor, "b t d"]:
        """Tokens with output layers fitted, if the config says so."""
        return values if self.head is None else self.head.tokens(values, condition, layout, self.problem.tokenizer)

    @torch.no_grad()
    def fill(
        self,
        condition: Condition,
        layout: Layout,
        values: Float[Tensor, "b t d"],
        given: Bool[Tensor, " t"],
        generator: torch.Generator,
    ) -> Float[Tensor, "b t d"]:
        """Given words come first, so that all others know them; see ``Generator.fill``."""
        line, encoded = self.line(layout), self.conditioner(condition)
        order = (~given[line.token]).int().argsort(stable=True)
        start = self.start(condition, layout)
        known = self.words(values * given[:, None], layout, start)[:, order[: int(given[line.token].sum())]]
        uniform = torch.rand(len(values), len(line), generator=generator).to(values.device)
        written = self.prior.write(line.reordered(order), encoded, uniform, self.config.sampling, known)
        made = self.read(written[:, order.argsort()], layout, encoded, start)
        made = self._finished(torch.where(given[:, None], values, made), condition, layout)
        return torch.where(given[:, None], values, made)

    @torch.no_grad()
    def score(self, values: Float[Tensor, "b t d"], condition: Condition, layout: Layout) -> Float[Tensor, " b"]:
        """Bits a word that given networks cost under a condition: the less, the more they look like trained ones.

        Args:
            values: tokens of ``b`` networks, in the frame of the generator's training networks.
            condition: the task of each.
            layout: of all of them.
        """
        line, encoded = self.line(layout), self.conditioner(condition)
        words = self.words(values, layout, self.start(condition, layout))
        total = torch.zeros(len(words), device=words.device)
        for start, first, stop in windows(len(line), self.config.prior.context, self.config.prior.overlap):
            logits = self.prior(words, line, encoded, start, stop)[:, first - start :]
            nats = F.cross_entropy(logits.flatten(0, 1), words[:, first:stop].flatten(), reduction="none")
            total += nats.view(len(words), -1).sum(1)
        return total / len(line) / math.log(2)

    def _refined(
        self, vectors: Float[Tensor, "b n g"], words: Int[Tensor, "b n"], line: Line, condition: ConditionTokens
    ) -> Float[Tensor, "b n g"]:
        if self.refine is None:
            return vectors
        return self.refine(vectors, self.prior.embed(words, vectors, line, condition), condition)

    def _decode(
        self,
        vectors: Float[Tensor, "b n g"],
        layout: Layout,
        line: Line,
        start: Float[Tensor, "b t d"] | None,
    ) -> Float[Tensor, "b t d"]:
        frame = self.frame(layout)
        joined = self.vocabulary.join(vectors, line, len(frame), len(self.codec.vocabulary))
        values = self.codec.decode_vectors(joined, frame.mask, frame.position)
        return values if start is None else values + self._beyond(start, frame)

    def _codec_loss(self, batch: Batch) -> Loss:
        frame = self.frame(batch.layout)
        return self.codec.loss(batch.values, frame.mask, frame.position, batch.generator())

    def _condition(self, batch: Batch, generator: torch.Generator) -> ConditionTokens:
        assert batch.condition is not None
        return self.conditioner(batch.condition, generator)

    def _training_start(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, "b t d"] | None:
        """The networks that those of a batch are changes of."""
        return None if self.starts is None else self.starts.while_training(batch, self.head, generator)

    def _prior_loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the words of trained networks, with some conditions dropped."""
        config, generator = self.config.prior, batch.generator()
        condition = self._condition(batch, generator)
        dropped = torch.rand(len(batch.values), generator=generator) < config.condition_dropout
        condition = self.prior.nothing(condition, dropped.to(condition.tokens.device))
        line, start = self.line(batch.layout), self._training_start(batch, generator)
        words = self.words(batch.values, batch.layout, start)
        if torch.rand((), generator=generator) < config.reorder:
            order = line.layers_first(generator)
            line, words = line.reordered(order), words[:, order]
        every = list(windows(len(line), config.context, config.overlap))
        start, first, stop = every[int(torch.randint(len(every), (), generator=generator))]
        logits = self.prior(words, line, condition, start, stop)[:, first - start :]
        nats = F.cross_entropy(logits.flatten(0, 1), words[:, first:stop].flatten())
        return Loss(nats, {"bits": nats.detach() / math.log(2)})

    def _behaviour_loss(self, batch: Batch) -> Loss:
        """Task loss of the networks that would be written, and what keeps them near trained ones.

        Drafts are drawn all words at once, each after the draft before, the first after a trained network; with the
        same random numbers this comes ever closer to what is written word by word. The gradient goes straight through
        the words of the last one to the mean of what words stand for under the probabilities they were drawn from.
        Where no network was trained, the first draft comes after the mean network, one pass earlier.
        """
        assert batch.queries is not None
        config, sampling, generator = self.config.behaviour, self.config.sampling, batch.generator()
        condition = self._condition(batch, generator)
        line, start = self.line(batch.layout), self._training_start(batch, generator)
        known = len(batch.values) > 0
        frame = self.frame(batch.layout)
        middle = self.codec.normal(frame.position)[0].expand(len(condition.tokens), -1, -1)
        words = self.words(batch.values if known else middle, batch.layout, start)
        uniform = torch.rand(words.shape, generator=generator).to(words.device)
        draft = words
        with torch.no_grad():
            for _ in range(config.passes if known else config.passes + 1):
                draft = draw(self.prior(draft, line, condition) / sampling.temperature, uniform)
        logits = self.prior(draft, line, condition)
        meaning = self.prior.meaning
        mean = (logits / config.softness).softmax(-1) @ meaning
        words_drawn = draw(logits.detach() / sampling.temperature, uniform)
        vectors = meaning[words_drawn] + mean - mean.detach()
        values = self._decode(self._refined(vectors, words_drawn, line, condition), batch.layout, line, start)
        tensors = self.problem.tokenizer.tensors(values, batch.layout)
        if self.head is not None:
            tensors = self.head.given(tensors, batch.condition, batch.layout)
        task = batch.queries.loss(tensors).mean()
        if not config.prior_weight or not known:
            return Loss(task, {"task" if known else "made": task})
        some = slice(math.ceil(config.share * len(words)))
        part = ConditionTokens(condition.tokens[some], condition.mask[some], condition.classes)
        nats = F.cross_entropy(self.prior(words[some], line, part).flatten(0, 1), words[some].flatten())
        return Loss(task + config.prior_weight * nats, {"task": task, "bits": nats.detach() / math.log(2)})
