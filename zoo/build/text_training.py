"""Fine-tune a text encoder on a classification task without a head: label texts are embedded by the same encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Int
from pydantic import Field
from torch import Tensor, nn

from zoo.build.encoder import TextEncoder
from zoo.build.text_tasks import TextTask
from zoo.config import StrictConfig
from zoo.tasks import TRAIN, VAL


class TextTrainingConfig(StrictConfig):
    """AdamW with warm-up and linear decay, no early stopping, no selection."""

    steps: int = Field(default=80, ge=1)
    batch_size: int = Field(default=16, ge=1)
    lr: float = Field(default=2.5e-3, gt=0)
    warmup: int = Field(default=8, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    labels: int = Field(default=12, ge=2, description="labels a step, if a task has more: those of the batch, then any")


def finetune(
    encoder: TextEncoder, parameters: Sequence[nn.Parameter], task: TextTask, config: TextTrainingConfig, seed: int
) -> float:
    """Train some parameters of an encoder in place.

    Args:
        encoder: the encoder, in evaluation mode: no dropout.
        parameters: what is trained; everything else should not require gradients.
        task: texts and labels.
        config: settings.
        seed: decides the order of the examples, and which labels are seen.

    Returns:
        Mean loss of the last tenth of the steps.
    """
    texts, y = task.select(TRAIN)
    longest = encoder.config.train_tokens
    tokens, labels = encoder.tokens(texts, longest), encoder.tokens(task.label_texts, longest)
    rng = torch.Generator().manual_seed(seed)
    passes = [torch.randperm(len(y), generator=rng) for _ in range(-(-config.steps * config.batch_size // len(y)))]
    order = torch.cat(passes)[: config.steps * config.batch_size].view(config.steps, config.batch_size)
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, config))
    losses = []
    for rows in order:
        seen = _labels(y[rows], len(labels), config.labels, rng)
        target = (y[rows][:, None] == seen).float().argmax(1)
        found = encoder.embed([tokens[i] for i in rows.tolist()]) @ encoder.embed([labels[i] for i in seen.tolist()]).T
        loss = F.cross_entropy(encoder.config.scale * found, target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    last = losses[-max(1, config.steps // 10) :]
    return sum(last) / len(last)


def _factor(step: int, config: TextTrainingConfig) -> float:
    """What the learning rate of an update, counted from 0, is multiplied by."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return max(0.0, (config.steps - step) / max(1, config.steps - config.warmup))


def _labels(y: Int[Tensor, " b"], count: int, most: int, rng: torch.Generator) -> Int[Tensor, " labels"]:
    """Labels of one step: all, or those of the batch and random others up to ``most``."""
    if count <= most:
        return torch.arange(count)
    own = y.unique()
    others = torch.randperm(count, generator=rng)
    others = others[~torch.isin(others, own)]
    return torch.cat([own, others[: max(0, most - len(own))]])


def text_scores(encoder: TextEncoder, task: TextTask, part: int = VAL) -> dict[str, float]:
    """Accuracy and macro-F1 (over labels that occur) of an encoder on one part of a task, in [0, 1].

    Returns:
        ``accuracy`` and ``macro_f1``; empty if the part has no examples.
    """
    texts, y = task.select(part)
    if not texts:
        return {}
    found = (encoder.encode(texts) @ encoder.encode(task.label_texts).T).argmax(1)
    f1 = []
    for label in y.unique():
        right = int(((found == label) & (y == label)).sum())
        f1.append(2 * right / int((found == label).sum() + (y == label).sum()))
    return {"accuracy": (found == y).float().mean().item(), "macro_f1": sum(f1) / len(f1)}
