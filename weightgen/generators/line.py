"""Networks as lines of words: which codes a layout has, in which order, and what may stand where.

A word is a code of one codebook; words of different codebooks differ. The layout alone decides how many words a line
has and which codebook each comes from. So a writer that follows it can neither stop early nor go on, and whatever it
writes is a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightgen.codecs.quantisers import NO_CODE
from weightgen.codecs.vq import VQ
from weightgen.generators.problem import Frame


@dataclass(frozen=True, eq=False)
class Line:
    """The places of the words of a layout, in writing order.

    Attributes:
        token: number of each word's token.
        slot: which of the codes of its token a word is.
        book: number of the codebook that it comes from.
        position: layer, role, row and chunk of its token.
        class_of: the class whose output weights it holds, or -1.
        shape: rows and columns of its tensor, as logarithms to base 2, and how many layers come after it.
    """

    token: Int[Tensor, " n"]
    slot: Int[Tensor, " n"]
    book: Int[Tensor, " n"]
    position: Int[Tensor, "n 4"]
    class_of: Int[Tensor, " n"]
    shape: Float[Tensor, "n 3"]

    def __len__(self) -> int:
        return len(self.token)

    @classmethod
    def of(cls, frame: Frame, codec: VQ) -> Line:
        """The line of a layout: every code that the codec gives, sub-vectors without weights left out."""
        nothing = torch.zeros(1, *frame.mask.shape, device=frame.mask.device)
        token, slot = (codec.encode(nothing, frame.mask, frame.position)[0] != NO_CODE).nonzero().unbind(1)
        book = slot % len(codec.quantiser.vocabulary)
        shape = _shapes(frame)[token]
        return cls(token, slot, book, frame.position[token], frame.class_of_token[token], shape)

    def reordered(self, order: Int[Tensor, " n"]) -> Self:
        """The same places in another order of writing."""
        return type(self)(*(getattr(self, name)[order] for name in self.__dataclass_fields__))

    def layers_first(self, generator: torch.Generator) -> Int[Tensor, " n"]:
        """An order of writing that begins with the words of some random layers."""
        layers = self.position[:, 0]
        first = torch.rand(int(layers.max()) + 1, generator=generator).to(layers.device) < 0.5
        return (~first[layers]).int().argsort(stable=True)


def _shapes(frame: Frame) -> Float[Tensor, "t 3"]:
    """Rows and columns of the tensor of every token, as logarithms, and the number of layers after it."""
    shape = torch.zeros(len(frame), 3, device=frame.mask.device)
    last = frame.position[:, 0].max()
    for pair in frame.position[:, :2].unique(dim=0):
        here = (frame.position[:, :2] == pair).all(-1)
        rows = frame.position[here, 2].max() + 1
        columns = frame.mask[here].sum() / rows
        shape[here] = torch.stack([rows.log2(), columns.log2(), (last - pair[0]).float()]).float()
    return shape


@dataclass(frozen=True)
class Vocabulary:
    """Words of one or several codebooks, numbered one after the other.

    Attributes:
        sizes: entries of each codebook.
    """

    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.sizes)

    def first(self, book: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Number of the first word of some codebooks."""
        starts = torch.tensor([0, *self.sizes[:-1]], device=book.device).cumsum(0)
        return starts[book]

    def words(self, codes: Int[Tensor, "b t s"], line: Line) -> Int[Tensor, "b n"]:
        """The words of networks that are given as codes."""
        return codes[:, line.token, line.slot] + self.first(line.book)

    def codes(self, words: Int[Tensor, "b n"], line: Line, shape: tuple[int, int]) -> Int[Tensor, "b t s"]:
        """Inverse of ``words``; ``shape`` is the number of tokens and of codes a token."""
        codes = words.new_full((len(words), *shape), NO_CODE)
        codes[:, line.token, line.slot] = words - self.first(line.book)
        return codes

    def restrict(self, logits: Float[Tensor, "b n v"], book: Int[Tensor, " n"]) -> Float[Tensor, "b n v"]:
        """Minus infinity for all words of other codebooks than the one whose turn it is."""
        if len(self.sizes) == 1:
            return logits
        number = torch.arange(len(self.sizes), device=book.device)
        owner = number.repeat_interleave(torch.tensor(self.sizes, device=book.device))
        return logits.masked_fill(owner != book[:, None], float("-inf"))

    def vectors(self, codec: VQ) -> Float[Tensor, "v g"]:
        """What every word stands for, by itself."""
        parts = []
        for book, size in enumerate(self.sizes):
            codes = torch.full((size, len(self.sizes)), NO_CODE)
            codes[:, book] = torch.arange(size)
            parts.append(codec.quantiser.lookup(codes))
        return torch.cat(parts)

    def join(self, vectors: Float[Tensor, "b n g"], line: Line, tokens: int, slots: int) -> Float[Tensor, "b m g"]:
        """Sub-vectors of whole networks: words of several codebooks for one sub-vector add up."""
        depth = len(self.sizes)
        place = line.token * (slots // depth) + line.slot // depth
        empty = vectors.new_zeros(len(vectors), tokens * slots // depth, vectors.shape[-1])
        return empty.index_add(1, place, vectors)
