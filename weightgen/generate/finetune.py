"""Train generated weights a little further, and keep the curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.architectures import Architecture
from zoo.build.vectorised import TrainingConfig, train_stages
from zoo.networks import logits
from zoo.types import Weights

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from weightgen.subjects.texts import AdaptedEncoder

POINTS = 10
"""Points of a curve, the start aside."""
NETWORK_LR = 1e-3
ADAPTER_LR = 5e-4
BATCH = 16


def finetune_network(
    architecture: Architecture,
    weights: Weights,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    steps: int,
    seed: int,
) -> tuple[Weights, list[dict[str, float]]]:
    """Train a network on labelled examples.

    Args:
        architecture: of the network.
        weights: where training starts.
        x: examples.
        y: their classes.
        steps: updates of AdamW with cosine decay.
        seed: decides the order of the examples.

    Returns:
        The trained network, and its loss on these examples after some of the steps.
    """
    keep = _kept(steps)
    config = TrainingConfig(epochs=1, batch_size=min(64, len(y)), lr=NETWORK_LR)
    curve, last = [_point(0, logits(architecture, weights.tensors, x), y)], dict(weights.tensors)
    stages = train_stages(architecture, [x], [y], [seed], config, total=steps, keep=keep, initial=weights.tensors)
    for step, networks in stages:
        last = {name: value[0].contiguous() for name, value in networks.items()}
        curve.append(_point(step, logits(architecture, last, x), y))
    return Weights(weights.layout, last), curve


def finetune_adapter(
    encoder: AdaptedEncoder,
    weights: Weights,
    texts: Sequence[str],
    y: Int[Tensor, " n"],
    labels: Sequence[str],
    steps: int,
    seed: int,
    *,
    lr: float = ADAPTER_LR,
    points: int = POINTS,
    warmup: int = 0,
    bfloat16: bool = False,
) -> tuple[Weights, list[dict[str, float]]]:
    """Train an adapter on labelled texts.

    Args:
        encoder: the base, frozen.
        weights: where training starts.
        texts: examples.
        y: their labels.
        labels: every label in words.
        steps: updates of AdamW with linear decay.
        seed: decides the order of the examples.
        lr: first rate.
        points: of the curve, the start aside; 0 for no curve.
        warmup: updates in which the rate grows to the first rate.
        bfloat16: run the encoder in bfloat16; adapter and logits stay in float32.

    Returns:
        The trained adapter, and its loss on all of these examples after some of the steps.
    """
    base = encoder.encoder
    tokens = base.tokens(texts, base.config.train_tokens)
    label_tokens = base.tokens(labels, base.config.train_tokens)
    tensors = {name: value.detach().clone().float().requires_grad_() for name, value in weights.tensors.items()}
    optimizer = torch.optim.AdamW(tensors.values(), lr=lr, weight_decay=0.01)
    rng = torch.Generator().manual_seed(seed)

    def found(rows: Sequence[int]) -> Float[Tensor, "n c"]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            vectors = encoder.embed([*(tokens[i] for i in rows), *label_tokens], tensors)
        return base.config.scale * vectors[: len(rows)] @ vectors[len(rows) :].T

    keep, curve = set(_kept(steps, points)), []
    for step in range(steps + 1):
        if (points and step == 0) or step in keep:
            with torch.no_grad():
                curve.append(_point(step, found(range(len(y))), y))
        if step == steps:
            break
        rows = torch.randperm(len(y), generator=rng)[:BATCH].tolist()
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps) * min(1.0, (step + 1) / (warmup + 1))
        # The fused backward pass of attention is slow for short texts on processors.
        with sdpa_kernel(SDPBackend.MATH):
            loss = F.cross_entropy(found(rows), y[rows])
            optimizer.zero_grad()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(list(tensors.values()), 1.0)
        optimizer.step()
    return Weights(weights.layout, {name: value.detach() for name, value in tensors.items()}), curve


def _kept(steps: int, points: int = POINTS) -> list[int]:
    """Updates after which the curve has a point; the last is one of them."""
    return sorted({max(1, round(steps * i / points)) for i in range(1, points + 1)})


@torch.no_grad()
def _point(step: int, found: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> dict[str, float]:
    accuracy = (found.argmax(-1) == y).float().mean().item()
    return {"step": step, "loss": round(F.cross_entropy(found, y).item(), 5), "accuracy": round(accuracy, 4)}
