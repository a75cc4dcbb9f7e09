"""What a user says about a text task, from flags and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from weightgen.types import TaskText
from zoo.build.text_tasks import SUFFIXES, load_text_task
from zoo.errors import BadArtefact, UsageError
from zoo.seeds import seed_of
from zoo.tasks import TRAIN

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class GivenTask:
    """A text task as the user gives it.

    Attributes:
        name: for the card.
        text: description, labels in words, and unlabelled examples.
        texts: labelled examples, if there are any.
        y: their labels.
    """

    name: str
    text: TaskText
    texts: tuple[str, ...]
    y: Int[Tensor, " n"]

    def about(self) -> dict[str, Any]:
        """What a card says of the task."""
        return {
            "name": self.name,
            "description": self.text.description,
            "labels": list(self.text.labels),
            "unlabelled_texts": len(self.text.texts),
            "labelled_texts": len(self.texts),
        }


def given_task(
    description: str | None,
    labels: Sequence[str],
    task: Path | None,
    data: Path | None,
    use_examples: int,
    use_labels: int,
    seed: int,
) -> GivenTask:
    """Gather what is known.

    Args:
        description: of the task; by default that of the task file.
        labels: each label in words; by default those of the task file.
        task: file of a text task; from it only description and label texts are taken, unless the next two say more.
        data: file with one unlabelled example a line, or a task file whose training texts are taken without labels.
        use_examples: texts of the task file to use without their labels.
        use_labels: examples of every label of the task file to use with their labels.
        seed: decides which examples.

    Raises:
        UsageError: if nothing is known about the task, or examples are wanted and there is no task file.
        BadArtefact: if a file is missing or damaged.
    """
    if min(use_examples, use_labels) < 0:
        raise UsageError("a number of examples cannot be negative")
    texts: tuple[str, ...] = ()
    labelled: tuple[str, ...] = ()
    y, name = torch.zeros(0, dtype=torch.long), "task"
    if task is not None:
        read = load_text_task(task, 0.0, 0)
        name, description = read.name, description or read.description
        labels = labels or read.label_texts
        found, numbers = read.select(TRAIN)
        rng = torch.Generator().manual_seed(seed_of("given", seed))
        order = torch.randperm(len(found), generator=rng)
        chosen = [i for k in range(len(read.label_texts)) for i in order[numbers[order] == k][:use_labels].tolist()]
        labelled, y = tuple(found[i] for i in chosen), numbers[chosen]
        others = [i for i in order.tolist() if i not in set(chosen)]
        texts = tuple(found[i] for i in others[:use_examples])
    elif use_examples or use_labels:
        raise UsageError("examples are wanted, but there is no task file to take them from", "add --task FILE")
    if data is not None:
        texts += _lines(data)
    if not description and not labels and not texts:
        raise UsageError("nothing is known about the task", "give --description TEXT, --task FILE or --data FILE")
    if len(set(labels)) != len(labels):
        raise UsageError(f"the labels {', '.join(labels)} are not all different", "give every label once")
    if len(labels) == 1:
        raise UsageError(f"there is one label only, {labels[0]!r}", "give two or more, separated by commas")
    return GivenTask(name, TaskText(description or "", tuple(labels), texts), labelled, y)


def _lines(path: Path) -> tuple[str, ...]:
    """Unlabelled texts of a file."""
    if not path.exists():
        raise BadArtefact(f"{path} does not exist", "give a file with one text a line, or a task file")
    if path.name.endswith(SUFFIXES):
        return tuple(load_text_task(path, 0.0, 0).select(TRAIN)[0])
    try:
        lines = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise BadArtefact(
            f"{path} cannot be read as text ({error})", "give a UTF-8 file with one text a line"
        ) from None
    if not any(lines):
        raise UsageError(f"{path} holds no text", "give one text a line")
    return tuple(line for line in lines if line)
