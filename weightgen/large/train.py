"""Training of codec and denoiser on the chunks of one model; interruptible, and resumed to the very same result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightgen.large.chunks import ChunkSet, Matrix
from weightgen.large.config import ExploreConfig, StageConfig
from weightgen.large.generator import ChunkModel
from weightgen.progress import Progress
from weightgen.resume import SafetensorsIO
from weightgen.types import Loss
from zoo import safefile
from zoo.errors import WeightgenError
from zoo.seeds import seed_of

SAVE_EVERY = 100
ENCODE_BATCH = 512
WARM_UP = 0.1

Latents = dict[str, Float[Tensor, "_ t c"]]


def make_model(config: ExploreConfig, chunks: ChunkSet) -> ChunkModel:
    """Untrained model; the same seed gives the same parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return ChunkModel(config.model, config.chunk.rows, config.chunk.columns, chunks.sizes)


def trained_model(
    config: ExploreConfig, chunks: ChunkSet, folder: Path, progress: Progress | None = None
) -> ChunkModel:
    """Train a model, go on with an interrupted training, or load one that is complete.

    Args:
        config: of the exploration.
        chunks: what to learn.
        folder: keeps ``model.safetensors`` and, until that is there, the states of the stages.
        progress: told what is done.

    Raises:
        BadArtefact: if a file of an earlier run is damaged.
        WeightgenError: if the loss is not finite.
    """
    model = make_model(config, chunks)
    done = folder / "model.safetensors"
    if done.is_file():
        model.load_state_dict(safefile.load(done)[0])
        return model.requires_grad_(False).eval()
    folder.mkdir(parents=True, exist_ok=True)

    def codec_loss(generator: torch.Generator) -> Loss:
        picked = _pick(chunks, config.codec.batch_size, generator)
        return model.codec_loss(torch.cat([matrix.standard(which) for matrix, which in picked]), generator)

    run_stage(model, "codec", [model.codec], codec_loss, config.codec, config.seed, folder, progress)
    with torch.no_grad():
        model.latent_mean.zero_()
        model.latent_std.fill_(1.0)
        flat = torch.cat([part.flatten(0, 1) for part in encode(model, chunks).values()])
        model.latent_mean.copy_(flat.mean(0))
        model.latent_std.copy_(flat.std(0, correction=0).clamp(min=1e-6))
    latents = encode(model, chunks)

    def diffusion_loss(generator: torch.Generator) -> Loss:
        picked = _pick(chunks, config.diffusion.batch_size, generator)
        latent = torch.cat([latents[matrix.name][which] for matrix, which in picked])
        place = torch.cat([matrix.place[which] for matrix, which in picked])
        near, known = neighbours(picked, latents)
        return model.diffusion_loss(latent, place, near, known, generator)

    learned = [model.denoiser, model.place, model.beside, model]
    run_stage(model, "diffusion", learned, diffusion_loss, config.diffusion, config.seed, folder, progress)
    partial = folder / "model.partial"
    safefile.save(partial, {name: value.contiguous() for name, value in model.state_dict().items()})
    partial.replace(done)
    for state in folder.glob("*.state"):
        state.unlink()
    return model.requires_grad_(False).eval()


def _pick(chunks: ChunkSet, count: int, generator: torch.Generator) -> list[tuple[Matrix, Int[Tensor, " _"]]]:
    """Random chunks, those of one matrix together."""
    which = torch.randint(len(chunks), (count,), generator=generator)
    picked, start = [], 0
    for matrix in chunks.matrices:
        here = which[(which >= start) & (which < start + len(matrix.values))] - start
        start += len(matrix.values)
        if len(here):
            picked.append((matrix, here))
    return picked


def neighbours(
    picked: Sequence[tuple[Matrix, Int[Tensor, " _"]]], latents: Latents
) -> tuple[Float[Tensor, "b 4 t c"], Tensor]:
    """Latents of the chunks around some chunks, and where there are any."""
    near = [latents[matrix.name][matrix.near[which].clamp(min=0)] for matrix, which in picked]
    return torch.cat(near), torch.cat([matrix.near[which] >= 0 for matrix, which in picked])


def encode(model: ChunkModel, chunks: ChunkSet) -> Latents:
    """Latents of every chunk, by matrix."""
    return {
        matrix.name: torch.cat(
            [model.encode(matrix.standard(which)) for which in torch.arange(len(matrix.values)).split(ENCODE_BATCH)]
        )
        for matrix in chunks.matrices
    }


def rate(step: int, config: StageConfig) -> float:
    """Learning rate: linear warm-up, then half a cosine down to zero."""
    warm = max(1, round(WARM_UP * config.steps))
    if step < warm:
        return config.lr * (step + 1) / warm
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, config.steps - warm)))


def run_stage(
    model: ChunkModel,
    name: str,
    modules: Sequence[nn.Module],
    loss: Callable[[torch.Generator], Loss],
    config: StageConfig,
    seed: int,
    folder: Path,
    progress: Progress | None,
) -> None:
    """Train some parts in place, from the saved state if there is one; they end with averaged (EMA) weights.

    Args:
        model: owner of the parts.
        name: of the stage.
        modules: parts that learn; ``model`` itself stands for its own parameters without those of its parts.
        loss: of one batch, from the random numbers of that step.
        config: optimisation.
        seed: every step draws from its own generator, so that a resumed run repeats it.
        folder: for the state.
        progress: told what is done.

    Raises:
        WeightgenError: if the loss is not finite.
        BadArtefact: if the state is damaged.
    """
    state, store = folder / f"{name}.state", SafetensorsIO()
    model.requires_grad_(False).train()
    learned = [p for m in modules for p in m.parameters(recurse=m is not model)]
    average = [p.detach().clone() for p in learned]
    optimizer = torch.optim.AdamW(learned, lr=config.lr, weight_decay=config.weight_decay)
    start = 0
    if state.is_file():
        saved = store.load_checkpoint(state)
        start, average = saved["step"], list(saved["average"])
        for parameter, value in zip(learned, saved["learned"], strict=True):
            parameter.data.copy_(value)
        optimizer.load_state_dict(saved["optimizer"])
    for parameter in learned:
        parameter.requires_grad_(True)
    for step in range(start, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, config)
        total = loss(torch.Generator().manual_seed(seed_of(seed, name, step))).total
        if not torch.isfinite(total):
            raise WeightgenError(f"the loss of stage {name!r} became {total.item()} at step {step}", f"lower {name}.lr")
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(learned, config.clip)
        optimizer.step()
        with torch.no_grad():
            decay = min(config.ema, (1 + step) / (10 + step))
            for value, parameter in zip(average, learned, strict=True):
                value.lerp_(parameter, 1 - decay)
        if progress is not None:
            progress(f"train {name}", step + 1, config.steps)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == config.steps:
            content = {"step": step + 1, "learned": learned, "average": average, "optimizer": optimizer.state_dict()}
            store.save_checkpoint(content, state)
    for parameter, value in zip(learned, average, strict=True):
        parameter.data.copy_(value)
    model.requires_grad_(False).eval()
