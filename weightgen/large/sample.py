"""Candidates: the chosen tensors of a model with new values, and noise of the same size to compare them with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from weightgen.large.chunks import ChunkSet, Matrix, paste
from weightgen.large.generator import ChunkModel
from weightgen.large.train import Latents, neighbours
from zoo.seeds import seed_of

SAMPLE_BATCH = 256


def sample(
    model: ChunkModel,
    chunks: ChunkSet,
    latents: Latents,
    seed: int,
    strength: float,
    residual: Literal["keep", "drop"],
) -> dict[str, Tensor]:
    """Draw new values for the chosen tensors, one tensor after the other.

    Args:
        model: trained.
        chunks: of the given model.
        latents: of these chunks.
        seed: decides the candidate.
        strength: below 1 chunks start from their own noised latents and see their neighbours; at 1 they see only
            their place.
        residual: ``"keep"`` adds what codec cannot represent of the given model: the new weights are the old ones plus
            the difference of two decoded chunks. ``"drop"`` takes decoded chunks as they are.

    Returns:
        Tensors by name, of the shapes and element types of the checkpoint.
    """
    free = model.effective_strength(strength) == 1.0
    result = {}
    for matrix in chunks.matrices:
        generator = torch.Generator().manual_seed(seed_of(seed, matrix.name))
        pieces = []
        for which in torch.arange(len(matrix.values)).split(SAMPLE_BATCH):
            old = latents[matrix.name][which]
            near, known = neighbours([(matrix, which)], latents)
            condition = model.condition(matrix.place[which], near, known & (not free))
            noise = torch.randn(old.shape, generator=generator)
            new = model.decode(model.renew(old, condition, strength, noise))
            if residual == "keep":
                new = matrix.standard(which) + new - model.decode(old)
            pieces.append(_raw(matrix, new))
        result[matrix.name] = paste(torch.cat(pieces), matrix.shape)
    return result


def reconstruct(model: ChunkModel, chunks: ChunkSet, latents: Latents) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Decode the latents of the given model.

    Returns:
        Tensors as ``sample`` gives them, and the mean squared error of each in units of its variance.
    """
    result, error = {}, {}
    for matrix in chunks.matrices:
        pieces, total = [], 0.0
        for which in torch.arange(len(matrix.values)).split(SAMPLE_BATCH):
            new = model.decode(latents[matrix.name][which])
            total += (new - matrix.standard(which)).square().mean((1, 2)).sum().item()
            pieces.append(_raw(matrix, new))
        result[matrix.name] = paste(torch.cat(pieces), matrix.shape)
        error[matrix.name] = total / len(matrix.values)
    return result, error


def _raw(matrix: Matrix, standard: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
    return (standard * matrix.std + matrix.mean).to(matrix.values.dtype)


def original(chunks: ChunkSet) -> dict[str, Tensor]:
    """The chosen tensors as they are, to the last bit."""
    return {matrix.name: paste(matrix.values, matrix.shape) for matrix in chunks.matrices}


def noise_twin(chunks: ChunkSet, candidate: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The given model plus Gaussian noise, as far from it in every tensor as a candidate is (Frobenius norm)."""
    result = {}
    for matrix in chunks.matrices:
        old = paste(matrix.values, matrix.shape)
        generator = torch.Generator().manual_seed(seed_of(seed, "noise", matrix.name))
        noise = torch.randn(old.shape, generator=generator)
        size = (candidate[matrix.name].float() - old.float()).norm() / noise.norm()
        result[matrix.name] = (old.float() + noise * size).to(old.dtype)
    return result


def distance(chunks: ChunkSet, candidate: Mapping[str, Tensor]) -> float:
    """Norm of the change of all chosen tensors over the norm of what they were."""
    change = size = 0.0
    for matrix in chunks.matrices:
        old = paste(matrix.values, matrix.shape).float()
        change += (candidate[matrix.name].float() - old).square().sum().item()
        size += old.square().sum().item()
    return (change / max(size, 1e-30)) ** 0.5
