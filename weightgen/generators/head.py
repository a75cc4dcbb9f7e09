"""The output layer of written classifiers, in closed form from the examples of the condition.

To read from a few images which features tell the classes of a new task apart takes very long to learn, and is known:
linear discriminant analysis. The gradient of the task loss flows through its solution to the layers before, which so
become features that suit new classes (as in arXiv 1805.08136, which solves a ridge regression).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weightgen.types import Condition
from zoo.architectures import Architecture, family
from zoo.datasets import Examples
from zoo.errors import UsageError
from zoo.networks import architecture_of, logits_many
from zoo.tokens import Tokenizer
from zoo.types import Layout

HeadName = Literal["written", "fitted"]


class FittedHead(nn.Module):
    """Linear discriminants of the features of written networks, plus a learned share of the layer as it was written."""

    def __init__(self) -> None:
        """Start with the discriminants alone."""
        super().__init__()
        self.log_shrink = nn.Parameter(torch.tensor(0.3).log())
        self.log_scale = nn.Parameter(torch.tensor(0.0))
        self.own = nn.Parameter(torch.tensor(0.0))

    def forward(
        self, architecture: Architecture, tensors: Mapping[str, Tensor], examples: Examples
    ) -> dict[str, Tensor]:
        """Replace the output layers.

        Args:
            architecture: of all networks.
            tensors: state dict whose values have a leading axis over networks.
            examples: labelled examples of the task of each.

        Raises:
            UsageError: if the networks do not end with a linear layer that has one row a class.
        """
        weight, bias = self.outputs(architecture, tensors)
        features = self._features(architecture, tensors, examples)
        with torch.autocast(features.device.type, enabled=False):
            rows, offsets = self._layer(features, examples.mask, tensors[weight], tensors[bias])
        return {**tensors, weight: rows, bias: offsets}

    def given(self, tensors: dict[str, Tensor], condition: Condition | None, layout: Layout) -> dict[str, Tensor]:
        """Networks with output layers fitted to the examples of a condition, if it holds any."""
        if condition is None or condition.examples is None:
            return tensors
        return self(architecture_of(layout), tensors, condition.examples)

    def tokens(
        self, values: Float[Tensor, "b t d"], condition: Condition, layout: Layout, tokenizer: Tokenizer
    ) -> Float[Tensor, "b t d"]:
        """As ``given``, for tokens of networks."""
        return tokenizer.values(self.given(tokenizer.tensors(values, layout), condition, layout), layout)

    @torch.no_grad()
    def held_back(
        self, architecture: Architecture, tensors: Mapping[str, Tensor], examples: Examples, folds: int = 5
    ) -> Float[Tensor, " b"]:
        """Cross-entropy on examples that output layers are not fitted to, every one of them held back once.

        A class of one example cannot be held back: with one a class, layers are judged on what they are fitted to.

        Args:
            architecture: of all networks.
            tensors: state dict whose values have a leading axis over networks.
            examples: labelled examples of the task of each.
            folds: parts of the examples, held back in turns.

        Raises:
            UsageError: as ``forward``.
        """
        weight, bias = self.outputs(architecture, tensors)
        features, mask = self._features(architecture, tensors, examples), examples.mask
        number = torch.arange(mask.shape[2], device=mask.device)
        folds, total = min(folds, mask.shape[2]), features.new_zeros(len(features))
        for fold in range(folds):
            judged = mask & (number % folds == fold)
            fitted = mask & ~judged if folds > 1 else mask
            rows, offsets = self._layer(features, fitted, tensors[weight], tensors[bias])
            logits = torch.einsum("bcnh,bkh->bcnk", features, rows) + offsets[:, None, None]
            right = logits.log_softmax(-1).diagonal(dim1=1, dim2=3)  # b n c
            total = total - (right * judged.mT).sum((1, 2))
        return total / mask.sum((1, 2))

    def _features(
        self, architecture: Architecture, tensors: Mapping[str, Tensor], examples: Examples
    ) -> Float[Tensor, "b c n h"]:
        """What the output layer sees."""
        weight, bias = self.outputs(architecture, tensors)
        count, _, size = tensors[weight].shape
        same = torch.eye(size, device=tensors[weight].device).expand(count, -1, -1)
        bodies = {**tensors, weight: same, bias: torch.zeros_like(same[:, 0])}
        features = logits_many(architecture, bodies, examples.x.flatten(1, 2))
        return features.float().unflatten(1, examples.mask.shape[1:])

    def _layer(
        self,
        features: Float[Tensor, "b c n h"],
        mask: Bool[Tensor, "b c n"],
        weight: Float[Tensor, "b c h"],
        bias: Float[Tensor, "b c"],
    ) -> tuple[Float[Tensor, "b c h"], Float[Tensor, "b c"]]:
        """Rows and offsets of an output layer: discriminants, and the learned share of the layer as it was written."""
        rows, offsets = self._discriminants(features, mask)
        scale = self.log_scale.exp()
        return scale * rows + self.own * weight, scale * offsets + self.own * bias

    @staticmethod
    def outputs(architecture: Architecture, tensors: Mapping[str, Tensor]) -> tuple[str, str]:
        """Names of weight and bias of the last layer; errors as in ``forward``."""
        axes = family(architecture).outputs(architecture).axes
        weights = [name for name, axis in axes if axis == 0 and tensors[name].ndim == 3]
        biases = [name for name, axis in axes if axis == 0 and tensors[name].ndim == 2]
        if len(weights) != 1 or len(biases) != 1:
            raise UsageError(
                f"networks of the family {architecture['family']} have no linear layer with one row a class at the end",
                "set head to written",
            )
        return weights[0], biases[0]

    def _discriminants(
        self, features: Float[Tensor, "b c n h"], mask: Bool[Tensor, "b c n"]
    ) -> tuple[Float[Tensor, "b c h"], Float[Tensor, "b c"]]:
        """Rows and offsets: Gaussian classes of one covariance, which is shrunk towards a multiple of the identity."""
        known = mask[..., None].to(features.dtype)
        mean = (features * known).sum(2) / known.sum(2).clamp(min=1)
        apart = ((features - mean[:, :, None]) * known).flatten(1, 2)
        free = (known.sum((1, 2)) - mean.shape[1]).clamp(min=1)[..., None]
        covariance = apart.mT @ apart / free
        same = torch.eye(features.shape[-1], device=features.device)
        size = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] + 1e-4
        middle = mean.mean(1, keepdim=True)
        rows = torch.linalg.solve(covariance + self.log_shrink.exp() * size * same, (mean - middle).mT).mT
        return rows, -0.5 * (rows * (mean + middle)).sum(-1)
