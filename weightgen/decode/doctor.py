"""Does fusion help on my pair? The answer from a small labelled file, with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from weightgen.decode.model import WeakToStrong
from weightgen.decode.scoring import Encoded, Score, score_items
from weightgen.evaluation.statistics import paired_interval
from zoo.errors import BadArtefact, UsageError

METHODS: dict[str, tuple[str, Mapping[str, Any]] | str] = {
    "strong": "strong",
    "anchor": "anchor",
    "expert": "expert",
    "static": ("static", {"alpha": 1.0}),
    "dynamic": ("dynamic", {}),
    "pooled": ("pooled", {}),
}
RULES = ("static", "dynamic", "pooled")
FEWEST = 5


def read_items(path: Path) -> list[tuple[str, str]]:
    """Prompts and right answers of a JSONL file, one object ``{"prompt": ..., "answer": ...}`` a line.

    Raises:
        BadArtefact: if the file is missing or a line has another form.
        UsageError: if it holds too few lines to say anything.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadArtefact(f"cannot read {path}: {error}", "give a JSONL file of prompts and answers") from None
    items = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt, answer = row["prompt"], row["answer"]
        except (ValueError, KeyError, TypeError):
            prompt = answer = None
        if not isinstance(prompt, str) or not isinstance(answer, str) or not prompt or not answer:
            raise BadArtefact(
                f"{path}, line {number}: {line[:60]!r} is no item",
                'write {"prompt": "...", "answer": "..."} on each line',
            )
        items.append((prompt, answer))
    if len(items) < FEWEST:
        raise UsageError(f"{path} holds {len(items)} items", f"give at least {FEWEST}; 50 or more tell something")
    return items


def encode_items(tokenizer: PreTrainedTokenizerBase, items: Sequence[tuple[str, str]]) -> list[Encoded]:
    """Tokens of prompts and answers; the answer is cut as the text goes on from the prompt."""
    encoded = []
    for prompt, answer in items:
        first = tokenizer.encode(prompt)
        first = first[:-1] if first and first[-1] == tokenizer.eos_token_id else first
        encoded.append((first, tokenizer.encode(answer, add_special_tokens=False)))
    return encoded


def examine(model: WeakToStrong, encoded: Sequence[Encoded]) -> tuple[dict[str, dict[str, Any]], str]:
    """Scores of the strong model, the anchor, the expert and three rules, and what they mean.

    Args:
        model: a fusion of one pair.
        encoded: tokens of prompts and answers.

    Returns:
        Rows for the result, and the verdict in a sentence.
    """
    scores = score_items(model, encoded, METHODS)
    rows = {name: _row(score, scores["strong"]) for name, score in scores.items()}
    return rows, _verdict(rows, scores)


def _per_token(score: Score) -> torch.Tensor:
    return score.log_probability / score.tokens


def _row(score: Score, base: Score) -> dict[str, Any]:
    return {
        "accuracy": score.exact.mean().item(),
        "log_probability": _per_token(score).mean().item(),
        "accuracy_gain": list(paired_interval(score.exact[None], base.exact[None])),
        "log_probability_gain": list(paired_interval(_per_token(score)[None], _per_token(base)[None])),
        "alpha": score.alphas.mean().item(),
    }


def _verdict(rows: Mapping[str, Mapping[str, Any]], scores: Mapping[str, Score]) -> str:
    best = max(RULES, key=lambda name: rows[name]["log_probability"])
    _, low, high = rows[best]["log_probability_gain"]
    over_expert, least, most = paired_interval(_per_token(scores[best])[None], _per_token(scores["expert"])[None])
    if high < 0:
        return f"fusion hurts: the {best} rule is worse than the strong model alone; decode without it"
    if low <= 0:
        return f"no clear answer: the {best} rule does not differ from the strong model; give more items"
    if least > 0:
        return f"fusion helps: the {best} rule is better than the strong model and than the expert alone"
    if most < 0:
        return "fusion beats the strong model, but the small expert alone is better and cheaper: use the expert"
    return (
        f"fusion beats the strong model; against the expert alone ({over_expert:+.3f} a token) there is no clear answer"
    )
