"""A model in memory that is scored with different values in its chosen tensors, and what a score is.

This is the one step that holds the whole model, once, in the element type of the checkpoint.
"""

from __future__ import annotations

import abc
import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from weightgen.large.config import ScoreConfig
from weightgen.large.tasks import Item, ScoringTask
from zoo.build.encoder import EncoderConfig, TextEncoder
from zoo.errors import BadArtefact, UsageError


@dataclass(frozen=True)
class Outcome:
    """What a model answered.

    Attributes:
        log_probability: of the right answer of each item; of the text, a token, where there are no choices.
        answers: chosen answer of each item; empty where there are no choices.
        correct: whether it was right; empty likewise.
    """

    log_probability: tuple[float, ...]
    answers: tuple[int, ...] = ()
    correct: tuple[bool, ...] = ()

    def items(self, metric: Literal["accuracy", "likelihood"]) -> Float[Tensor, " n"]:
        """Score of every item, the higher the better; an answer that is not a number counts as very unlikely."""
        values = self.correct if metric == "accuracy" else self.log_probability
        return torch.tensor(values, dtype=torch.float64).nan_to_num(-1e4, 1e4, -1e4)

    def agreement(self, other: Outcome) -> float | None:
        """Share of items with the same answer."""
        if not self.answers:
            return None
        return sum(a == b for a, b in zip(self.answers, other.answers, strict=True)) / len(self.answers)

    def change(self, other: Outcome) -> float:
        """Mean absolute difference of the log-probabilities, in nats."""
        mine, others = self.items("likelihood"), other.items("likelihood")
        return (mine - others).abs().mean().item()


def metric_of(task: ScoringTask, config: ScoreConfig) -> Literal["accuracy", "likelihood"]:
    """The metric of a task.

    Raises:
        UsageError: if accuracy is asked for where nothing is chosen.
    """
    if config.metric == "accuracy" and task.kind == "likelihood":
        raise UsageError(f"{task.name} has texts without choices, so there is no accuracy", "use score.metric=auto")
    if config.metric != "auto":
        return config.metric
    return "likelihood" if task.kind == "likelihood" else "accuracy"


class NotInPlaceError(UsageError):
    """A tensor of the checkpoint is no parameter of the loaded model: transformers fuses or renames some on loading."""


class Subject(abc.ABC):
    """A loaded model that can take on candidates."""

    def __init__(self, model: torch.nn.Module, folder: Path, original: Mapping[str, Tensor]) -> None:
        """Find the parameters that the chosen tensors of the checkpoint are.

        Raises:
            NotInPlaceError: if one of them is not a parameter.
        """
        self.model, self.original = model.eval().requires_grad_(False), original
        prefix = f"{getattr(model, 'base_model_prefix', '')}."
        parameters = dict(model.named_parameters())
        self.parameters: dict[str, Tensor] = {}
        for name, value in original.items():
            for known in (name, name.removeprefix(prefix), prefix + name):
                found = parameters.get(known)
                if found is not None and torch.equal(found, value.to(found.dtype)):
                    self.parameters[name] = found
                    break
            else:
                raise NotInPlaceError(
                    f"{name} of {folder} is no parameter of the loaded {type(model).__name__} (transformers converts "
                    "or skips it)",
                    "choose other tensors with --layers",
                )

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Put values into the chosen tensors."""
        for name, value in tensors.items():
            self.parameters[name].copy_(value)

    @abc.abstractmethod
    def answer(self, task: ScoringTask, config: ScoreConfig) -> Outcome:
        """Score the model as it is."""


class Encoder(Subject):
    """A text encoder without a head: labels are texts, logits are cosines."""

    def __init__(self, folder: Path, original: Mapping[str, Tensor]) -> None:
        """Load the folder in float32."""
        self.encoder = TextEncoder(EncoderConfig(name=str(folder)))
        super().__init__(self.encoder.model, folder, original)

    @torch.no_grad()
    def answer(self, task: ScoringTask, config: ScoreConfig) -> Outcome:
        labels = self.encoder.encode(task.items[0].choices)
        texts = self.encoder.encode([item.text for item in task.items], config.batch_size)
        log_probability = (self.encoder.config.scale * texts @ labels.T).log_softmax(-1)
        answers = log_probability.argmax(-1).tolist()
        right = [item.answer for item in task.items]
        picked = log_probability[torch.arange(len(right)), torch.tensor(right)].tolist()
        return Outcome(tuple(picked), tuple(answers), tuple(a == r for a, r in zip(answers, right, strict=True)))


class Causal(Subject):
    """A causal language model: the likelihood of a text, or of each choice after its prompt, a token."""

    def __init__(self, folder: Path, original: Mapping[str, Tensor]) -> None:
        """Load the folder in its own element type."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"{folder} does not load as a causal language model ({reason})",
                "give a text classification task for an encoder, or a folder with model and tokenizer",
            ) from None
        super().__init__(model, folder, original)

    @torch.no_grad()
    def answer(self, task: ScoringTask, config: ScoreConfig) -> Outcome:
        pairs = [(item, choice) for item in task.items for choice in item.choices or ("",)]
        rows = [self._tokens(item, choice, config.max_tokens) for item, choice in pairs]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        values = [0.0] * len(rows)
        for start in range(0, len(order), config.batch_size):
            which = order[start : start + config.batch_size]
            for i, value in zip(which, self._likelihood([rows[i] for i in which]), strict=True):
                values[i] = value
        found = iter(values)
        if task.kind == "likelihood":
            return Outcome(tuple(found))
        log_probability, answers = [], []
        for item in task.items:
            scores = torch.tensor([next(found) for _ in item.choices])
            answers.append(int(scores.nan_to_num(-1e4, 1e4, -1e4).argmax()))
            log_probability.append(scores.log_softmax(-1)[item.answer].item())
        correct = tuple(a == item.answer for a, item in zip(answers, task.items, strict=True))
        return Outcome(tuple(log_probability), tuple(answers), correct)

    def _tokens(self, item: Item, choice: str, longest: int) -> tuple[list[int], int]:
        """Token ids, and how many of them at the end are judged; a long prompt loses its beginning."""
        whole = self.tokenizer(item.text + choice)["input_ids"]
        if not choice:
            ids, judged = whole[:longest], min(len(whole), longest) - 1
        else:
            before = self.tokenizer(item.text)["input_ids"]
            shared = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
            ids, judged = whole[-longest:], min(len(whole) - max(1, min(shared, len(whole) - 1)), longest - 1)
        if judged < 1:
            raise BadArtefact(f"the text {item.text[:40]!r} has fewer than two tokens", "give longer texts")
        return ids, judged

    def _likelihood(self, rows: Sequence[tuple[list[int], int]]) -> Iterator[float]:
        """Mean log-probability of the judged tokens of each row."""
        longest = max(len(ids) for ids, _ in rows)
        tokens = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for i, (ids, _) in enumerate(rows):
            tokens[i, : len(ids)], mask[i, : len(ids)] = torch.tensor(ids), 1
        logits = self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        for i, (ids, judged) in enumerate(rows):
            first = len(ids) - judged
            own = logits[i, first - 1 : len(ids) - 1].float().log_softmax(-1)
            yield own.gather(-1, tokens[i, first : len(ids), None]).mean().item()


def load_subject(folder: Path, task: ScoringTask, original: Mapping[str, Tensor]) -> Subject:
    """Load a model for a task.

    Args:
        folder: checkpoint.
        task: its kind decides how the model is loaded.
        original: values of the chosen tensors in that checkpoint; none if no candidate will be put into the model.

    Raises:
        NotInPlaceError: if a chosen tensor is no parameter of the loaded model.
        UsageError: if the folder does not load as a model of that kind.
    """
    gc.collect()
    return Encoder(folder, original) if task.kind == "labels" else Causal(folder, original)
