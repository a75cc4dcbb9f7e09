"""Where the prototype of a label should lie: its text, texts around it, known classes, and unlabelled texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

CONTEXTS = ("{description} {label}", "this text is an example of: {label}")
CONTEXT_TOKENS = 64


def contexts(description: str, labels: Sequence[str]) -> list[list[str]]:
    """Label texts in two frames; without a description, the first is the label text itself."""
    return [[frame.format(description=description, label=label).strip() for label in labels] for frame in CONTEXTS]


def recalled(
    labels: Float[Tensor, "k d"], keys: Float[Tensor, "m d"], values: Float[Tensor, "m d"], temperature: float
) -> Float[Tensor, "k d"]:
    """Unit mean of remembered values, each weighted by how near its key is to the label: softmax attention."""
    return F.normalize(torch.softmax(temperature * labels @ keys.T, 1) @ values, dim=-1)


def soft_means(
    labels: Float[Tensor, "k d"], texts: Float[Tensor, "n d"], centre: float, pull: float, temperature: float
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " d"]]:
    """One step of soft k-means on unlabelled texts, from centred labels.

    Args:
        labels: prototypes so far, unit vectors.
        texts: unit vectors of unlabelled texts.
        centre: share of the mean text that is taken off every text.
        pull: how far prototypes follow the texts that are near them.
        temperature: of the assignment.

    Returns:
        Prototypes for the centred texts, and what to take off.
    """
    middle = centre * texts.mean(0)
    start, texts = F.normalize(labels - labels.mean(0), dim=-1), texts - middle
    near = torch.softmax(temperature * texts @ start.T, 1)
    return F.normalize(start + pull * F.normalize(near.T @ texts, dim=-1), dim=-1), middle
