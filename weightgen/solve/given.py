"""What ``solve`` is told about a task: words, unlabelled texts, and labelled examples from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from weightgen.generate.task import GivenTask, given_task
from zoo.build.arrow import is_arrow
from zoo.build.text_tasks import SUFFIXES
from zoo.errors import UsageError

UNLABELLED = 64
"""Texts without labels that are used at most, if nothing else is said."""
ALL = 1_000_000


def given_to_solve(
    description: str | None,
    labels: Sequence[str],
    task: Path | None,
    data: Path | None,
    use_examples: int | None,
    use_labels: int | None,
    seed: int,
) -> GivenTask:
    """Gather what is known.

    A task file as ``data`` is there to be used, labels and all; of one as ``task`` only the words are used, unless
    ``use_examples`` and ``use_labels`` say more. Where no unlabelled texts are given, those of the labelled examples
    serve as such too.

    Args:
        description, labels, task: as in ``weightgen.generate.task.given_task``.
        data: labelled examples (a task file: json, csv, a folder of ``datasets``) or unlabelled texts, one a line.
        use_examples: texts of the file to use without labels.
        use_labels: examples of each label to use with their labels.
        seed: decides which examples.

    Raises:
        UsageError: if nothing is known, or labels are given twice.
        BadArtefact: if a file is missing or damaged.
    """
    if data is not None and (data.name.endswith(SUFFIXES) or is_arrow(data)):
        if task is not None:
            raise UsageError("--task and --data both name a task file", "give one of them")
        task, data = data, None
        use_labels = ALL if use_labels is None else use_labels
        use_examples = UNLABELLED if use_examples is None else use_examples
    given = given_task(description, labels, task, data, use_examples or 0, use_labels or 0, seed)
    if len(given.y) and int(given.y.max()) >= len(given.text.labels):
        raise UsageError(
            f"{len(given.text.labels)} labels are given, the examples have {int(given.y.max()) + 1}",
            "give --labels in the order of the file, or leave them out",
        )
    texts = given.text.texts or given.texts
    return replace(given, text=replace(given.text, texts=tuple(texts[:UNLABELLED])))
