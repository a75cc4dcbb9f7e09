"""Tasks on which there is little to be gained: two labels of a held-out task that the base tells apart by itself.

They are chosen by what the base answers on training examples. Here the right advice is the base, or nearly so.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from zoo.build.encoder import TextEncoder
from zoo.build.text_tasks import TextTask
from zoo.seeds import seed_of
from zoo.tasks import TEST, TRAIN

FROM = {"clinc_work": 3, "hwu_play": 2, "ag_news": 2}
"""Held-out tasks with separate topics, and how many pairs are taken of each."""
RIGHT, LEAST_TRAIN, LEAST_TEST = 0.99, 64, 20


def pair_of(task: TextTask, first: int, second: int) -> TextTask:
    """The task that is left of another with two of its labels."""
    rows = torch.nonzero((task.y == first) | (task.y == second)).flatten()
    kept = (first, second)
    return replace(
        task,
        name=f"{task.name}-{first}-{second}",
        label_names=tuple(task.label_names[i] for i in kept),
        label_texts=tuple(task.label_texts[i] for i in kept),
        texts=tuple(task.texts[i] for i in rows.tolist()),
        y=(task.y[rows] == second).long(),
        part=task.part[rows],
    )


def easy_pairs(task: TextTask, encoder: TextEncoder, most: int) -> list[TextTask]:
    """Pairs of labels of which the base answers at least 99 % of the training examples rightly, drawn by name."""
    texts, y = task.select(TRAIN)
    cosines = encoder.encode(texts) @ encoder.encode(task.label_texts).T
    tested = torch.bincount(task.select(TEST)[1], minlength=len(task.label_texts))
    pairs = list(itertools.combinations(range(len(task.label_texts)), 2))
    pairs.sort(key=lambda pair: seed_of("easy pair", task.name, *pair))
    found: list[TextTask] = []
    for first, second in pairs:
        counts = [int((y == label).sum()) for label in (first, second)]
        if min(counts) < LEAST_TRAIN or int(tested[[first, second]].min()) < LEAST_TEST:
            continue
        rows = (y == first) | (y == second)
        right = (cosines[rows, second] > cosines[rows, first]) == (y[rows] == second)
        if right.float().mean() >= RIGHT and len(found) < most:
            found.append(pair_of(task, first, second))
    return found
