"""Linear layers for a few rows at a time on a processor, at the cost of one.

Decoding one text with an adapter and its base, or checking a draft of a few tokens, multiplies matrices by two to five
rows. A step then costs what reading the weights costs, but libraries for matrix products take x W' for a general
product and copy the weights into tiles first. Written as (W x')' the weights are read in place: half of the time or
less (docs/results.md). Results differ by rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.overrides import TorchFunctionMode

FEWEST, MOST = 2, 5
LARGE = 1 << 16
"""Elements of a weight from which on reading it is what costs."""
NEAR = 6144
"""Elements of the rows that stay in the nearest cache; with more the general product is faster."""


class FewRows(TorchFunctionMode):
    """While active, linear layers over few rows read their weights in place."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[Any], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Called by PyTorch for every function of it."""
        if func is torch.nn.functional.linear and not kwargs:
            x, weight, *bias = args
            rows = x.numel() // x.shape[-1]
            fits = FEWEST <= rows <= MOST and x.numel() <= NEAR and weight.numel() >= LARGE
            if fits and x.dtype == weight.dtype == torch.float32 and weight.is_contiguous():
                product = (weight @ x.reshape(rows, -1).T).T
                if bias and bias[0] is not None:
                    product = product + bias[0]
                return product.reshape(*x.shape[:-1], -1)
        return func(*args, **(kwargs or {}))


def few_rows(ids: Int[Tensor, "b t"]) -> AbstractContextManager[Any]:
    """Context for a forward pass over some tokens; does nothing where it would not help."""
    helps = ids.device.type == "cpu" and FEWEST <= ids.numel() <= MOST and not torch.is_grad_enabled()
    return FewRows() if helps else nullcontext()
