"""Quantisers of short vectors of which some entries may be missing: vectors of numbers to codes, and back.

Codebooks, their start by k-means, moving averages and revival of dead codes are those of vector-quantize-pytorch. What
this file adds is the treatment of missing entries: a vector is completed with the entries of the code that is nearest
on the entries that are there. That code is then also the nearest to the completed vector, so missing entries count
nowhere in the distance, and an update of the codebook does not move it along them.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, Literal, Self, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, ResidualVQ, SimVQ, VectorQuantize

from zoo.config import StrictConfig

CHUNK = 1 << 10
"""Vectors that are compared with a codebook at once: bounds the memory of a table of distances."""
NO_CODE = -1
"""Stands where there is no code: for sub-vectors without weights, and for codebooks that are left out."""
DISTANCES = 1 << 24
"""Distances that the start by k-means holds in memory at once, about."""
BATCH = 1 << 12
"""Vectors of one update of moving averages while fitting."""


class QuantiserConfig(StrictConfig):
    """Which quantiser, and how fine.

    ``vq``: a codebook with moving averages (VQ-VAE, arXiv 1711.00937). ``residual``: several, each for what the ones
    before left over (arXiv 2107.03312). ``fsq``: rounding to fixed steps (arXiv 2309.15505). ``simvq``: a learned
    linear map of a frozen random codebook (arXiv 2411.02038).
    """

    kind: Literal["vq", "residual", "fsq", "simvq"] = "vq"
    size: int = Field(default=256, ge=2, description="entries of a codebook; not for fsq")
    depth: int = Field(default=1, ge=1, description="codebooks in a row; 1 but for residual")
    levels: list[int] = Field(default=[16, 16], min_length=1, description="steps a dimension; only for fsq")
    decay: float = Field(default=0.95, gt=0, lt=1, description="of the moving averages of codebooks")
    dead: float = Field(default=1.0, ge=0, description="codes with a smaller moving average of uses are replaced")
    passes: int = Field(default=10, ge=0, description="of Lloyd's algorithm over the training vectors")
    sample: int = Field(default=1 << 17, ge=1, description="training vectors that a fit uses at most")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.kind == "residual") != (self.depth > 1):
            raise ValueError(f"kind {self.kind} with depth {self.depth}: residual needs at least 2, all others 1")
        if min(self.levels) < 2:
            raise ValueError(f"every dimension of fsq needs at least 2 levels, got {self.levels}")
        return self


@dataclass(frozen=True, eq=False)
class Quantised:
    """What a quantiser makes of vectors.

    Attributes:
        values: what the codes stand for; their gradient goes straight through to the input.
        codes: codes of each vector.
        commitment: mean squared distance to the codes over the entries that are there.
    """

    values: Float[Tensor, "n g"]
    codes: Int[Tensor, "n q"]
    commitment: Float[Tensor, ""]


class Quantiser(nn.Module, abc.ABC):
    """Maps vectors to ``len(vocabulary)`` codes each.

    Attributes:
        vocabulary: number of different codes, for each code of a vector.
    """

    vocabulary: tuple[int, ...]

    @abc.abstractmethod
    def fit(self, x: Float[Tensor, "n g"], mask: Bool[Tensor, "n g"], count: Int[Tensor, " n"]) -> None:
        """Fit to training vectors without gradients; random numbers come from torch's global generator."""

    @abc.abstractmethod
    def forward(
        self, x: Float[Tensor, "n g"], mask: Bool[Tensor, "n g"], count: Int[Tensor, " n"], update: bool = False
    ) -> Quantised:
        """Quantise.

        Args:
            x: vectors.
            mask: which of their entries are there.
            count: codes of each vector, at most ``len(vocabulary)``; the others are ``NO_CODE``.
            update: codebooks that learn by moving averages learn from these vectors.
        """

    @abc.abstractmethod
    def lookup(self, codes: Int[Tensor, "n q"]) -> Float[Tensor, "n g"]:
        """Vectors that codes stand for; anything where the first code is missing."""


def straight_through(x: Float[Tensor, "n g"], values: Float[Tensor, "n g"]) -> Float[Tensor, "n g"]:
    """The values, with the gradient of the input."""
    return x + (values - x).detach()


def mean_square(error: Float[Tensor, "n g"], mask: Bool[Tensor, "n g"]) -> Float[Tensor, ""]:
    """Mean over the entries that are there."""
    return (error.square() * mask).sum() / mask.sum().clamp(min=1)


def nearest(x: Float[Tensor, "n g"], codebook: Float[Tensor, "k g"]) -> Int[Tensor, " n"]:
    """Index of the nearest code; of two equally near ones the first."""
    half = 0.5 * codebook.square().sum(-1)
    found = [torch.addmm(half, part, codebook.T, alpha=-1).argmin(-1) for part in x.split(CHUNK)]
    return torch.cat(found)


def complete(
    x: Float[Tensor, "n g"], mask: Bool[Tensor, "n g"], codebook: Float[Tensor, "k g"]
) -> Float[Tensor, "n g"]:
    """Fill missing entries with those of the code that is nearest on the entries that are there."""
    partial = (~mask.all(-1)).nonzero()[:, 0]
    if not len(partial):
        return x
    filled = x.clone()
    for rows in partial.split(CHUNK):
        part, there = x[rows], mask[rows]
        weight = there.to(x.dtype)
        distance = weight @ codebook.square().T - 2 * (part * weight) @ codebook.T  # up to a constant of each row
        filled[rows] = torch.where(there, part, codebook[distance.argmin(-1)])
    return filled


def lloyd(x: Float[Tensor, "n g"], mask: Bool[Tensor, "n g"], codebook: Float[Tensor, "k g"]) -> Float[Tensor, "k g"]:
    """One step of Lloyd's algorithm: every entry of a code becomes the mean of the entries that are there."""
    index = nearest(complete(x, mask, codebook), codebook)
    total = torch.zeros_like(codebook).index_add_(0, index, x * mask)
    count = torch.zeros_like(codebook).index_add_(0, index, mask.to(x.dtype))
    return torch.where(count > 0, total / count.clamp(min=1), codebook)


@final
class Codebooks(Quantiser):
    """One learned codebook, or several in a row, each for what those before it left over."""

    def __init__(self, config: QuantiserConfig, dim: int) -> None:
        """Make empty codebooks; ``fit`` fills them."""
        super().__init__()
        self.config = config
        self.vocabulary = (config.size,) * config.depth
        shared: dict[str, Any] = {
            "dim": dim,
            "codebook_size": config.size,
            "decay": config.decay,
            "kmeans_init": True,
            "threshold_ema_dead_code": config.dead,
            "rotation_trick": False,
        }
        several = config.depth > 1
        self.body = ResidualVQ(num_quantizers=config.depth, **shared) if several else VectorQuantize(**shared)

    @property
    def _layers(self) -> list[VectorQuantize]:
        if isinstance(self.body, VectorQuantize):
            return [self.body]
        return [layer for layer in self.body.layers if isinstance(layer, VectorQuantize)]

    def fit(self, x: Float[Tensor, "n g"], mask: Bool[Tensor, "n g"], count: Int[Tensor, " n"]) -> None:
        """Start each codebook by k-means, revive dead codes in one pass of moving averages, end with Lloyd's algorithm.

        More passes of moving averages gain nothing over Lloyd's algorithm, which has no noise and costs less.
        """
        with torch.no_grad():
            for i, layer in enumerate(self._layers):
                x, mask, count = (part[count > i] for part in (x, mask, count))
                if len(x):
                    self._fit_one(layer, x, mask)
                    x = x - layer.codebook[nearest(complete(x, mask, layer.codebook), layer.codebook)]

    def _fit_one(self, layer: VectorQuantize, x: Float[Tensor, "n g"], mask: Bool[Tensor, "n g"]) -> None:
        book: Any = layer._codebook  # its buffers have no types
        training = layer.training
        whole = x[mask.all(-1)]
        if len(whole) < self.config.size:
            whole = x * mask
        layer.train()
        book.initted.fill_(False)
        start = min(8 * self.config.size, max(2 * self.config.size, DISTANCES // self.config.size))
        layer(whole[torch.randperm(len(whole))[:start]][None])
        for pick in torch.randperm(len(x)).split(BATCH):
            layer(complete(x[pick], mask[pick], layer.codebook)[None])
        for _ in range(self.config.passes):
            layer.codebook = lloyd(x, mask, layer.codebook)
        book.embed_avg.copy_(book.embed * book.cluster_size[..., None])  # moving averages go on from here
        layer.train(training)

    def forward(
        self, x: Float[Tensor, "n g"], mask: Bool[Tensor, "n g"], count: Int[Tensor, " n"], update: bool = False
    ) -> Quantised:
        """Nearest code of each codebook in turn."""
        residual, codes, commitment = x.detach() * mask, [], x.new_zeros(())
        value = torch.zeros_like(residual)
        for i, layer in enumerate(self._layers):
            rows = (count > i).nonzero()[:, 0]
            filled = complete(residual[rows], mask[rows], layer.codebook)
            if update and len(rows):
                layer.train()
                part, index = (out[0] for out in layer(filled[None])[:2])
            else:
                index = nearest(filled, layer.codebook)
                part = layer.codebook[index]
            codes.append(torch.full_like(count, NO_CODE).index_copy(0, rows, index))
            value, residual = value.index_add(0, rows, part), residual.index_add(0, rows, part, alpha=-1)
            commitment = commitment + mean_square(x - value, mask)
        return Quantised(straight_through(x, value), torch.stack(codes, -1), commitment)

    def replace(self, codebook: Float[Tensor, "k g"]) -> None:
        """Let the codes of the only codebook stand for other vectors."""
        (layer,) = self._layers
        layer.codebook = codebook.clone()

    def lookup(self, codes: Int[Tensor, "n q"]) -> Float[Tensor, "n g"]:
        """Sum over the codebooks."""
        books = zip(self._layers, codes.T, strict=True)
        parts = [book.codebook[index.clamp(min=0)] * (index != NO_CODE)[:, None] for book, index in books]
        return torch.stack(parts).sum(0)


@final
class Steps(Quantiser):
    """Finite scalar quantisation: each entry, or each of fewer principal directions, is rounded to fixed steps."""

    GAINS = 64
    gain: Tensor

    def __init__(self, config: QuantiserConfig, dim: int) -> None:
        """Make the steps; with fewer levels than entries a linear map reduces vectors first."""
        super().__init__()
        self.body = FSQ(config.levels, dim=dim, preserve_symmetry=True, bound_hard_clamp=True)
        self.vocabulary = (int(self.body.codebook_size),)
        self.register_buffer("gain", torch.ones(()))

    def fit(self, x: Float[Tensor, "n g"], mask: Bool[Tensor, "n g"], count: Int[Tensor, " n"]) -> None:
        """Take principal directions if there are fewer levels than entries, then the width of least squared error."""
        with torch.no_grad():
            if isinstance(self.body.project_in, nn.Linear) and isinstance(self.body.project_out, nn.Linear):
                kept = self.body.project_in.out_features
                directions = torch.linalg.eigh((x * mask).T @ (x * mask))[1][:, -kept:]
                self.body.project_in.weight.copy_(directions.T)
                self.body.project_out.weight.copy_(directions)
                nn.init.zeros_(self.body.project_in.bias)
                nn.init.zeros_(self.body.project_out.bias)
            scale = mean_square(x, mask).sqrt().clamp(min=1e-6)
            sample, there = (x * mask)[: 4 * BATCH], mask[: 4 * BATCH]
            gains = scale * torch.linspace(0.4, 4.0, self.GAINS)
            errors = [mean_square(self.body((sample / g)[None])[0][0] * g - sample, there) for g in gains]
            self.gain.copy_(gains[torch.stack(errors).argmin()])

    def forward(
        self, x: Float[Tensor, "n g"], mask: Bool[Tensor, "n g"], count: Int[Tensor, " n"], update: bool = False
    ) -> Quantised:
        """Round to the nearest step; entries that are missing are rounded as zero."""
        out, codes = self.body((x * mask / self.gain)[None])
        value = out[0] * self.gain
        return Quantised(straight_through(x, value), codes[0, :, None].long(), mean_square(x - value.detach(), mask))

    def lookup(self, codes: Int[Tensor, "n q"]) -> Float[Tensor, "n g"]:
        """The steps that codes name."""
        return self.body.indices_to_codes(codes[None, :, 0].clamp(min=0))[0] * self.gain


@final
class Mapped(Quantiser):
    """A frozen Gaussian codebook under a learned linear map."""

    def __init__(self, config: QuantiserConfig, dim: int) -> None:
        """Draw the codebook."""
        super().__init__()
        self.config = config
        self.vocabulary = (config.size,)
        self.body = SimVQ(dim, config.size, rotation_trick=False)

    def fit(self, x: Float[Tensor, "n g"], mask: Bool[Tensor, "n g"], count: Int[Tensor, " n"]) -> None:
        """Alternate between nearest codes and the linear map of least squared error."""
        frozen, linear = self.body.get_buffer("frozen_codebook"), self.body.code_transform
        assert isinstance(linear, nn.Linear)
        with torch.no_grad():
            scale = mean_square(x, mask).sqrt() / frozen.square().mean().sqrt()
            linear.weight.copy_(scale * torch.eye(len(linear.weight)))
            for _ in range(self.config.passes):
                filled = complete(x, mask, linear(frozen))
                source = frozen[nearest(filled, linear(frozen))]
                linear.weight.copy_(torch.linalg.lstsq(source, filled).solution.T)

    def forward(
        self, x: Float[Tensor, "n g"], mask: Bool[Tensor, "n g"], count: Int[Tensor, " n"], update: bool = False
    ) -> Quantised:
        """Nearest code; the commitment trains the map too."""
        codebook = self.body.codebook
        index = nearest(complete(x * mask, mask, codebook.detach()).detach(), codebook.detach())
        value = codebook[index]
        commitment = mean_square(x - value.detach(), mask) + mean_square(x.detach() - value, mask)
        return Quantised(straight_through(x, value.detach()), index[:, None], commitment)

    def lookup(self, codes: Int[Tensor, "n q"]) -> Float[Tensor, "n g"]:
        """Mapped entries of the codebook."""
        return self.body.codebook[codes[:, 0].clamp(min=0)]


def make_quantiser(config: QuantiserConfig, dim: int) -> Quantiser:
    """Make a quantiser of vectors with ``dim`` entries."""
    return {"vq": Codebooks, "residual": Codebooks, "fsq": Steps, "simvq": Mapped}[config.kind](config, dim)
