"""Convolution, max-pooling and tanh of many networks in bfloat16, as products of matrices.

Images lie in the last place of memory. All positions that one maximum is taken over come out of one product: the kernel
of size ``k`` is put at each of ``p * p`` places of a window of size ``k + p - 1``, and windows are ``p`` apart. So the
matrices have ``p * p`` times the channels (tiny networks have few), and the maximum runs over long contiguous rows.
Processors with instructions for bfloat16 multiply such matrices four times as fast as float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1_400_000
"""Values of windows or products that are in memory at once: few enough to stay in the caches of a processor."""


def pooled_convolution(
    x: Float[Tensor, "g ic ih iw n"], weight: Float[Tensor, "m oc ic k k"], bias: Float[Tensor, "m oc"], pool: int
) -> Float[Tensor, "m oc oh ow n"]:
    """Convolve without padding and take the maximum over squares of side ``pool``, in the precision of ``x``.

    Args:
        x: inputs of each of ``g = m`` networks, or with ``g = 1`` the inputs of all of them.
        weight: kernels of ``m`` networks.
        bias: biases of ``m`` networks.
        pool: side of the squares and distance between them; what is left over at the border is not used.
    """
    if x.requires_grad:
        x = x.expand(len(weight), *x.shape[1:])
    return _PooledConvolution.apply(x, weight, pool) + bias.to(x.dtype)[:, :, None, None, None]


def tanh(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Hyperbolic tangent from the logistic function, in float32: torch's own takes far longer on a processor."""
    return _Tanh.apply(x)


class _PooledConvolution(torch.autograd.Function):
    """Goes through the networks a few at a time; windows are made again for gradients, because copying is cheap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, pool: int) -> Tensor:
        m, channels, _, k, _ = weight.shape
        height, width = ((side - k + 1) // pool for side in x.shape[2:4])
        rows = _rows(weight.to(x.dtype), pool)
        largest = x.new_empty(m, channels, height, width, x.shape[-1])
        leads = x.new_empty(pool * pool - 1, *largest.shape)
        for part, windows in _blocks(x, weight, pool):
            products = (rows[part] @ windows).view(-1, pool * pool, *largest.shape[1:])
            best = products[:, 0]
            for lead, value in zip(leads[:, part], products.unbind(1)[1:], strict=True):
                torch.sub(value, best, out=lead)
                best = torch.maximum(best, value)
            largest[part] = best
        ctx.save_for_backward(x, weight, rows, leads)
        ctx.pool = pool
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride] - as torch documents it
        (x, weight, rows, leads), pool = ctx.saved_tensors, ctx.pool
        by_rows = torch.empty_like(rows)
        by_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        for part, windows in _blocks(x, weight, pool):
            rest, shares = grad[part], grad.new_empty(len(rows[part]), pool * pool, *grad.shape[1:])
            for i in range(pool * pool - 1, 0, -1):  # the last value that took the lead has the gradient
                torch.ops.aten.threshold_backward.grad_input(rest, leads[i - 1, part], 0, grad_input=shares[:, i])
                rest = rest - shares[:, i]
            shares[:, 0] = rest
            products = shares.view(len(shares), rows.shape[1], -1)
            by_rows[part] = products @ windows.mT
            if by_x is not None:
                by_x[part] = _overlapped(rows[part].mT @ products, by_x[part].shape, grad.shape[2:4], pool)
        return by_x, _kernels(by_rows, weight, pool), None


def _blocks(x: Tensor, weight: Tensor, pool: int) -> Iterator[tuple[slice, Tensor]]:
    """Parts of the networks, and the windows of their inputs: [g, ic k' k', oh ow n], or without ``g`` if common."""
    m, channels, inputs, k, _ = weight.shape
    size, common = k + pool - 1, len(x) == 1
    positions = ((x.shape[2] - k + 1) // pool) * ((x.shape[3] - k + 1) // pool) * x.shape[-1]
    largest = max(channels * pool * pool, 0 if common else inputs * size * size)
    count = max(1, BLOCK // (positions * largest))
    shared = _windows(x, size, pool)[0] if common else None
    for start in range(0, m, count):
        part = slice(start, start + count)
        yield part, _windows(x[part], size, pool) if shared is None else shared


def _windows(x: Tensor, size: int, stride: int) -> Tensor:
    """Square windows of ``size``, ``stride`` apart: [g c h w n] to [g (c size size) (oh ow n)]."""
    windows = x.unfold(2, size, stride).unfold(3, size, stride).permute(0, 1, 5, 6, 2, 3, 4)
    return windows.reshape(len(x), x.shape[1] * size * size, -1)


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


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return (2 * x.float()).sigmoid_().mul_(2).sub_(1).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - as torch documents it
        return torch.ops.aten.tanh_backward(grad, *ctx.saved_tensors)
