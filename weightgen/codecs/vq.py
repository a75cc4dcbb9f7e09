"""The discrete codec of IGPG (arXiv 2504.02012): networks as words over a finite vocabulary.

Tokens are standardised, cut into sub-vectors, and every sub-vector becomes one code or a few. The paper puts an
autoencoder before the quantiser; here it is optional and, where wanted, learns a correction to the identity, so that it
starts from plain vector quantisation. Measured on held-out networks (docs/igpg.md), plain quantisation of well
standardised weights is hard to beat at any rate that keeps a network working.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Literal, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from weightgen.codecs.quantisers import NO_CODE, Quantised, QuantiserConfig, make_quantiser
from weightgen.codecs.standardise import Means, Networks, Standardiser
from weightgen.nn import PositionEmbedding, check_heads, transformer
from weightgen.types import Loss
from zoo.config import StrictConfig


class VQConfig(StrictConfig):
    """Sub-vectors, quantiser and autoencoder."""

    group: int = Field(default=2, ge=1, description="weights a sub-vector")
    means: Means = Field(default="weight", description="what is subtracted, see codecs.standardise")
    quantiser: QuantiserConfig = QuantiserConfig()
    mean_codes: float | None = Field(
        default=None, ge=1, description="codes a sub-vector on average, more in small layers; only for residual"
    )
    autoencoder: Literal["none", "mlp", "transformer"] = "none"
    width: int = Field(default=96, ge=8)
    depth: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    commitment: float = Field(default=0.25, ge=0, description="weight of the distance between vectors and codes")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_heads(self.width, self.heads)
        if self.quantiser.kind == "fsq" and len(self.quantiser.levels) > self.group:
            raise ValueError(f"fsq has {len(self.quantiser.levels)} levels for sub-vectors of {self.group} weights")
        if self.mean_codes is not None and self.mean_codes > self.quantiser.depth:
            raise ValueError(f"mean_codes is {self.mean_codes}, the quantiser has a depth of {self.quantiser.depth}")
        return self


def _feed_forward(width: int) -> tuple[nn.Module, ...]:
    return nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.GELU()


class Correction(nn.Module):
    """Adds to tokens what a network makes of them and their positions; nothing before it is trained."""

    def __init__(self, config: VQConfig, token_width: int, positions: tuple[int, int, int, int]) -> None:
        """Make the network: one token at a time, or a transformer over all of them."""
        super().__init__()
        width = config.width
        self.position = PositionEmbedding(positions, width)
        self.into = nn.Linear(token_width, width)
        if config.autoencoder == "transformer":
            self.body: nn.Module = transformer(width, config.depth, config.heads)
        else:
            self.body = nn.Sequential(*(part for _ in range(config.depth) for part in _feed_forward(width)))
        self.out = nn.Linear(width, token_width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Float[Tensor, "b t d"], position: Int[Tensor, "t 4"]) -> Float[Tensor, "b t d"]:
        """Correct tokens."""
        return tokens + self.out(self.body(self.into(tokens) + self.position(position)))


class VQ(nn.Module):
    """Maps the tokens of a network to codes, and back.

    Attributes:
        vocabulary: number of different codes, for each code of a token.
        count: codes that a sub-vector of each (layer, role) has; the last row is for unknown layers.
    """

    count: Tensor

    def __init__(self, config: VQConfig, token_width: int, positions: tuple[int, int, int, int]) -> None:
        """Make the codec; ``fit`` measures statistics and codebooks.

        Args:
            config: sizes.
            token_width: values a token.
            positions: number of layers, roles, rows and chunks that occur.
        """
        super().__init__()
        self.config = config
        self.sub_vectors = -(-token_width // config.group)
        self.padding = self.sub_vectors * config.group - token_width
        self.normal = Standardiser(token_width, positions, config.means)
        self.quantiser = make_quantiser(config.quantiser, config.group)
        self.vocabulary: tuple[int, ...] = self.quantiser.vocabulary * self.sub_vectors
        self.register_buffer("count", torch.full((positions[0] + 1, positions[1]), len(self.quantiser.vocabulary)))
        self.before = self.after = None
        if config.autoencoder != "none":
            self.before = Correction(config, token_width, positions)
            self.after = Correction(config, token_width, positions)

    def fit_normal(self, networks: Sequence[Networks]) -> None:
        """Measure the statistics of the training networks, one entry a layout."""
        self.normal.fit(networks)

    def fit(self, networks: Sequence[Networks], generator: torch.Generator) -> None:
        """Measure statistics, then fit the quantiser to the training networks without gradients.

        This is all the training that a codec without an autoencoder needs or can have. With one, it is the start from
        which ``loss`` goes on.

        Args:
            networks: training networks, one entry a layout.
            generator: decides the start and the order of the vectors.
        """
        self.fit_normal(networks)
        if self.config.mean_codes is not None:
            self.count = self._shares(networks, self.config.mean_codes)
        with torch.no_grad(), seeded(generator):
            found = []
            for values, mask, position in networks:
                x, there = self._cut(self._before(values, mask, position), mask)
                used = there.any(-1)
                found.append((x[used], there[used], self._counts(position, len(values))[used]))
            vectors, masks, counts = (torch.cat([parts[i] for parts in found]) for i in range(3))
            pick = torch.randperm(len(vectors))[: self.config.quantiser.sample]
            self.quantiser.fit(vectors[pick], masks[pick], counts[pick])

    def encode(
        self, values: Float[Tensor, "b t d"], mask: Bool[Tensor, "t d"], position: Int[Tensor, "t 4"]
    ) -> Int[Tensor, "b t s"]:
        """Codes of some networks; ``NO_CODE`` where a sub-vector holds no weight."""
        with torch.no_grad():
            _, quantised, used = self._quantise(values, mask, position)
        return self._spread(quantised.codes, used, mask, len(values))

    def decode(
        self, codes: Int[Tensor, "b t s"], mask: Bool[Tensor, "t d"], position: Int[Tensor, "t 4"]
    ) -> Float[Tensor, "b t d"]:
        """Tokens of the networks that codes stand for, zero where masked; codes of masked sub-vectors are ignored."""
        every = rearrange(codes, "b t (s q) -> (b t s) q", s=self.sub_vectors)
        return self.decode_vectors(self.quantiser.lookup(every).unflatten(0, (len(codes), -1)), mask, position)

    def decode_vectors(
        self, vectors: Float[Tensor, "b m g"], mask: Bool[Tensor, "t d"], position: Int[Tensor, "t 4"]
    ) -> Float[Tensor, "b t d"]:
        """As ``decode``, from what the codes of each of the ``m = t * s`` sub-vectors stand for; differentiable."""
        return self._after(self._join(vectors.flatten(0, 1), mask, len(vectors)), mask, position)

    def reconstruct(
        self, values: Float[Tensor, "b t d"], mask: Bool[Tensor, "t d"], position: Int[Tensor, "t 4"]
    ) -> Float[Tensor, "b t d"]:
        """``decode(encode(values))``, with a gradient that goes straight through the quantiser."""
        x, quantised, used = self._quantise(values, mask, position)
        vectors = torch.zeros_like(x).index_put((used.nonzero()[:, 0],), quantised.values)
        return self._after(self._join(vectors, mask, len(values)), mask, position)

    def loss(
        self,
        values: Float[Tensor, "b t d"],
        mask: Bool[Tensor, "t d"],
        position: Int[Tensor, "t 4"],
        generator: torch.Generator,
    ) -> Loss:
        """Squared error of standardised weights plus weighted distance to the codes.

        In training mode codebooks with moving averages follow. Parts: ``reconstruction``, ``commitment``, ``use``
        (share of the codes that this batch uses) and ``perplexity`` (``exp`` of the entropy of their use).
        """
        with seeded(generator):
            x, quantised, used = self._quantise(values, mask, position, update=self.training)
        vectors = torch.zeros_like(x).index_put((used.nonzero()[:, 0],), quantised.values)
        decoded = self._after(self._join(vectors, mask, len(values)), mask, position)
        error = self.error(decoded, values, mask, position)
        use, perplexity = usage(quantised.codes, self.quantiser.vocabulary)
        parts = {"reconstruction": error, "commitment": quantised.commitment, "use": use, "perplexity": perplexity}
        return Loss(error + self.config.commitment * quantised.commitment, parts)

    def error(
        self,
        decoded: Float[Tensor, "b t d"],
        values: Float[Tensor, "b t d"],
        mask: Bool[Tensor, "t d"],
        position: Int[Tensor, "t 4"],
    ) -> Float[Tensor, ""]:
        """Mean squared error in units of each (layer, role)'s variance around the mean that the codec subtracts."""
        _, deviation = self.normal(position)
        return (((decoded - values) / deviation).square() * mask).sum() / (mask.sum() * len(values))

    def bits_a_weight(self, mask: Bool[Tensor, "t d"], position: Int[Tensor, "t 4"]) -> float:
        """Bits of all codes of a network, at full vocabulary, divided by its number of weights."""
        used = self._cut(mask[None].float(), mask)[1].any(-1)
        bits = torch.tensor([0.0, *(math.log2(size) for size in self.quantiser.vocabulary)]).cumsum(0)
        return float(bits[self._counts(position, 1)[used]].sum()) / int(mask.sum())

    def _counts(self, position: Int[Tensor, "t 4"], networks: int) -> Int[Tensor, " n"]:
        """Codes of every sub-vector."""
        layer = position[:, 0].clamp(max=len(self.count) - 1)
        return self.count[layer, position[:, 1]].repeat_interleave(self.sub_vectors).repeat(networks)

    def _shares(self, networks: Sequence[Networks], mean: float) -> Int[Tensor, "layers roles"]:
        """Codes a sub-vector of each (layer, role), ``mean`` on average and at most.

        If the relative errors ``exp(-2 rate)`` of all (layer, role) pairs matter equally, the least sum of errors for a
        number of bits has ``rate = constant - log(number of weights) / 2``.
        """
        weights, tokens = torch.zeros(2, *self.count.shape)
        for _, mask, position in networks:
            where = (position[:, 0], position[:, 1])
            weights.index_put_(where, mask.sum(-1).float(), accumulate=True)
            used = rearrange(F.pad(mask, (0, self.padding)), "t (s g) -> t s g", g=self.config.group).any(-1)
            tokens.index_put_(where, used.sum(-1).float(), accumulate=True)
        weights[-1] = weights[:-1].sum(0) / (weights[:-1] > 0).sum(0).clamp(min=1)
        rate = math.log(self.quantiser.vocabulary[0]) / self.config.group
        depth = len(self.quantiser.vocabulary)
        best = torch.ones_like(self.count)
        for constant in torch.linspace(0, depth + 20 / rate, 400):
            wanted = (constant - 0.5 * weights.clamp(min=1).log() / rate).round().clamp(1, depth)
            if (wanted * tokens).sum() <= mean * tokens.sum():
                best = wanted.long()
        return best

    def _before(self, values: Tensor, mask: Tensor, position: Tensor) -> Float[Tensor, "b t d"]:
        mean, deviation = self.normal(position)
        standard = (values - mean) / deviation * mask
        return standard if self.before is None else self.before(standard, position)

    def _after(self, tokens: Tensor, mask: Tensor, position: Tensor) -> Float[Tensor, "b t d"]:
        mean, deviation = self.normal(position)
        return ((tokens if self.after is None else self.after(tokens, position)) * deviation + mean) * mask

    def _cut(self, tokens: Float[Tensor, "b t d"], mask: Bool[Tensor, "t d"]) -> tuple[Tensor, Tensor]:
        """Sub-vectors of tokens and of their mask."""
        x = rearrange(F.pad(tokens, (0, self.padding)), "b t (s g) -> (b t s) g", g=self.config.group)
        there = rearrange(F.pad(mask, (0, self.padding)), "t (s g) -> (t s) g", g=self.config.group)
        return x, there.repeat(len(tokens), 1)

    def _quantise(
        self, values: Tensor, mask: Tensor, position: Tensor, update: bool = False
    ) -> tuple[Tensor, Quantised, Tensor]:
        """All sub-vectors, the quantised ones of those that hold weights, and which these are."""
        x, there = self._cut(self._before(values, mask, position), mask)
        used = there.any(-1)
        return x, self.quantiser(x[used], there[used], self._counts(position, len(values))[used], update), used

    def _spread(self, codes: Tensor, used: Tensor, mask: Tensor, networks: int) -> Int[Tensor, "b t s"]:
        every = codes.new_full((len(used), codes.shape[1]), NO_CODE)
        every[used] = codes
        return rearrange(every, "(b t s) q -> b t (s q)", b=networks, s=self.sub_vectors)

    def _join(self, vectors: Float[Tensor, "n g"], mask: Tensor, networks: int) -> Float[Tensor, "b t d"]:
        """Tokens of sub-vectors, zero where masked, whatever the vectors hold there."""
        joined = rearrange(vectors, "(b t s) g -> b t (s g)", b=networks, s=self.sub_vectors)
        return joined[..., : mask.shape[1]] * mask


@contextlib.contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Let torch's global random numbers follow from a generator for a while; afterwards they go on as before."""
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def usage(codes: Int[Tensor, "n q"], vocabulary: Sequence[int]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Share of a codebook that occurs, and perplexity of its use, both averaged over the codes of a vector."""
    shares, perplexities = [], []
    for column, size in zip(codes.T, vocabulary, strict=True):
        count = torch.bincount(column[column != NO_CODE], minlength=size).double()
        count = count[count > 0]
        probability = count / count.sum()
        shares.append(len(count) / size)
        perplexities.append((-(probability * probability.log()).sum()).exp())
    return torch.tensor(shares).mean(), torch.stack(perplexities).mean().float()
