"""What is tried: the base, retrieved adapters, mixtures of them, generated ones, and those learned from labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weightgen.checkpoint import load_generator
from weightgen.compose import compose
from weightgen.generate.adapters import condition_of
from weightgen.generate.task import GivenTask
from weightgen.generators import Generator
from weightgen.generators.prototype import Prototype
from weightgen.retrieve import Filters, Found, Index, Query
from weightgen.solve.base import Base, scaled
from weightgen.solve.learn import RANK, WRITTEN, Learner, training_steps
from weightgen.solve.ways import WAYS, Way
from zoo.errors import UsageError
from zoo.types import Weights

NEAR, POOL, SCALE = 3, 64, 6.0
GENERATED = ("generated_texts", "generated")
"""Ways that a generator writes without labels."""
DRAWS = 2
"""Adapters of a generator that draws at random."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to weights.

    Attributes:
        name: unique.
        way: key of ``WAYS``.
        about: what it is, for people.
        weights: the adapter; ``None`` for the base and for what is still to be learned.
        learn: from numbers of labelled examples to an adapter.
        cost: steps that learning from these examples costs.
        probability: of beating the base, as retrieval is calibrated.
        parts: names of the candidates that it is made of, which are judged before it.
    """

    name: str
    way: str
    about: str
    weights: Weights | None = None
    learn: Callable[[Sequence[int]], Weights] | None = None
    cost: Callable[[Sequence[int]], float] | None = None
    probability: float | None = None
    parts: tuple[str, ...] = ()

    @property
    def kind(self) -> Way:
        """The way it is."""
        return WAYS[self.way]

    @property
    def level(self) -> int:
        """How simple it is; 0 is the simplest."""
        return self.kind.level


BASE = Candidate("base", "base", WAYS["base"].what)


@dataclass(frozen=True, eq=False)
class Sources:
    """Adapters of a zoo that may help with a task, one a task, the most similar first.

    Attributes:
        adapters: plain LoRA in float32, scaling folded in.
        names: id and task of each.
        probabilities: of beating the base, where retrieval is calibrated.
        about_scores: what retrieval says of its scores.
        calibrated: whether those are probabilities.
        notes: what was left out, and why.
    """

    adapters: tuple[Weights, ...] = ()
    names: tuple[str, ...] = ()
    probabilities: tuple[float | None, ...] = ()
    about_scores: str = "no zoo was searched"
    calibrated: bool = False
    notes: tuple[str, ...] = ()


def find_sources(index: Index, task: GivenTask, base_model: str, filters: Filters | None = None) -> Sources:
    """Search a zoo by all that is known of a task.

    Args:
        index: of the zoo.
        task: what is known.
        base_model: of the adapters.
        filters: what else records have to be.
    """
    wanted = replace(filters or Filters(), kind="lora", base_model=base_model)
    query = Query(task.text.description, task.text.labels, task.text.texts)
    try:
        found = index.search(query, k=max(1, len(index.records)), min_score=float("-inf"), filters=wanted)
    except UsageError as error:
        return Sources(notes=(f"nothing was retrieved: {error.cause}",))
    if not found.hits:
        return Sources(notes=(f"the zoo holds no LoRA adapter of {base_model}",))
    return _read(index, found)


def _read(index: Index, found: Found) -> Sources:
    adapters, names, probabilities, notes, seen = [], [], [], [], set()
    for hit in found.hits:
        task = hit.record.task or hit.record.id
        if task in seen or len(adapters) == POOL:
            continue
        seen.add(task)
        name = f"{task} ({hit.record.id[:12]})"
        try:
            adapters.append(compose([index.zoo.weights(hit.record)], names=[name]).weights)
        except UsageError as error:
            notes.append(f"{name} was left out: {error.cause}")
            continue
        names.append(name)
        probabilities.append(hit.score if found.calibrated else None)
    return Sources(
        tuple(adapters), tuple(names), tuple(probabilities), found.about_scores, found.calibrated, tuple(notes)
    )


def from_sources(sources: Sources) -> Iterator[Candidate]:
    """Single adapters, means and sums that need no labels."""
    adapters, names = list(sources.adapters), sources.names
    for number, adapter in enumerate(adapters[:NEAR]):
        about = f"adapter of the task {names[number]}"
        probability = sources.probabilities[number]
        yield Candidate(f"retrieved-{number + 1}", "retrieved", about, adapter, probability=probability)
    near = adapters[:NEAR]
    if len(near) > 1:
        mean = compose(near, names=names[:NEAR]).weights
        about = ", ".join(names[:NEAR])
        yield Candidate("mean-near", "mean_near", f"mean of {about}", mean)
        yield Candidate("sum-near", "sum_near", f"sum of {about}", scaled(mean, len(near)))
    if len(adapters) > NEAR:
        mean = compose(adapters, rank=RANK, names=names).weights
        yield Candidate("mean-all", "mean_all", f"mean of {len(adapters)} adapters", mean)
        about = f"mean of {len(adapters)} adapters times {SCALE:g}"
        yield Candidate("scaled-all", "scaled_all", about, scaled(mean, SCALE))


def from_generator(folder: Path, base: Base, task: GivenTask, seed: int, name: str) -> Iterator[Candidate]:
    """What a trained generator writes for a task, and its static adapter where it has one.

    Raises:
        UsageError: if the generator was made for another base.
    """
    generator = load_generator(folder)
    own, encoder = generator.problem.text_encoder, base.encoder
    if own is None or encoder.model.config.hidden_size != generator.problem.text_size:
        made = "networks" if own is None else f"adapters of {own}, of hidden size {generator.problem.text_size}"
        raise UsageError(
            f"the generator {folder} writes {made}; {encoder.base_model} has {encoder.model.config.hidden_size}",
            "give generators that were made for the base",
        )
    generator.attach(encoder)
    if isinstance(generator, Prototype):
        bare = replace(task, text=replace(task.text, labels=(), texts=()))
        yield Candidate(f"{name}-static", "static", WAYS["static"].what, _sample(generator, bare, base, seed))
        if not task.text.labels:
            return
    way = "generated_texts" if task.text.texts else "generated"
    for draw in range(DRAWS if generator.random else 1):
        made = _sample(generator, task, base, seed + draw)
        about = f"written by {generator.name} ({folder.name}), seed {seed + draw}"
        yield Candidate(f"{name}-{draw}" if generator.random else name, way, about, made)


def _sample(generator: Generator, task: GivenTask, base: Base, seed: int) -> Weights:
    with base.meter.paying(1):
        condition = condition_of(task, base.encoder)
        return base.named(generator.sample(condition, generator.layout_for(condition), 1, seed)[0])


def learned(learner: Learner, sources: Sources, starts: Sequence[Candidate]) -> Iterator[Candidate]:
    """What labelled examples can be used for.

    Args:
        learner: what learns.
        sources: adapters to mix.
        starts: frozen candidates that training may start from, the most promising first.
    """
    tuned = [_trained(learner, start) for start in starts]
    yield from tuned
    if len(tuned) > 1:
        from_each = {start.name: start.weights for start in starts}
        yield Candidate(
            "soup",
            "soup",
            f"mean of {' and '.join(one.name for one in tuned)}",
            learn=lambda rows: learner.soup(from_each, rows),
            cost=lambda rows: learner.soup_cost(from_each, rows),
            parts=tuple(one.name for one in tuned),
        )
    written = next((one for one in starts[1:] if one.way in GENERATED), None)
    if written is not None:
        yield _interpolated(learner, starts[0], tuned[0].name, written)
    adapters = sources.adapters
    mix = {"atlas": (learner.atlas, learner.atlas_cost), "lorahub": (learner.lorahub, learner.lorahub_cost)}
    found = [
        Candidate(
            name,
            name,
            f"{WAYS[name].what}, over {len(adapters)} adapters",
            learn=lambda rows, learn=learn: learn(adapters, rows),
            cost=cost,
        )
        for name, (learn, cost) in mix.items()
    ]
    yield from (*found[:1], _trained(learner, BASE), *found[1:]) if len(adapters) > 1 else (_trained(learner, BASE),)


def _interpolated(learner: Learner, start: Candidate, tuned: str, written: Candidate) -> Candidate:
    """Between what was trained from a start, a candidate of its own, and what a generator wrote."""
    assert written.weights is not None
    adapter = written.weights
    return Candidate(
        "interpolated",
        "interpolated",
        f"between {tuned} and {written.name}, which counts as {WRITTEN} examples a label",
        learn=lambda rows: learner.interpolate(start.name, start.weights, adapter, rows),
        cost=lambda rows: learner.finetune_cost(start.name, rows),
        parts=(tuned,),
    )


def _trained(learner: Learner, start: Candidate) -> Candidate:
    """Steps of training on the labels, from a candidate or from nothing."""
    way = "trained" if start is BASE else "finetuned_generated" if "generated" in start.way else "finetuned"
    return Candidate(
        "trained" if start is BASE else f"finetuned-{start.name}",
        way,
        f"{training_steps(len(learner.task.texts))} steps on the labels, from {start.name}",
        learn=lambda rows: learner.finetune(start.name, start.weights, rows),
        cost=lambda rows: learner.finetune_cost(start.name, rows),
    )
