"""Tokens of tensors of any size, piece by piece: what ``Tokenizer.encode_stream`` and ``decode_stream`` are made of.

A piece is a few whole rows of a tensor, or a part of one row where a row is long, so memory stays bounded while a
memory-mapped file passes through. What float32 tokens cannot hold (float64, integers, NaN, values that leave the normal
range when they are scaled) is carried beside them untouched. Nothing is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from zoo.types import TensorSpec, Tokens

PIECE = 1 << 20
"""Values in a piece: so many that Python's own time does not count, so few that memory does not."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Tokens of a part of one tensor.

    Attributes:
        spec: the tensor.
        row: first row.
        rows: number of rows.
        chunk: first chunk of each row.
        columns: values of each row.
        values: tokens, row by row, padded with zeros; none where the type of the tensor has no tokens.
        carried: the values themselves, where tokens do not hold them exactly.
    """

    spec: TensorSpec
    row: int
    rows: int
    chunk: int
    columns: int
    values: Float[Tensor, "t d"]
    carried: Tensor | None

    def tokens(self, role: int) -> Tokens:
        """The tokens with mask and positions.

        Args:
            role: number of the tensor's role.
        """
        width = self.values.shape[1]
        chunks = -(-self.columns // width) if len(self.values) else 0
        column = torch.arange(chunks * width) < self.columns
        mask = column.view(1, chunks, width).expand(self.rows, -1, -1).flatten(0, 1)
        row, chunk = torch.meshgrid(torch.arange(self.rows), torch.arange(chunks), indexing="ij")
        layer, number = torch.full_like(row, self.spec.layer), torch.full_like(row, role)
        position = torch.stack([layer, number, row + self.row, chunk + self.chunk], -1).flatten(0, 1)
        return Tokens(self.values, mask, position)


def cut(rows: int, columns: int, width: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a tensor into pieces.

    Args:
        rows: rows of the tensor.
        columns: values a row.
        width: values a token.
        size: values a piece may have, unless a token has more.

    Yields:
        First row, number of rows, first column, number of columns.
    """
    if rows * columns == 0:
        return
    if columns <= size:
        step = size // columns
        for row in range(0, rows, step):
            yield row, min(step, rows - row), 0, columns
        return
    step = max(1, size // width) * width
    for row in range(rows):
        for column in range(0, columns, step):
            yield row, 1, column, min(step, columns - column)


def to_tokens(flat: Float[Tensor, "r c"], width: int, scale: float) -> tuple[Float[Tensor, "t d"], bool]:
    """Tokens of some rows, and whether they hold every value exactly; ``scale`` is a power of two."""
    source = flat.float()
    scaled = source / scale
    # Values that become larger keep every bit if they stay finite, which a sum shows in one pass over them.
    exact = (scale <= 1 and math.isfinite(scaled.sum().item())) or torch.equal(scaled * scale, source)
    if missing := -flat.shape[1] % width:
        scaled = F.pad(scaled, (0, missing))
    return scaled.reshape(-1, width), exact


def from_tokens(piece: Piece, scale: float, out: Tensor) -> None:
    """Write the values of a piece, in a row, to ``out``; one without tokens or with carried values as they are."""
    if piece.carried is not None:
        out.view(piece.carried.shape).copy_(piece.carried)
        return
    grid = piece.values.view(piece.rows, -1)
    if grid.shape[1] != piece.columns:
        grid = grid[:, : piece.columns]
    if out.dtype == torch.float32:
        torch.mul(grid, scale, out=out.view(grid.shape))
    else:
        out.view(grid.shape).copy_(grid * scale)
