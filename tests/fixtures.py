"""A very small zoo and a hardly trained generator, made once a test process, for all tests that need real ones.

Never change what the fixtures return; copy the folder first.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from weightgen.generators import GeneratorConfig
from weightgen.train import load_train_config, train_generator
from zoo.build import build
from zoo.config import dump_config
from zoo.zoo import Zoo

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPE = CONFIGS / "digits.yaml"

# 45 tasks of two digits, 39 of them for training, two networks of 64-4-2 each.
TINY_RECIPE = (
    "tasks.classes=2",
    "tasks.held_out=3",
    "tasks.validation=3",
    "network.hidden=[4]",
    "training.epochs=4",
)

# What makes a generator small beyond what all of them have in common; one that is not listed is small enough.
LATENT = (
    "codec={latent: 4, width: 16, depth: 1, heads: 2}",
    "conditioner={intra_depth: 1, inter_depth: 1, heads: 2, max_classes: 4}",
    "width=16",
    "heads=2",
    "behaviour.queries=8",
)
TINY_MODEL = {
    "d2nwg": (
        *LATENT,
        "denoiser={depth: 1, sampling_steps: 3}",
    ),
    "mapper": (*LATENT, "depth=1"),
    "igpg": (
        "codec={group: 4, quantiser: {size: 16}}",
        *LATENT[1:],
        "prior={depth: 1, feed_forward: 16}",
    ),
    "prototype": ("static={rank: 2}", "memory={texts_per_class: 4, pool: 8, keys: 8}"),
}


def tiny_config(name: str = "d2nwg", *overrides: str) -> GeneratorConfig:
    """The digits config of a registered generator, else that for adapters, made as small as it goes, with overrides."""
    path = next(path for kind in ("digits", "lora") if (path := CONFIGS / f"{name}-{kind}.yaml").is_file())
    stages = dump_config(load_train_config(path)).get("stages", {})
    short = [f"stages.{stage}={{steps: 4, batch_size: 8}}" for stage in stages]
    return load_train_config(path, ["token_width=16", "shots=3", *short, *TINY_MODEL.get(name, ()), *overrides])


@pytest.fixture(scope="session")
def tiny_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a zoo of 90 networks that tell two digits apart."""
    path = tmp_path_factory.mktemp("zoo") / "tiny"
    build(RECIPE, path, TINY_RECIPE)
    return path


@pytest.fixture(scope="session")
def tiny_generator(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a generator that was trained on ``tiny_zoo`` for a few steps; it generates, but badly."""
    path = tmp_path_factory.mktemp("generator") / "d2nwg"
    with Zoo.open(tiny_zoo) as zoo:
        train_generator(tiny_config(), zoo, path)
    return path
