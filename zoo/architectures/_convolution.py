"""Convolution, max-pooling and tanh of many networks in bfloat16, as products of matrices.

Images lie in the last place of memory. All positions that one maximum is taken over come out of one product: the kernel
of size ``k`` is put at each of ``p * p`` places of a window of size ``k + p - 1``, and windows are ``p`` apart. So the
matrices have ``p * p`` times the channels (tiny networks have few), and the maximum runs over long contiguous rows.
Processors with instructions for bfloat16 multiply such matrices four times as fast as float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1_400_000
"""Values of windows or products that are in memory at once: few enough to stay in the caches of a processor."""


def pooled_convolution(
    x: Float[Tensor, "g ic ih iw n"],
    weight: Float[Tensor, "m oc ic k k"],
    bias: Float[Tensor, "m oc"],
    pool: int,
    squash: bool = False,
) -> Float[Tensor, "m oc oh ow n"]:
    """Convolve without padding and take the maximum over squares of side ``pool``, in the precision of ``x``.

    Args:
        x: inputs of each of ``g = m`` networks, or with ``g = 1`` the inputs of all of them.
        weight: kernels of ``m`` networks.
        bias: biases of ``m`` networks.
        pool: side of the squares and distance between them; what is left over at the border is not used.
        squash: take the hyperbolic tangent of the result while it is in the caches.
    """
    if x.requires_grad:
        x = x.expand(len(weight), *x.shape[1:])
    return _PooledConvolution.apply(x, weight, bias, pool, squash)


def tanh(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Hyperbolic tangent from the logistic function, in float32: torch's own takes far longer on a processor."""
    return _Tanh.apply(x)


class _PooledConvolution(torch.autograd.Function):
    """Goes through the networks a few at a time; windows are made again for gradients, because copying is cheap.

    A maximum over a square is one over rows of maxima over columns. What is needed of a few networks only goes to the
    same memory every time: to get new memory, and to bring it into the caches, takes longer than to calculate.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, pool: int, squash: bool) -> Tensor:
        m, channels, _, k, _ = weight.shape
        height, width = ((side - k + 1) // pool for side in x.shape[2:4])
        rows, bias = _rows(weight.to(x.dtype), pool), bias.to(x.dtype)[..., None, None, None]
        result = x.new_empty(m, channels, height, width, x.shape[-1])
        lower = x.new_empty(m, pool - 1, pool, *result.shape[1:])
        right = x.new_empty(m, pool - 1, *result.shape[1:])
        scratch = _Scratch(x)
        for part, windows in _blocks(x, weight, pool, scratch):
            products = scratch("products", (len(rows[part]), rows.shape[1], windows.shape[-1]))
            torch.matmul(rows[part], windows, out=products)
            products = products.view(-1, pool, pool, *result.shape[1:])
            largest = _largest(_largest(products, lower[part]), right[part])
            torch.add(largest, bias[part], out=result[part])
            if squash:
                _squash(result[part])
        ctx.save_for_backward(x, weight, rows, lower, right, *([result] if squash else []))
        ctx.pool = pool
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - as torch documents it
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        (x, weight, rows, lower, right, *squashed), pool = ctx.saved_tensors, ctx.pool
        by_rows, by_bias = torch.empty_like(rows), weight.new_empty(weight.shape[:2])
        by_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        scratch = _Scratch(x)
        for part, windows in _blocks(x, weight, pool, scratch):
            by_largest = scratch("largest", grad[part].shape)
            if squashed:
                torch.ops.aten.tanh_backward.grad_input(grad[part], squashed[0][part], grad_input=by_largest)
            else:
                by_largest.copy_(grad[part])
            by_bias[part] = by_largest.sum((2, 3, 4), dtype=weight.dtype)
            by_columns = _shares(by_largest, right[part], scratch("columns", (len(by_largest), pool, *grad.shape[1:])))
            shape = len(by_largest), pool, *by_columns.shape[1:]
            products = _shares(by_columns, lower[part], scratch("products", shape)).view(*by_rows[part].shape[:2], -1)
            torch.matmul(products, windows.mT, out=by_rows[part])
            if by_x is not None:
                by_windows = scratch("by_windows", (len(products), *windows.shape[-2:]))
                torch.matmul(rows[part].mT, products, out=by_windows)
                by_x[part] = _overlapped(by_windows, by_x[part].shape, grad.shape[2:4], pool)
        return by_x, _kernels(by_rows, weight, pool), by_bias, None, None


class _Scratch:
    """Memory that is used again, by name; its type and device are those of ``like``."""

    def __init__(self, like: Tensor) -> None:
        self._like, self._held = like, dict[str, Tensor]()

    def __call__(self, name: str, shape: Sequence[int]) -> Tensor:
        """A contiguous tensor of this shape with any values."""
        size = math.prod(shape)
        if name not in self._held or self._held[name].numel() < size:
            self._held[name] = self._like.new_empty(size)
        return self._held[name][:size].view(shape)


def _largest(values: Tensor, leads: Tensor) -> Tensor:
    """Maximum over the second axis, in place of the first values.

    By how much each other value is above all before it goes to ``leads``.
    """
    best = values[:, 0]
    for i in range(1, values.shape[1]):
        torch.sub(values[:, i], best, out=leads[:, i - 1])
        torch.maximum(best, values[:, i], out=best)
    return best


def _shares(grad: Tensor, leads: Tensor, shares: Tensor) -> Tensor:
    """Write to ``shares`` the gradients of values that ``_largest`` took the maximum of, and return them.

    The last value that took the lead has all of it.
    """
    rest = grad
    for i in range(leads.shape[1], 0, -1):
        torch.ops.aten.threshold_backward.grad_input(rest, leads[:, i - 1], 0, grad_input=shares[:, i])
        rest = torch.sub(rest, shares[:, i], out=shares[:, 0])
    if not leads.shape[1]:
        shares[:, 0] = grad
    return shares


def _blocks(x: Tensor, weight: Tensor, pool: int, scratch: _Scratch) -> Iterator[tuple[slice, Tensor]]:
    """Parts of the networks, and the windows of their inputs: [g, ic k' k', oh ow n], or without ``g`` if common."""
    m, channels, inputs, k, _ = weight.shape
    size, common = k + pool - 1, len(x) == 1
    positions = ((x.shape[2] - k + 1) // pool) * ((x.shape[3] - k + 1) // pool) * x.shape[-1]
    largest = max(channels * pool * pool, 0 if common else inputs * size * size)
    count = max(1, BLOCK // (positions * largest))
    shared = _windows(x, size, pool, scratch)[0] if common else None
    for start in range(0, m, count):
        part = slice(start, start + count)
        yield part, _windows(x[part], size, pool, scratch) if shared is None else shared


def _windows(x: Tensor, size: int, stride: int, scratch: _Scratch) -> Tensor:
    """Square windows of ``size``, ``stride`` apart: [g c h w n] to [g (c size size) (oh ow n)]."""
    windows = x.unfold(2, size, stride).unfold(3, size, stride).permute(0, 1, 5, 6, 2, 3, 4)
    return scratch("windows", windows.shape).copy_(windows).view(len(x), x.shape[1] * size * size, -1)


def _overlapped(windows: Tensor, shape: torch.Size, positions: torch.Size, stride: int) -> Tensor:
    """Sum of windows where they overlap; rows and columns are kept apart by remainders, so that adding is fast."""
    g, c, h, w, n = shape
    size, s = math.isqrt(windows.shape[1] // c), stride
    windows = windows.view(g, c, size, size, *positions, n)
    total = windows.new_zeros(g, c, s, s, -(-h // s), -(-w // s), n)
    for i in range(0, size, s):
        for j in range(0, size, s):
            part, a, b = windows[:, :, i : i + s, j : j + s], i // s, j // s
            total[:, :, : part.shape[2], : part.shape[3], a : a + positions[0], b : b + positions[1]] += part
    return total.permute(0, 1, 4, 2, 5, 3, 6).reshape(g, c, total.shape[4] * s, -1, n)[:, :, :h, :w]


def _rows(weight: Tensor, pool: int) -> Tensor:
    """Kernels at all places of a window: [m oc ic k k] to [m (p p oc) (ic k' k')]."""
    m, channels, inputs, k, _ = weight.shape
    size = k + pool - 1
    rows = weight.new_zeros(m, pool, pool, channels, inputs, size, size)
    for i in range(pool):
        for j in range(pool):
            rows[:, i, j, :, :, i : i + k, j : j + k] = weight
    return rows.view(m, pool * pool * channels, -1)


def _kernels(rows: Tensor, weight: Tensor, pool: int) -> Tensor:
    """Sum over all places of a window, in the type of the weights; what ``_rows`` needs for gradients."""
    m, channels, inputs, k, _ = weight.shape
    size = k + pool - 1
    placed, total = rows.view(m, pool, pool, channels, inputs, size, size), torch.zeros_like(weight)
    for i in range(pool):
        for j in range(pool):
            total += placed[:, i, j, :, :, i : i + k, j : j + k]
    return total


def _squash(x: Tensor) -> None:
    """Hyperbolic tangent in place, a few values at a time, so that what lies between is not written to memory."""
    for part in x.split(1):
        value = part.to(torch.float32, copy=True).mul_(2).sigmoid_()
        part.copy_(value.mul_(2).sub_(1))


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        result = x.clone(memory_format=torch.contiguous_format)
        _squash(result)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - as torch documents it
        return torch.ops.aten.tanh_backward(grad, *ctx.saved_tensors)
