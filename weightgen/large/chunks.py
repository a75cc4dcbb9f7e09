"""Weight matrices as chunks of one size, with positions, and back without a changed bit.

A matrix ``[r, ...]`` is read as ``r`` rows. It is covered by blocks of ``rows`` x ``columns`` weights; those that stick
out at the right and at the bottom are filled with zeros, which are dropped again. A chunk is one block: its rows are
the tokens that codec and denoiser see. Its place (layer, role, row, column) is what it is generated for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from weightgen.large.config import ChunkConfig
from weightgen.large.folder import ModelFolder
from weightgen.large.spectrum import BLOCK
from zoo import safefile
from zoo.errors import BadArtefact

NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Above, below, left, right."""


def cut(matrix: Float[Tensor, "r c"], chunk: ChunkConfig) -> Float[Tensor, "n t d"]:
    """Cut a matrix into chunks of its own element type."""
    down, right = -matrix.shape[0] % chunk.rows, -matrix.shape[1] % chunk.columns
    padded = F.pad(matrix, (0, right, 0, down))
    return rearrange(padded, "(i t) (j d) -> (i j) t d", t=chunk.rows, d=chunk.columns).contiguous()


def paste(chunks: Float[Tensor, "n t d"], shape: Sequence[int]) -> Tensor:
    """Inverse of ``cut``; ``shape`` is that of the tensor."""
    rows, columns = shape[0], torch.Size(shape[1:]).numel()
    across = -(-columns // chunks.shape[2])
    matrix = rearrange(chunks, "(i j) t d -> (i t) (j d)", j=across)[:rows, :columns]
    return matrix.reshape(tuple(shape)).contiguous()


@dataclass(frozen=True, eq=False)
class Matrix:
    """One chosen tensor in chunks.

    Attributes:
        name: in the checkpoint.
        shape: of the tensor.
        values: its chunks, of the element type of the checkpoint.
        mean: of its weights.
        std: deviation of its weights, not zero.
        place: layer, role, row and column of every chunk.
        near: number of the chunk above, below, left and right within the matrix, -1 where there is none.
    """

    name: str
    shape: tuple[int, ...]
    values: Float[Tensor, "n t d"]
    mean: float
    std: float
    place: Int[Tensor, "n 4"]
    near: Int[Tensor, "n 4"]

    def standard(self, which: Int[Tensor, " b"]) -> Float[Tensor, "b t d"]:
        """Chunks in units of the deviation of this matrix, in float32."""
        return (self.values[which].float() - self.mean) / self.std


@dataclass(frozen=True, eq=False)
class ChunkSet:
    """All chunks of the chosen matrices of one model.

    Attributes:
        matrices: in the order of the blocks.
        sizes: number of layers, roles, rows and columns that occur.
        fingerprint: identity of the values.
    """

    matrices: tuple[Matrix, ...]
    sizes: tuple[int, int, int, int]
    fingerprint: str

    def __len__(self) -> int:
        return sum(len(matrix.values) for matrix in self.matrices)


def grid_of(rows: int, columns: int) -> tuple[Int[Tensor, "n 2"], Int[Tensor, "n 4"]]:
    """Row and column of every chunk of a matrix, and the numbers of its neighbours."""
    row, column = (g.flatten() for g in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    near = []
    for down, right in NEIGHBOURS:
        r, c = row + down, column + right
        inside = (r >= 0) & (r < rows) & (c >= 0) & (c < columns)
        near.append(torch.where(inside, r * columns + c, -1))
    return torch.stack([row, column], -1), torch.stack(near, -1)


def read_chunks(model: ModelFolder, names: Sequence[str], chunk: ChunkConfig) -> ChunkSet:
    """Cut the chosen tensors of a checkpoint; only they are kept in memory, in their own element type.

    Raises:
        BadArtefact: if one of them holds NaN or an infinity.
    """
    parts = {name: _layer_and_role(name) for name in names}
    layers = sorted({layer for layer, _ in parts.values()})
    roles = sorted({role for _, role in parts.values()})
    found: dict[str, Matrix] = {}
    digests: dict[str, str] = {}
    for name, tensor in model.stream(names):
        safefile.check_finite({name: tensor}, model.name)
        digests[name] = hashlib.sha256(safefile.raw(tensor)).hexdigest()
        values = cut(tensor.flatten(1), chunk)
        rows, columns = -(-tensor.shape[0] // chunk.rows), -(-tensor[0].numel() // chunk.columns)
        corner, near = grid_of(rows, columns)
        layer, role = parts[name]
        head = torch.tensor([layers.index(layer), roles.index(role)]).expand(len(corner), 2)
        mean, std = _moments(tensor)
        place = torch.cat([head, corner], -1)
        found[name] = Matrix(name, tuple(tensor.shape), values, mean, std, place, near)
    matrices = tuple(found[name] for name in names)
    if not matrices:
        raise BadArtefact(f"{model.name} holds none of the chosen tensors", "choose other layers")
    most = torch.stack([m.place.amax(0) for m in matrices]).amax(0) + 1
    sizes = (int(most[0]), int(most[1]), int(most[2]), int(most[3]))
    text = "".join(f"{name}:{digests[name]};" for name in names)
    return ChunkSet(matrices, sizes, hashlib.sha256(text.encode()).hexdigest())


def _layer_and_role(name: str) -> tuple[int, str]:
    """Number of the block, and the rest of the name; tensors outside of blocks are a layer -1 of their own role."""
    match = BLOCK.match(name)
    return (int(match["layer"]), f"{match['stack']}.{match['role']}") if match else (-1, name)


def _moments(tensor: Tensor) -> tuple[float, float]:
    """Mean and deviation in float64, a few values at a time."""
    total = squares = 0.0
    for part in tensor.reshape(-1).split(1 << 22):
        wide = part.double()
        total, squares = total + wide.sum().item(), squares + wide.square().sum().item()
    mean = total / tensor.numel()
    return mean, max(squares / tensor.numel() - mean * mean, 1e-24) ** 0.5
