"""Changes of tensors, exact and cheap to mix: a change is a product of two factors, or the values themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.errors import UsageError
from zoo.lora_gauge import canonical_factors


@dataclass(frozen=True, eq=False)
class Delta:
    """The change of one tensor.

    Attributes:
        b: up factor; the values in rows of the first axis if there is no ``a``.
        a: down factor, or ``None``.
        shape: shape of the tensor that is changed.
        transposed: whether that tensor has inputs first, as embeddings and the layers of GPT-2 have.
    """

    b: Float[Tensor, "o r"]
    a: Float[Tensor, "r i"] | None
    shape: tuple[int, ...]
    transposed: bool = False

    @classmethod
    def of(cls, values: Float[Tensor, "*shape"]) -> Delta:
        """A change given by its values."""
        rows = values.shape[0] if values.ndim > 0 else 1
        return cls(values.reshape(rows, -1) if values.numel() else values.new_zeros(rows, 0), None, tuple(values.shape))

    def matrix(self) -> Float[Tensor, "o i"]:
        """The change as a matrix, outputs first."""
        return self.b if self.a is None else self.b @ self.a

    def values(self) -> Float[Tensor, "*shape"]:
        """The change in the shape of its tensor."""
        matrix = self.matrix()
        return (matrix.T if self.transposed else matrix).reshape(self.shape)

    def to(self, dtype: torch.dtype) -> Delta:
        """The same change in another floating type."""
        return replace(self, b=self.b.to(dtype), a=None if self.a is None else self.a.to(dtype))

    def with_matrix(self, matrix: Float[Tensor, "o i"]) -> Delta:
        """Another change of the same tensor."""
        return replace(self, b=matrix, a=None)


@dataclass(frozen=True, eq=False)
class Truncated:
    """A change at a bounded rank.

    Attributes:
        delta: factors of the wanted rank, balanced, padded with zeros where the change needs less.
        error: Frobenius norm of what was cut off.
        norm: Frobenius norm of the whole change.
        needed: rank at which nothing would be cut off.
    """

    delta: Delta
    error: float
    norm: float
    needed: int


def factored(delta: Delta) -> tuple[Float[Tensor, "r i"], Float[Tensor, "o r"], Float[Tensor, " r"]]:
    """Canonical factors ``a`` and ``b`` of a change in float64 and its singular values; see ``zoo.lora_gauge``."""
    b, a = delta.b.double(), delta.a
    if a is None:
        wide = b.shape[0] <= b.shape[1]
        unit = torch.eye(min(b.shape), dtype=torch.float64)
        b, a = (unit, b) if wide else (b, unit)
    new_a, new_b = canonical_factors(a.double(), b)
    return new_a, new_b, new_b.square().sum(0)


def truncate(deltas: Mapping[str, Delta], rank: int | None) -> dict[str, Truncated]:
    """The best approximations of changes at a rank (Eckart and Young), from QR of the factors and SVD of their core.

    Args:
        deltas: changes by tensor name.
        rank: wanted rank; by default the smallest at which nothing is lost in any of them.

    Returns:
        The factors of each, all of one rank, and how much was lost.
    """
    found = {name: factored(delta) for name, delta in deltas.items()}
    needed = {name: max(1, int((sizes > 0).sum())) for name, (_, _, sizes) in found.items()}
    wanted = rank or max(needed.values())
    result = {}
    for name, (a, b, sizes) in found.items():
        missing = max(0, wanted - len(sizes))
        pad = torch.nn.functional.pad
        a, b = pad(a[:wanted], (0, 0, 0, missing)), pad(b[:, :wanted], (0, missing))
        error, norm = float(sizes[wanted:].square().sum().sqrt()), float(sizes.square().sum().sqrt())
        result[name] = Truncated(replace(deltas[name], a=a, b=b), error, norm, needed[name])
    return result


@dataclass(frozen=True, eq=False)
class _Stack:
    """All changes of one tensor side by side: ``owner`` says which source a column of ``b`` belongs to."""

    like: Delta
    owner: Int[Tensor, " n"]
    b: Tensor
    a: Tensor | None


class Bank:
    """The changes of all sources, concatenated once, so that any mixture is one product a tensor.

    Attributes:
        names: tensors that a source changes, in order of first appearance.
        sources: how many sources.
    """

    def __init__(self, sources: Sequence[Mapping[str, Delta]], dtype: torch.dtype = torch.float64) -> None:
        """Concatenate.

        Args:
            sources: changes by tensor name; a tensor that a source does not have is not changed by it.
            dtype: floating type to compute in.

        Raises:
            UsageError: if two sources change a tensor of one name in different shapes.
        """
        self.sources = len(sources)
        self.names = tuple(dict.fromkeys(name for source in sources for name in source))
        self._stacks = {name: self._stack(name, sources, dtype) for name in self.names}

    @staticmethod
    def _stack(name: str, sources: Sequence[Mapping[str, Delta]], dtype: torch.dtype) -> _Stack:
        found = [(i, source[name].to(dtype)) for i, source in enumerate(sources) if name in source]
        like = found[0][1]
        for _, delta in found:
            if (delta.shape, delta.transposed) != (like.shape, like.transposed):
                raise UsageError(
                    f"sources change {name!r} in the shapes {like.shape} and {delta.shape}",
                    "compose adapters of one base model only",
                )
        if any(delta.a is None for _, delta in found):
            stacked = torch.stack([delta.matrix() for _, delta in found])  # n o i
            return _Stack(like, torch.tensor([i for i, _ in found]), stacked, None)
        owner = torch.cat([torch.full((delta.b.shape[1],), i) for i, delta in found])
        return _Stack(
            like, owner, torch.cat([d.b for _, d in found], 1), torch.cat([d.a for _, d in found if d.a is not None], 0)
        )

    def outputs(self, name: str) -> int:
        """How many outputs a tensor has: rows of its change as a matrix."""
        return self._stacks[name].like.b.shape[0]

    def mix(self, coefficients: Mapping[str, Float[Tensor, "s ..."]]) -> dict[str, Delta]:
        """The weighted sum of the sources; differentiable in the coefficients.

        Args:
            coefficients: for every tensor one number a source, or one a source and output.

        Returns:
            Changes by tensor name; exact, no rank is cut.
        """
        return {name: _mixed(self._stacks[name], coefficients[name]) for name in self.names}


def _mixed(stack: _Stack, coefficients: Float[Tensor, "s ..."]) -> Delta:
    chosen = coefficients.to(stack.b.dtype)[stack.owner]  # n, or n o
    if stack.a is None:
        equation = "n,noi->oi" if chosen.ndim == 1 else "no,noi->oi"
        return replace(stack.like, b=torch.einsum(equation, chosen, stack.b), a=None)
    return replace(stack.like, b=stack.b * (chosen if chosen.ndim == 1 else chosen.T), a=stack.a)


def uniform(bank: Bank, weights: Float[Tensor, " s"]) -> dict[str, Tensor]:
    """Coefficients that are the same for every tensor."""
    return dict.fromkeys(bank.names, weights)
