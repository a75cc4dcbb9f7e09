"""Weights as tokens: rows of tensors, cut into pieces of one width, scaled, and never losing a bit.

A tensor ``[r, ...]`` is read as ``r`` rows; a vector or scalar is one row. Each row is cut into chunks of ``width``
values, the last one padded and masked. A token's position says which layer, role, row and chunk it is.

Scaling divides by the power of two nearest to the root mean square of the layer's role (measured on the train split
only), so standardised values have a root mean square between 0.7 and 1.5 while division and multiplication are exact
in floating point: ``decode(encode(w))`` returns the very same bits, unless a scaled value leaves the normal range of
float32 (1e-38 to 3e38). Statistics that need rounding (means) belong to the codecs, which are lossy anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.errors import BadArtefact, UsageError
from zoo.token_stream import PIECE, Piece, cut, from_tokens, to_tokens
from zoo.types import Layout, TensorSpec, Tokens, Weights

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
UP_PROJECTIONS = ("lora_B", "lora_embedding_B")
EXACT_DTYPES = tuple(name for name in TORCH_DTYPES if name != "F64")


def _rows(spec: TensorSpec) -> tuple[int, int]:
    """Return (number of rows, values a row) of a tensor."""
    if len(spec.shape) < 2 or spec.numel == 0:
        return 1, spec.numel
    return spec.shape[0], spec.numel // spec.shape[0]


def _read(spec: TensorSpec) -> tuple[int, int, bool]:
    """Return (rows, values a row, whether the tensor is read transposed).

    The up projections of LoRA ``[out, rank]`` are read by columns: one row a direction of the rank, as for the down
    projections, and not ``out`` rows of a few values each.
    """
    rows, columns = _rows(spec)
    if spec.role in UP_PROJECTIONS and len(spec.shape) == 2:
        return columns, rows, True
    return rows, columns, False


def _power(tensor: Tensor) -> float:
    """Sum of squares, a few values at a time."""
    return sum(part.double().square().sum().item() for part in tensor.reshape(-1).split(1 << 22))


@dataclass(frozen=True)
class Tokenizer:
    """Translates weights of any layout whose roles it knows to tokens and back.

    Attributes:
        width: values a token.
        roles: role names; the index is the role's number in positions.
        exponents: scale of a role as a power of two, under ``"role"`` (any layer) and ``"layer/role"``.
    """

    width: int
    roles: tuple[str, ...]
    exponents: Mapping[str, int]

    @classmethod
    def fit(cls, weights: Iterable[Weights], width: int) -> Tokenizer:
        """Measure scales on networks of the train split.

        Args:
            weights: the training networks; each tensor is visited once.
            width: values a token, at least 1.

        Raises:
            UsageError: if there is no network or the width is not positive.
        """
        if width < 1:
            raise UsageError(f"token width must be at least 1, got {width}")
        sums: dict[str, tuple[float, int]] = {}
        roles: dict[str, None] = {}
        for one in weights:
            for spec in one.layout.tensors:
                roles.setdefault(spec.role)
                power = _power(one.tensors[spec.name])
                for key in (spec.role, f"{spec.layer}/{spec.role}"):
                    total, count = sums.get(key, (0.0, 0))
                    sums[key] = (total + power, count + spec.numel)
        if not sums:
            raise UsageError("cannot fit a tokenizer on no networks", "build or collect a zoo with a train split first")
        exponents = {k: round(0.5 * math.log2(t / n)) if t > 0 else 0 for k, (t, n) in sums.items()}
        return cls(width, tuple(roles), exponents)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form; ``from_json`` is its inverse."""
        return {"width": self.width, "roles": list(self.roles), "exponents": dict(self.exponents)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Tokenizer:
        """Rebuild a tokenizer from ``to_json``.

        Raises:
            BadArtefact: if a field is missing or of the wrong form.
        """
        try:
            exponents = {str(key): int(value) for key, value in data["exponents"].items()}
            return cls(int(data["width"]), tuple(data["roles"]), exponents)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadArtefact(f"tokenizer statistics are damaged ({error!r})", "train the generator again") from None

    def _scale(self, spec: TensorSpec) -> float:
        exponent = self.exponents.get(f"{spec.layer}/{spec.role}", self.exponents.get(spec.role))
        if exponent is None:
            raise UsageError(
                f"tensor {spec.name!r} has the role {spec.role!r}, which the tokenizer has not seen",
                f"known roles: {', '.join(self.roles)}; fit the tokenizer on a zoo that has this role",
            )
        return 2.0**exponent

    def count(self, layout: Layout) -> int:
        """Number of tokens a network of this layout takes."""
        return sum(rows * -(-columns // self.width) for rows, columns, _ in map(_read, layout.tensors))

    def template(self, layout: Layout) -> tuple[Bool[Tensor, "t d"], Int[Tensor, "t 4"]]:
        """Mask and positions of a layout, without any values.

        Raises:
            UsageError: if the layout has a role that the tokenizer has not seen.
        """
        masks, positions = [], []
        for spec in layout.tensors:
            self._scale(spec)
            rows, columns, _ = _read(spec)
            chunks = -(-columns // self.width)
            column = torch.arange(chunks * self.width) < columns
            masks.append(column.view(1, chunks, self.width).expand(rows, -1, -1).flatten(0, 1))
            row, chunk = torch.meshgrid(torch.arange(rows), torch.arange(chunks), indexing="ij")
            layer, role = torch.full_like(row, spec.layer), torch.full_like(row, self.roles.index(spec.role))
            positions.append(torch.stack([layer, role, row, chunk], -1).flatten(0, 1))
        return torch.cat(masks), torch.cat(positions)

    def values(self, tensors: Mapping[str, Tensor], layout: Layout) -> Float[Tensor, "*b t d"]:
        """Tokens of one network, or of many whose tensors share leading axes; no masks, no checks.

        Args:
            tensors: values by name, all with the same leading axes.
            layout: shapes without these axes.
        """
        pieces = []
        for spec in layout.tensors:
            rows, columns, transposed = _read(spec)
            lead = tensors[spec.name].shape[: tensors[spec.name].ndim - len(spec.shape)]
            value = tensors[spec.name].float()
            flat = (value.mT if transposed else value).reshape(*lead, rows, columns) / self._scale(spec)
            padded = F.pad(flat, (0, -columns % self.width))
            pieces.append(rearrange(padded, "... r (c d) -> ... (r c) d", d=self.width))
        return torch.cat(pieces, -2)

    def encode(self, weights: Weights) -> Tokens:
        """Turn weights into tokens.

        Raises:
            UsageError: if a role is unknown or an element type cannot be held exactly in float32 tokens.
        """
        for spec in weights.layout.tensors:
            if spec.dtype not in EXACT_DTYPES:
                raise UsageError(
                    f"tensor {spec.name!r} is {spec.dtype}, which float32 tokens cannot hold exactly",
                    f"convert it to one of {', '.join(EXACT_DTYPES)} first",
                )
        mask, position = self.template(weights.layout)
        return Tokens(self.values(weights.tensors, weights.layout), mask, position)

    def tensors(self, values: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Differentiable inverse of ``encode`` on a batch, in float32.

        Args:
            values: f32[... t d], tokens of networks that all have this layout.
            layout: names and shapes.

        Returns:
            State dict whose values keep the leading axes.

        Raises:
            UsageError: if the number or width of tokens does not fit the layout.
        """
        expected = (self.count(layout), self.width)
        if tuple(values.shape[-2:]) != expected:
            raise UsageError(
                f"tokens are {tuple(values.shape[-2:])}, the layout {layout.fingerprint[:12]} takes {expected}"
            )
        result, start = {}, 0
        for spec in layout.tensors:
            rows, columns, transposed = _read(spec)
            count = rows * -(-columns // self.width)
            piece = values[..., start : start + count, :]
            flat = rearrange(piece, "... (r c) d -> ... r (c d)", r=rows)[..., :columns]
            flat = flat.mT if transposed else flat
            result[spec.name] = flat.reshape((*values.shape[:-2], *spec.shape)) * self._scale(spec)
            start += count
        return result

    def decode(self, tokens: Tokens, layout: Layout) -> Weights:
        """Exact inverse of ``encode``, element types included.

        Raises:
            UsageError: if the tokens do not fit the layout.
        """
        tensors = self.tensors(tokens.values, layout)
        return Weights(layout, {s.name: tensors[s.name].to(TORCH_DTYPES[s.dtype]).contiguous() for s in layout.tensors})

    def encode_stream(
        self, tensors: Iterable[tuple[TensorSpec, Tensor]], layout: Layout, *, piece: int = PIECE
    ) -> Iterator[Piece]:
        """Turn tensors of any size and element type into tokens, in bounded memory.

        Args:
            tensors: each tensor of the layout once, in any order; memory-mapped ones are read as they are needed.
            layout: names and shapes.
            piece: values that a piece may have.

        All tensors are read by rows as they are stored, up projections of LoRA too.

        Yields:
            Pieces of one tensor after the other. Element types that float32 tokens cannot hold, and the rare values
            that scaling would round, are carried beside the tokens.

        Raises:
            UsageError: if a tensor is missing, unknown or of another shape, or a role is unknown.
        """
        waiting = {spec.name: spec for spec in layout.tensors}
        for spec, tensor in tensors:
            if waiting.pop(spec.name, None) != spec or tuple(tensor.shape) != spec.shape:
                raise UsageError(f"tensor {spec.name!r} of shape {tuple(tensor.shape)} is not expected by the layout")
            rows, columns = _rows(spec)
            if spec.numel == 0:
                yield Piece(spec, 0, rows, 0, columns, torch.zeros(0, self.width), tensor)
            grid = tensor.detach().reshape(rows, columns)
            held = spec.dtype in EXACT_DTYPES
            scale = self._scale(spec) if held else 1.0
            for row, count, column, width in cut(rows, columns, self.width, piece):
                part = grid[row : row + count, column : column + width]
                values, exact = to_tokens(part, self.width, scale) if held else (torch.zeros(0, self.width), False)
                yield Piece(spec, row, count, column // self.width, width, values, None if exact else part)
        if waiting:
            raise UsageError(f"the tensor {next(iter(waiting))!r} of the layout was not given")

    def decode_stream(
        self, pieces: Iterable[Piece], layout: Layout, *, into: Callable[[TensorSpec], Tensor] | None = None
    ) -> Iterator[tuple[TensorSpec, int, Tensor]]:
        """Exact inverse of ``encode_stream``.

        Args:
            pieces: in the order in which they were made.
            layout: names and shapes.
            into: gives the memory for a tensor, contiguous and of its element type and shape, when its first piece
                comes; values are written there. By default every piece has memory of its own.

        Yields:
            Tensor, position of the first value in it, and values in a row, of the element type of the tensor. Empty
            tensors come too.

        Raises:
            UsageError: if pieces are missing, out of order or of another layout.
        """
        expected = {spec.name: spec for spec in layout.tensors}
        done: dict[str, int] = {}
        last, known, columns, scale, whole = None, False, 0, 1.0, torch.empty(0)
        for piece in pieces:
            spec = piece.spec
            if spec is not last:
                last, known = spec, spec == expected.get(spec.name)
                columns, scale = _rows(spec)[1], self._scale(spec) if known and spec.dtype in EXACT_DTYPES else 1.0
            start = piece.row * columns + piece.chunk * self.width
            if not known or done.get(spec.name, 0) != start:
                raise UsageError(f"the piece of tensor {piece.spec.name!r} at value {start} is not expected")
            count = piece.rows * piece.columns
            tokens = piece.rows * -(-piece.columns // self.width)
            if piece.carried is None and piece.values.shape != (tokens, self.width):
                raise UsageError(f"a piece of tensor {spec.name!r} has {len(piece.values)} tokens, not {tokens}")
            if into is None:
                dtype = TORCH_DTYPES[spec.dtype] if piece.carried is None else piece.carried.dtype
                values = torch.empty(count, dtype=dtype)
            else:
                if start == 0:
                    whole = into(spec).view(-1)
                values = whole[start : start + count]
            from_tokens(piece, scale, values)
            done[spec.name] = start + count
            yield spec, start, values
        for spec in layout.tensors:
            if done.get(spec.name) != spec.numel:
                raise UsageError(f"tensor {spec.name!r} ends at value {done.get(spec.name, 0)} of {spec.numel}")
