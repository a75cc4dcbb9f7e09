"""Everything that decides an exploration of one model, except the model and the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from weightgen.large.generator import ChunkModelConfig
from zoo.config import StrictConfig, load_config


class LayersConfig(StrictConfig):
    """Which weight matrices are sampled anew."""

    select: str = Field(default="auto", description="'auto': by spectrum; else a regular expression for tensor names")
    top: int = Field(default=4, ge=1, description="how many matrices 'auto' takes")
    prefer: Literal["signal", "noise"] = Field(
        default="signal", description="most energy outside of the Marchenko-Pastur bulk first, or least"
    )


class ChunkConfig(StrictConfig):
    """The pieces that a matrix is cut into: ``rows`` tokens of ``columns`` weights."""

    rows: int = Field(default=16, ge=1)
    columns: int = Field(default=64, ge=1)


class StageConfig(StrictConfig):
    """Optimisation of codec or denoiser."""

    steps: int = Field(default=500, ge=1)
    batch_size: int = Field(default=32, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.99, ge=0, lt=1)


class SampleConfig(StrictConfig):
    """How candidates are drawn."""

    n: int = Field(default=8, ge=1, description="candidates")
    strength: float = Field(default=0.5, gt=0, le=1, description="noise given to the model's own latents; 1 is all")
    residual: Literal["keep", "drop"] = Field(
        default="keep", description="whether what the codec cannot represent is taken from the given model"
    )
    controls: int = Field(default=2, ge=0, description="candidates with a twin of Gaussian noise of the same size")


class ScoreConfig(StrictConfig):
    """How models are judged."""

    metric: Literal["auto", "accuracy", "likelihood"] = Field(
        default="auto", description="auto: accuracy where there are choices, else mean log-likelihood a token"
    )
    max_items: int = Field(default=1000, ge=2)
    batch_size: int = Field(default=16, ge=1)
    max_tokens: int = Field(default=512, ge=2, description="longest text of a causal model; encoders read 48")


class ExploreConfig(StrictConfig):
    """An exploration."""

    explore: Literal["chunks"] = "chunks"
    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=1, ge=0, description="0 leaves torch's own choice")
    layers: LayersConfig = LayersConfig()
    chunk: ChunkConfig = ChunkConfig()
    model: ChunkModelConfig = ChunkModelConfig()
    codec: StageConfig = StageConfig()
    diffusion: StageConfig = StageConfig()
    sample: SampleConfig = SampleConfig()
    score: ScoreConfig = ScoreConfig()


def load_explore_config(path: Path | str, overrides: Sequence[str] = ()) -> ExploreConfig:
    """Read the YAML config of an exploration.

    Raises:
        UsageError: if it cannot be used.
    """
    return load_config(path, ExploreConfig, overrides)
