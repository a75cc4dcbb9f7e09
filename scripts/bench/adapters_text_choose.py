"""What is known of generators of adapters before the test tasks are opened, from the 13 validation tasks alone.

    python scripts/bench/adapters_text_choose.py --tasks DIR --zoo DIR --generators mapper=DIR d2nwg=DIR igpg=DIR

Chooses for each generator the strength that its adapters are written at, times one adapter, and trains adapters on
labelled texts for a few steps. ``adapters_text_measure.py run`` reads the strengths, ``adapters_text.py`` renders.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from scripts.bench.adapters_text_measure import CHOICE, UNLABELLED, Given, scored  # noqa: E402
from scripts.bench.adapters_text_tasks import JUNK, VALIDATION, load  # noqa: E402
from scripts.bench.adapters_text_validation import gap  # noqa: E402
from weightgen.adapted import AdaptedEncoder  # noqa: E402
from weightgen.checkpoint import load_generator, read_history  # noqa: E402
from weightgen.generate.finetune import finetune_adapter  # noqa: E402
from weightgen.generators import Generator  # noqa: E402
from weightgen.generators.igpg import IGPG  # noqa: E402
from zoo.build.encoder import EncoderConfig, TextEncoder  # noqa: E402
from zoo.datasets import Members, load_groups  # noqa: E402
from zoo.tasks import TRAIN, VAL  # noqa: E402
from zoo.types import Layout, Weights  # noqa: E402
from zoo.zoo import Zoo  # noqa: E402

STRENGTHS = (0.25, 0.5, 1.0)
MOST = 60
"""Texts of a task that adapters are scored on."""
STEPS = (2, 5, 10)
FEW = 3
"""Tasks that adapters are trained on, each with all its training texts."""
Rows = dict[str, dict[str, list[float]]]


def up_scaled(tensors: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The update times a factor."""
    return {name: value * (factor if "lora_B" in name else 1) for name, value in tensors.items()}


def measure(method: str, generator: Generator, tasks: list[Given], encoder: TextEncoder, rows: Rows) -> list[float]:
    """Scores at every strength, with texts, and for a junk description; seconds of one adapter each."""
    seconds: dict[str, list[float]] = {"labels": [], "texts": []}
    for given in tasks:
        label_only = replace(given.known, texts=())
        asked = {"labels": label_only, "texts": given.known, "junk": replace(label_only, description=JUNK)}
        for row, known in asked.items():
            started = time.perf_counter()
            condition = given.condition(known, encoder)
            one = generator.sample(condition, generator.layout_for(condition), 1, 0)[0]
            seconds.setdefault(row, []).append(time.perf_counter() - started)
            for strength in STRENGTHS if row == "labels" else (1.0,):
                tensors = up_scaled(one.tensors, strength)
                found = scored(encoder, one.layout, tensors, given.known, given.texts, given.y)
                rows.setdefault(f"{method} {row} {strength:g}", {})[given.name] = found
    return [round(sorted(seconds[row])[len(tasks) // 2], 3) for row in ("labels", "texts")]


def likelihood(
    generator: IGPG, members: Members, tasks: list[Given], encoder: TextEncoder, rows: Rows
) -> dict[str, Any]:
    """What the codec keeps of adapters that it was not fitted to, and what their words cost."""
    layout = members.layout
    bits, by_name = [], {record.task: i for i, record in enumerate(members.records)}
    for given in tasks:
        tensors = {key: value[by_name[given.name]] for key, value in members.tensors.items()}
        values = generator.problem.tokenizer.values(tensors, layout)[None]
        decoded = generator.problem.tokenizer.tensors(generator.reconstruct(values, layout)[0], layout)
        found = scored(encoder, layout, decoded, given.known, given.texts, given.y)
        rows.setdefault("igpg codec", {})[given.name] = found
        bits.append(generator.score(values, given.condition(given.known, encoder), layout).item())
    frame, size = generator.frame(layout), len(generator.vocabulary)
    return {
        "words": len(generator.line(layout)),
        "bits_a_weight": generator.codec.bits_a_weight(frame.mask, frame.position),
        "bits_a_word": round(sum(bits) / len(bits), 3),
        "uniform": math.log2(size),
    }


def finetuning(layout: Layout, folder: Path, tasks: list[Given], encoder: TextEncoder, rows: Rows) -> dict[str, float]:
    """Train adapters on labelled texts of a few tasks, as those of the zoo were; seconds by steps."""
    adapted, seconds = AdaptedEncoder(encoder, layout), dict.fromkeys(map(str, STEPS), 0.0)
    for given in tasks:
        texts, y = load(folder, given.name).select(TRAIN)
        torch.manual_seed(0)
        empty = {spec.name: torch.zeros(spec.shape) for spec in layout.tensors}
        for name, value in empty.items():
            if "lora_A" in name:
                nn.init.kaiming_uniform_(value, a=5**0.5)
        for steps in STEPS:
            started = time.perf_counter()
            start = Weights(layout, empty)
            options: dict[str, Any] = {"lr": 2.5e-3, "points": 0, "warmup": 2, "bfloat16": True}
            one, _ = finetune_adapter(adapted, start, texts, y, given.known.labels, steps, 0, **options)
            seconds[str(steps)] += (time.perf_counter() - started) / len(tasks)
            found = scored(encoder, layout, one.tensors, given.known, given.texts, given.y)
            rows.setdefault(f"trained {steps}", {})[given.name] = found
    return {steps: round(value, 2) for steps, value in seconds.items()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--generators", nargs="+", required=True, metavar="NAME=DIR")
    parser.add_argument("--out", type=Path, default=CHOICE)
    options = parser.parse_args()
    done = json.loads(options.out.read_text()) if options.out.is_file() else {"rows": {}, "generators": {}}
    rows, encoder = done["rows"], TextEncoder(EncoderConfig())
    encoder.model.requires_grad_(False)
    tasks = [Given(options.tasks, name, VAL, MOST) for name in VALIDATION]
    with Zoo.open(options.zoo) as zoo:
        members = load_groups(zoo, "val")[0]
    if "base" not in rows:
        nothing = {key: torch.zeros_like(value[0]) for key, value in members.tensors.items()}
        number = {record.task: i for i, record in enumerate(members.records)}
        for given in tasks:
            own = {key: value[number[given.name]] for key, value in members.tensors.items()}
            for row, tensors in (("base", nothing), ("own", own)):
                found = scored(encoder, members.layout, tensors, given.known, given.texts, given.y)
                rows.setdefault(row, {})[given.name] = found
    if "finetuning" not in done:
        done["finetuning"] = finetuning(members.layout, options.tasks, tasks[:FEW], encoder, rows)
    for method, _, folder in (one.partition("=") for one in options.generators):
        generator = load_generator(Path(folder))
        generator.config = generator.config.model_copy(update={"strength": 1.0})
        about: dict[str, Any] = {"seconds": measure(method, generator, tasks, encoder, rows)}
        about["parameters"] = read_history(Path(folder))["parameters"]
        gains = {s: gap({**rows, "oracle": rows["own"]}, f"{method} labels {s:g}", VALIDATION, 0) for s in STRENGTHS}
        about["strength"] = max(STRENGTHS, key=lambda s: gains[s])
        if isinstance(generator, IGPG):
            about["words"] = likelihood(generator, members, tasks, encoder, rows)
        done["generators"][method] = about
        options.out.write_text(json.dumps({**done, "texts": MOST, "unlabelled": UNLABELLED}, indent=1))
        print(method, about, gains)


if __name__ == "__main__":
    main()
