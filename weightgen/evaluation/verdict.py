"""The verdict card: a generator beside everything simpler, with controls, intervals and costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from weightgen.evaluation.baselines import METHODS, nearest_class_mean
from weightgen.evaluation.novelty import novelty
from weightgen.evaluation.setting import Setting, Stacked
from weightgen.evaluation.statistics import paired_interval, spread
from weightgen.types import Condition
from zoo.datasets import Examples

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from weightgen.generators import Generator
    from weightgen.progress import Progress

DESCRIPTIONS = {
    "generated": "networks written by the generator, no gradient step on the task",
    "zoo_mean": "mean of all training networks, as they are",
    "zoo_mean_aligned": "mean of all training networks, hidden units aligned",
    "nearest": "training network of the task with the nearest class means",
    "gaussian": "one Gaussian a weight, fitted to the aligned training networks",
    "ridge": "ridge regression from class means to aligned weights",
    "nearest_class_mean": "no network: the class whose mean example is nearest",
    "scratch": "trained from scratch on the given examples",
    "scratch_one_epoch": "trained from scratch for one epoch on all training images of the task",
    "oracle": "trained in full on the task",
    "shuffled": "generated from the examples of another held-out task",
    "junk": "generated from random pixels",
}
BEST_OF = ("generated", "gaussian", "nearest", "scratch")
ORACLE = "oracle"


def shuffled(examples: Examples, seed: int) -> Examples:
    """Give every task the examples of another one, chosen at random: a cycle through the tasks in random order."""
    order = torch.randperm(len(examples.x), generator=torch.Generator().manual_seed(seed))
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return Examples(examples.x[other], examples.mask[other])


def junk(examples: Examples, seed: int) -> Examples:
    """Replace the inputs by random ones with the same values in random places: same histogram, no structure."""
    generator = torch.Generator().manual_seed(seed)
    flat = examples.x.flatten()
    x = flat[torch.randperm(len(flat), generator=generator)].view_as(examples.x)
    return Examples(x * examples.mask.view(*examples.mask.shape, *[1] * (x.ndim - 3)), examples.mask)


def _finite(networks: Stacked) -> Float[Tensor, "tasks candidates"]:
    return torch.stack([v.isfinite().flatten(2).all(-1) for v in networks.values()]).all(0)


class _Rows:
    """Scores of every method: seeds x tasks, of one candidate and of the best of several."""

    def __init__(self) -> None:
        self.one: dict[str, list[Tensor]] = {}
        self.best: dict[str, list[Tensor]] = {}

    def add(self, name: str, accuracy: Float[Tensor, "tasks candidates"], chosen: Tensor | None = None) -> None:
        self.one.setdefault(name, []).append(accuracy[:, 0])
        if chosen is not None and accuracy.shape[1] > 1:
            self.best.setdefault(name, []).append(accuracy.gather(1, chosen[:, None])[:, 0])

    def scores(self, name: str) -> Float[Tensor, "seeds tasks"]:
        return torch.stack(self.one[name])


def evaluate_generator(
    generator: Generator,
    setting: Setting,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    candidates: int = 8,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run a generator and all baselines on held-out tasks.

    Args:
        generator: a trained generator whose training never saw these tasks.
        setting: tasks, examples and training networks.
        seeds: each draws new examples, new noise and new initialisations.
        candidates: networks a task for the best-of rows; chosen by accuracy on the given examples.
        progress: called with (stage, done, total).

    Returns:
        The card as plain JSON values; accuracies are fractions in [0, 1].
    """
    rows, controls = _Rows(), _Rows()
    failures: list[Tensor] = []
    costs: dict[str, float] = {}
    new: dict[str, float] = {}
    for number, seed in enumerate(seeds):
        examples = setting.examples(seed)
        started = time.perf_counter()
        networks = generator.networks(Condition(examples), setting.raw.layout, seed, candidates)
        costs["generate_seconds"] = costs.get("generate_seconds", 0.0) + time.perf_counter() - started
        accuracy = setting.accuracy(networks)
        rows.add("generated", accuracy, setting.support_accuracy(networks, examples).argmax(1))
        failures.append(_failed(setting, networks, accuracy))
        if number == 0:
            new = novelty(setting, networks, _first(setting, generator))
        for name, control in (("shuffled", shuffled(examples, seed)), ("junk", junk(examples, seed))):
            controls.add(name, setting.accuracy(generator.networks(Condition(control), setting.raw.layout, seed)))
        for name, method in METHODS.items():
            wanted = candidates if name in BEST_OF else 1
            networks = method(setting, examples, seed, wanted)
            chosen = setting.support_accuracy(networks, examples).argmax(1) if wanted > 1 else None
            rows.add(name, setting.accuracy(networks), chosen)
        rows.add("nearest_class_mean", nearest_class_mean(examples, setting.test_bank))
        if progress:
            progress("evaluate", number + 1, len(seeds))
    return _card(generator, setting, rows, controls, failures, new, costs, seeds, candidates)


def _first(setting: Setting, generator: Generator) -> Stacked:
    """Reference for distances: the generator's own, or the first aligned training network."""
    form = generator.problem.form(setting.raw.layout)
    reference = None if form is None else form.reference
    return reference if reference is not None else setting.aligned.one(0)


def _failed(setting: Setting, networks: Stacked, accuracy: Tensor) -> Float[Tensor, "tasks candidates"]:
    """A network fails if a weight is not finite, or if it is no better than always saying the commonest class."""
    majority = []
    for task in range(len(setting.tasks)):
        y = setting.test_bank.all(task)[1]
        majority.append(torch.bincount(y).max() / len(y))
    return (~_finite(networks) | (accuracy <= torch.stack(majority)[:, None])).float()


def _row(
    scores: Float[Tensor, "seeds tasks"], generated: Float[Tensor, "seeds tasks"], name: str, candidates: int
) -> dict[str, Any]:
    mean, std = spread(scores)
    difference, low, high = paired_interval(generated, scores)
    return {
        "name": name,
        "what": DESCRIPTIONS[name],
        "mean": round(mean, 5),
        "std": round(std, 5),
        "std_tasks": round(scores.mean(0).std().item(), 5),
        "n_tasks": scores.shape[1],
        "seeds": scores.shape[0],
        "candidates": candidates,
        "generated_minus_this": {"mean": round(difference, 5), "low": round(low, 5), "high": round(high, 5)},
    }


def _card(
    generator: Generator,
    setting: Setting,
    rows: _Rows,
    controls: _Rows,
    failures: list[Tensor],
    new: dict[str, float],
    costs: dict[str, float],
    seeds: Sequence[int],
    candidates: int,
) -> dict[str, Any]:
    generated = rows.scores("generated")
    entries = {name: _row(rows.scores(name), generated, name, 1) for name in DESCRIPTIONS if name in rows.one}
    for name, best in rows.best.items():
        scores = torch.stack(best)
        mean, std = spread(scores)
        entries[name]["best_of"] = {
            "mean": round(mean, 5),
            "std": round(std, 5),
            "candidates": candidates,
            "chosen_by": "accuracy on the given examples",
        }
    entries["generated"]["failures"] = round(torch.stack(failures).mean().item(), 5)
    entries["generated"].pop("generated_minus_this")
    control_entries = {name: _row(controls.scores(name), generated, name, 1) for name in ("shuffled", "junk")}
    others = {k: v["mean"] for k, v in entries.items() if k not in ("generated", ORACLE)}
    best_other = max(others, key=lambda k: others[k])
    winner = "generated" if entries["generated"]["mean"] > others[best_other] else best_other
    networks = len(seeds) * len(setting.tasks) * candidates
    return {
        "metric": "accuracy on test images of held-out tasks",
        "unit": "fraction",
        "generator": generator.name,
        "parameters": sum(p.numel() for p in generator.parameters()),
        "tasks": [task.name for task in setting.tasks],
        "shots": setting.shots,
        "seed_list": list(seeds),
        "rows": entries,
        "controls": control_entries,
        "novelty": {key: round(value, 5) for key, value in new.items()},
        "verdict": {
            "winner": winner,
            "best_other": best_other,
            "sentence": _sentence(entries, control_entries, winner, best_other),
        },
        "cost": {
            "networks_generated": networks,
            "seconds_a_network": round(costs["generate_seconds"] / networks, 6),
        },
    }


def _sentence(entries: dict[str, Any], controls: dict[str, Any], winner: str, best_other: str) -> str:
    """The result in words, favourable or not."""
    gap = entries[best_other]["generated_minus_this"]
    if winner != "generated":
        text = f"Use {best_other}: it is {-100 * gap['mean']:.1f} points better than generation"
    elif gap["low"] > 0:
        text = f"Generation wins by {100 * gap['mean']:.1f} points over {best_other}, the best simple alternative"
    else:
        text = f"Generation is on top of {best_other} by {100 * gap['mean']:.1f} points, within the noise"
    control = controls["junk"]["generated_minus_this"]
    if control["low"] <= 0:
        return f"{text}. The condition does not matter: matched examples are not better than junk."
    return f"{text}. Matched examples beat junk by {100 * control['mean']:.0f} points."
