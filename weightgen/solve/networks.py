"""Networks for labelled examples: like those of a zoo, their aligned means, written by generators, trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from weightgen.checkpoint import load_generator
from weightgen.compose import compose
from weightgen.evaluation.classification import macro_f1
from weightgen.generate.finetune import finetune_network
from weightgen.generate.networks import Wish, ask
from weightgen.retrieve import Filters, Found, Index, Query
from weightgen.solve.budget import Meter, reading
from weightgen.solve.candidates import BASE, DRAWS, NEAR, Candidate, Sources
from weightgen.solve.halving import Report, halve
from weightgen.solve.journal import Journal
from weightgen.solve.judge import BLOCKS, Judge
from weightgen.solve.solution import Solution, spent
from zoo.architectures import Architecture, family
from zoo.build.vectorised import initialise
from zoo.errors import NetworkError, UsageError
from zoo.kinds.dense import layout_of
from zoo.networks import architecture_of, logits, takes
from zoo.types import Weights

POOL = 16
"""Networks of the zoo that are looked at."""
STEPS = 100
"""Updates of training, of up to 64 examples each."""
COMMONEST = "always the commonest class"
Make = Callable[[Sequence[int]], Weights]


@final
class Examples:
    """Labelled examples of a task, and the meter that pays for every network that reads them.

    Attributes:
        x: inputs.
        y: classes from 0.
        labels: names of the classes.
        meter: what is charged.
    """

    def __init__(self, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], meter: Meter) -> None:
        """Keep them."""
        self.x, self.y, self.meter = x, y, meter
        self.labels = tuple(str(label) for label in range(int(y.max()) + 1))

    def logits(self, weights: Weights | None, items: Sequence[Tensor], /) -> Float[Tensor, "n c"]:
        """What a network says; without one, the commonest class."""
        with self.meter.paying(reading(len(items))):
            if weights is None:
                commonest = torch.bincount(self.y, minlength=len(self.labels)).argmax()
                return F.one_hot(commonest.expand(len(items)), len(self.labels)).float()
            return logits(architecture_of(weights.layout), weights.tensors, torch.stack(list(items))).detach()

    def fits(self, architecture: Architecture) -> bool:
        """Whether a network takes these inputs and has these classes."""
        outputs = family(architecture).outputs(architecture).size
        return outputs == len(self.labels) and takes(architecture, self.x.shape[1:])


@dataclass(frozen=True, eq=False)
class NetworkMeans:
    """What candidates are made from.

    Attributes:
        index: of the zoo, if there is one.
        generators: folders of trained generators.
        path: file of the examples, for messages.
    """

    index: Index | None
    generators: Sequence[Path]
    path: Path


def solve_networks(
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    description: str,
    means: NetworkMeans,
    journal: Journal,
    *,
    seed: int = 0,
    report: Report | None = None,
) -> Solution:
    """Find the best network for labelled examples, or say that none is better than the commonest class.

    Args:
        x, y: the examples.
        description: the task in a sentence, or nothing.
        means: what candidates are made from.
        journal: answers of an interrupted run, where to keep them, and the budget.
        seed: the same seed, and a budget in steps, give the same result.
        report: progress.

    Raises:
        UsageError: if a class has too few examples, or there is neither a network to begin with nor a generator that
            fits.
    """
    if (fewest := int(torch.bincount(y).min())) < BLOCKS:
        raise UsageError(f"a class has {fewest} examples", f"give at least {BLOCKS} of every class, labelled from 0")
    told = report or (lambda *_: None)
    told("find candidates", 0, 1)
    examples = Examples(x, y, journal.meter)
    sources = _sources(means.index, examples, description)
    makers = [one for folder in means.generators for one in _generators(folder, examples, means.path, seed)]
    if not sources.adapters and not makers:
        raise UsageError(
            f"nothing is known to begin with: {'; '.join(sources.notes) or 'no zoo was given'}",
            "give --zoo with networks for such examples, or --generator",
        )
    told("find candidates", 1, 1)
    frozen = [replace(BASE, about=COMMONEST), *_mixed(sources)]
    layout = sources.adapters[0].layout if sources.adapters else makers[0][1](range(len(y))).layout
    fresh = _fresh(architecture_of(layout), seed)
    judge = Judge(examples, list(x), y, journal, seed)

    def learned(starts: Sequence[Candidate]) -> list[Candidate]:
        """Generated from the examples, and trained on them, from there, from the best, and from nothing."""
        found = [
            Candidate(name, "generated", f"written by {name} from the examples", learn=make, cost=lambda _: 1.0)
            for name, make in makers
        ]
        begin: dict[str, tuple[str, Make]] = {}
        for name, make in makers[:1]:
            begin[f"finetuned-{name}"] = ("finetuned_generated", make)
        for start in starts[:1]:
            begin[f"finetuned-{start.name}"] = ("finetuned", lambda _, start=start: _known(start))
        begin["trained"] = ("trained", lambda _: fresh)
        for name, (way, make) in begin.items():
            origin = "a random start" if way == "trained" else name.removeprefix("finetuned-")
            about = f"{STEPS} steps on the examples, from {origin}"

            def learn(rows: Sequence[int], make: Make = make) -> Weights:
                start, chosen = make(rows), list(rows)
                with examples.meter.paying(STEPS):
                    return finetune_network(architecture_of(start.layout), start, x[chosen], y[chosen], STEPS, seed)[0]

            found.append(Candidate(name, way, about, learn=learn, cost=lambda _: float(STEPS)))
        return found

    search = halve(judge, frozen, learned, None, told)
    choice = search.choice
    told("write", 0, 1)
    weights = choice.weights if choice.learn is None else choice.learn(range(len(y)))
    notes = [*sources.notes, f"the base is: {COMMONEST} of the examples"]
    if journal.resumed:
        notes.append("an interrupted search of the same task was continued")
    controls = {}
    if len(sources.adapters) > NEAR:
        found = examples.logits(sources.adapters[-1], list(x)).argmax(-1)
        controls[f"the least similar network, {sources.names[-1]}"] = round(macro_f1(found, y), 4)
    return Solution(weights, choice, search, "labels", tuple(notes), sources, controls, spent(journal))


def _known(start: Candidate) -> Weights:
    assert start.weights is not None
    return start.weights


def _fresh(architecture: Architecture, seed: int) -> Weights:
    tensors = {name: value[0].contiguous() for name, value in initialise(architecture, [seed]).items()}
    return Weights(layout_of(architecture), tensors)


def _sources(index: Index | None, examples: Examples, description: str) -> Sources:
    """Networks of a zoo for such examples, the most similar first."""
    if index is None:
        return Sources()
    notes = []

    def search(text: str) -> Found:
        query = Query(text, examples=(examples.x, examples.y))
        return index.search(query, k=max(1, len(index.records)), min_score=float("-inf"), filters=Filters(kind="dense"))

    try:
        try:
            found = search(description)
        except NetworkError as error:  # the examples say enough
            notes.append(f"networks were found by the examples alone: {error.cause}")
            found = search("")
    except UsageError as error:
        return Sources(notes=(*notes, f"nothing was retrieved: {error.cause}"))
    networks, names = [], []
    for hit in found.hits:
        if len(networks) < POOL and examples.fits(architecture_of(hit.record.layout)):
            networks.append(index.zoo.weights(hit.record))
            names.append(f"{hit.record.task or 'network'} ({hit.record.id[:12]})")
    if not networks:
        wanted = f"{tuple(examples.x.shape[1:])} inputs and {len(examples.labels)} classes"
        notes.append(f"the zoo holds no network for {wanted}")
    return Sources(tuple(networks), tuple(names), about_scores=found.about_scores, notes=tuple(notes))


def _mixed(sources: Sources) -> Iterator[Candidate]:
    networks, names = sources.adapters, sources.names
    for number, network in enumerate(networks[:NEAR]):
        yield Candidate(f"retrieved-{number + 1}", "retrieved", f"network of {names[number]}", network)
    alike = [one for one in networks if one.layout.fingerprint == networks[0].layout.fingerprint]
    for name, count in (("mean-near", NEAR), ("mean-all", POOL)):
        if len(alike) > (1 if count == NEAR else NEAR):
            mean = compose(alike[:count], "aligned_mean").weights
            about = f"mean of the {len(alike[:count])} most similar, hidden units matched"
            yield Candidate(name, name.replace("-", "_"), about, mean)


def _generators(folder: Path, examples: Examples, path: Path, seed: int) -> Iterator[tuple[str, Make]]:
    """What a generator would write from some of the examples."""
    generator = load_generator(folder)
    if any(form.layout.kind != "dense" for form in generator.problem.forms):
        raise UsageError(f"the generator {folder} writes adapters, the examples are for networks", "give another one")
    _, layout = ask(generator, Wish(), examples.x, examples.y, path)
    for draw in range(DRAWS if generator.random else 1):

        def make(rows: Sequence[int], draw: int = draw) -> Weights:
            chosen = list(rows)
            with examples.meter.paying(1):
                told, _ = ask(generator, Wish(), examples.x[chosen], examples.y[chosen], path)
                return generator.sample(told, layout, 1, seed + draw)[0]

        yield f"generated-{folder.name}-{draw}", make
