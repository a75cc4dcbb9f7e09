"""A closed-form edit of the last dense map that moves label texts to chosen vectors and shifts all texts by a constant.

A linear map is a store of keys and values: a row of ``A`` answers on the inputs of one label (the first row on
everything), the matching column of ``B`` moves the output. Keys are a ridge regression, as in rank-one model editing
(ROME, arXiv 2202.05262) and its many-edit form (MEMIT, arXiv 2210.07229); values are found by a few fixed-point steps
through the final LayerNorm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from weightgen.prototypes.last_layer import Reading

LABEL_WEIGHT = 4.0
STEP = 0.8
LEAST_GAIN = 0.1
"""Gains of the LayerNorm below this are not divided by."""


@dataclass(frozen=True, eq=False)
class Edit:
    """A low-rank update of the last dense map: ``b @ a``; the first direction is the shift, the others are labels."""

    a: Float[Tensor, "r f"]
    b: Float[Tensor, "d r"]


def solve_keys(
    labels: Float[Tensor, "k f"],
    others: Float[Tensor, "n f"],
    weights: Float[Tensor, " n"],
    ridge: float,
) -> Float[Tensor, "r f"]:
    """Directions of the inputs: the first is 1 on everything, direction ``k`` is 1 on label ``k`` and 0 elsewhere.

    Args:
        labels: mean input of every label text.
        others: mean inputs of texts.
        weights: how much each of these texts counts.
        ridge: in units of the mean squared norm of the inputs.

    Returns:
        ``k + 1`` directions; the ridge regression is solved in its dual form.
    """
    k, n = len(labels), len(others)
    x, y = torch.cat([labels, others]), torch.zeros(k + n, k + 1)
    y[:, 0] = 1
    y[:k, 1:] = torch.eye(k)
    root = torch.cat([torch.full((k,), LABEL_WEIGHT), weights]).sqrt()[:, None]
    x, y = x * root, y * root
    gram = x @ x.T
    return (x.T @ torch.linalg.solve(gram + ridge * gram.diagonal().mean() * torch.eye(k + n), y)).T


def make_edit(
    labels: Reading,
    target: Float[Tensor, "k d"],
    shift: Float[Tensor, " d"],
    others: Float[Tensor, "n f"],
    weights: Float[Tensor, " n"],
    ridge: float,
    steps: int,
) -> Edit:
    """Find the edit.

    Args:
        labels: the label texts as the unedited last layer reads them.
        target: unit vectors that the label texts shall get.
        shift: what every text shall move by, in units of a unit vector.
        others: mean inputs of texts that shall not be taken for labels.
        weights: how much each of them counts.
        ridge: of the keys.
        steps: fixed-point steps of the values.
    """
    keys = solve_keys(labels.pooled_keys(), others, weights, ridge)
    gain = labels.norm.weight.float()
    gain = torch.where(gain < 0, -1.0, 1.0) * gain.abs().clamp(min=LEAST_GAIN)
    spread = labels.before[labels.mask].std(1).mean()
    values = torch.zeros(len(gain), len(keys))
    values[:, 0] = spread / gain * labels.means().norm(dim=1).mean() * shift
    answers = labels.keys @ keys.T
    for _ in range(steps):
        found = labels.means(answers @ values.T)
        length = (found * target).sum(1, keepdim=True).clamp(min=0.5)
        values[:, 1:] += (spread / gain)[:, None] * STEP * (target * length - found).T
    return Edit(keys, values)
