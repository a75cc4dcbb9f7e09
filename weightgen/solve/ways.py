"""The ways to come by weights, from the simplest to the most complex."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Way:
    """One way.

    Attributes:
        level: how simple; 0 is the simplest.
        what: for people.
        learned: whether it uses the labelled examples, so that it is judged by cross-validation.
    """

    level: int
    what: str
    learned: bool = False


LEVELS = ("base", "one retrieved adapter", "mean", "composition", "generated", "fine-tuned")
"""The declared order of simplicity. A mean of fine-tuned adapters is one adapter from the same labels."""
WAYS = {
    "base": Way(0, "the base model as it is"),
    "retrieved": Way(1, "the adapter of the most similar task"),
    "mean_near": Way(2, "mean of the three most similar tasks' adapters"),
    "mean_all": Way(2, "mean of all adapters"),
    "sum_near": Way(3, "task arithmetic: sum of the three most similar tasks' adapters"),
    "scaled_all": Way(3, "task arithmetic: mean of all adapters times 6"),
    "static": Way(3, "one adapter for all tasks, trained on many"),
    "atlas": Way(3, "aTLAS: one learned coefficient a source and tensor", learned=True),
    "lorahub": Way(3, "LoraHub: one searched weight a source", learned=True),
    "generated": Way(4, "written by a generator from the words of the task"),
    "generated_texts": Way(4, "written by a generator from words and unlabelled texts"),
    "trained": Way(5, "a fresh adapter, trained on the labelled examples", learned=True),
    "finetuned": Way(5, "the adapter for all tasks, or a retrieved one, trained further on the labels", learned=True),
    "finetuned_generated": Way(5, "what a generator wrote, trained further on the labels", learned=True),
    "soup": Way(5, "mean of several fine-tuned adapters", learned=True),
    "interpolated": Way(
        5, "between the adapter trained further on the labels and what a generator wrote", learned=True
    ),
}
