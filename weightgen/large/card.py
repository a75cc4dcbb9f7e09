"""The card of an exploration: every candidate with its interval, and a verdict that does not flatter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from weightgen.evaluation.statistics import paired_interval
from weightgen.large.scoring import Outcome

ORIGINAL = "original"
RECONSTRUCTION = "reconstruction"
LEVEL = 0.95
LICENSE = re.compile(r"^license:\s*(\S+)\s*$", re.MULTILINE)
Metric = Literal["accuracy", "likelihood"]


@dataclass(frozen=True)
class Scored:
    """One model that was scored.

    Attributes:
        name: unique.
        kind: ``"original"``, ``"candidate"``, ``"noise"`` (same size, control) or ``"reconstruction"`` (control).
        outcome: answers on the validation task.
        distance: norm of the change of the chosen tensors over their norm.
        seconds: for sampling and scoring.
        seed: of the candidate or noise.
    """

    name: str
    kind: Literal["original", "candidate", "noise", "reconstruction"]
    outcome: Outcome
    distance: float
    seconds: float
    seed: int | None = None


def difference(first: Outcome, second: Outcome, metric: Metric, level: float = LEVEL) -> tuple[float, float, float]:
    """Mean difference of two models on the same items, with a paired bootstrap interval over items."""
    return paired_interval(first.items(metric)[None], second.items(metric)[None], level)


def row(scored: Scored, original: Scored, metric: Metric) -> dict[str, Any]:
    """One line of the card."""
    items = scored.outcome.items(metric)
    mean, low, high = paired_interval(items[None], items.new_zeros(1, len(items)))
    return {
        "name": scored.name,
        "kind": scored.kind,
        "seed": scored.seed,
        "mean": mean,
        "interval": [low, high],
        "minus_original": list(difference(scored.outcome, original.outcome, metric)),
        "distance": scored.distance,
        "agreement_with_original": scored.outcome.agreement(original.outcome),
        "change_of_log_probability": scored.outcome.change(original.outcome),
        "seconds": round(scored.seconds, 3),
    }


def select(scored: Sequence[Scored], metric: Metric) -> Scored:
    """The best of the given model and its candidates on validation; ties go to the given model, then to the first."""
    allowed = [one for one in scored if one.kind in ("original", "candidate")]
    return max(allowed, key=lambda one: (one.outcome.items(metric).mean().item(), one.kind == "original"))


def verdict(
    scored: Sequence[Scored], selected: Scored, metric: Metric, test: tuple[Outcome, Outcome] | None
) -> dict[str, Any]:
    """Say whether the selected candidate is better than the given model, and than noise of the same size.

    The validation interval is widened for the number of candidates (Bonferroni), since the best of many looks better
    than it is. With held-out items that took no part in the choice, those decide.

    Args:
        scored: all models.
        selected: the one that is written.
        metric: of the task.
        test: answers of the selected and of the given model on held-out items.
    """
    original = next(one for one in scored if one.kind == "original")
    candidates = [one for one in scored if one.kind == "candidate"]
    level = 1 - (1 - LEVEL) / max(1, len(candidates))
    validation = difference(selected.outcome, original.outcome, metric, level)
    held_out = difference(*test, metric) if test is not None else None
    decisive = held_out if held_out is not None else validation
    improved = selected.kind == "candidate" and decisive[1] > 0
    noise = _against_noise(scored, metric)
    where = "held-out items" if held_out is not None else "validation, widened for the number of candidates"
    if selected.kind == "original":
        sentence = f"Keep the original: none of {len(candidates)} candidates was better on validation."
    elif improved:
        sentence = f"{selected.name} is better than the original by {_interval(decisive)} ({where})."
    else:
        sentence = (
            f"Keep the original: {selected.name} was best on validation, but its lead of {_interval(decisive)} "
            f"({where}) is not distinguishable from zero or is negative."
        )
    if noise is not None:
        mean, low, high = noise["candidates_minus_noise"]
        better = "better than" if low > 0 else "worse than" if high < 0 else "no different from"
        sentence += f" Candidates are {better} Gaussian noise of the same size ({_interval((mean, low, high))})."
    return {
        "improved": improved,
        "sentence": sentence,
        "decided_on": "test" if held_out is not None else "validation",
        "validation_minus_original": list(validation),
        "validation_level": level,
        "test_minus_original": None if held_out is None else list(held_out),
        "noise": noise,
    }


def _against_noise(scored: Sequence[Scored], metric: Metric) -> dict[str, Any] | None:
    """Candidates against their own twins of noise, averaged over pairs item by item."""
    twins = {one.seed: one for one in scored if one.kind == "noise"}
    pairs = [(one, twins[one.seed]) for one in scored if one.kind == "candidate" and one.seed in twins]
    if not pairs:
        return None
    first = torch.stack([a.outcome.items(metric) for a, _ in pairs]).mean(0)
    second = torch.stack([b.outcome.items(metric) for _, b in pairs]).mean(0)
    return {"pairs": len(pairs), "candidates_minus_noise": list(paired_interval(first[None], second[None]))}


def _interval(values: tuple[float, float, float]) -> str:
    return f"{values[0]:+.4f} [{values[1]:+.4f}, {values[2]:+.4f}]"


def stated_license(folder: Path) -> str | None:
    """Licence in the README of a model folder, if it states one."""
    path = folder / "README.md"
    found = LICENSE.search(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    return found[1] if found else None


def readme(card: dict[str, Any]) -> str:
    """README of the written checkpoint."""
    rows = "\n".join(
        f"| {r['name']} | {r['mean']:.4f} | {_interval(tuple(r['minus_original']))} | {r['distance']:.4f} |"
        for r in card["rows"]
    )
    layers = "\n".join(f"- `{layer['name']}` {layer['shape']}" for layer in card["layers"])
    return (
        f"---\nbase_model: {card['base']}\n"
        + (f"license: {card['license']}\n" if card["license"] else "")
        + f"---\n\n# {card['selected']} of an exploration of {card['base']}\n\n{card['verdict']['sentence']}\n\n"
        f"Scored by {card['metric']} on {card['task']} ({card['items']} items; 95 % intervals over items). Everything "
        "is in `weightgen_card.json`.\n\n| model | score | minus original | change of weights |\n"
        f"|---|---|---|---|\n{rows}\n\nTensors that were sampled anew (all others are untouched):\n\n{layers}\n"
    )
