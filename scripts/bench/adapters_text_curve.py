"""Accuracy on the validation tasks while generators of adapters are trained for longer than their configs say.

    weightgen train configs/d2nwg-lora.yaml --zoo ZOO --out DIR \\
        --set 'stages.behaviour={steps: 480, batch_size: 4, lr: 0.0005, ema: 0.9, checks: 8}'
    python scripts/bench/adapters_text_curve.py --zoo ZOO --generators d2nwg=DIR mapper=DIR

Beside them the base model, and the adapters of the zoo that were trained on these tasks. ``adapters_text.py`` renders.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from scripts.bench.adapters_text_measure import RESULTS  # noqa: E402
from weightgen.checkpoint import load_generator, read_history  # noqa: E402
from weightgen.training_data import TrainingData  # noqa: E402
from zoo.threads import torch_threads  # noqa: E402
from zoo.zoo import Zoo  # noqa: E402


@torch.no_grad()
def ends(data: TrainingData) -> dict[str, float]:
    """Accuracy of the base model and of the tasks' own adapters, on the examples that training is judged by."""
    found: dict[str, list[float]] = {"base": [], "own": []}
    for held in data.held:
        tensors = held.val.members.tensors
        for row, task in enumerate(held.val.task_of.tolist()):
            own = {name: value[row : row + 1] for name, value in tensors.items()}
            for name, one in (("own", own), ("base", {key: torch.zeros_like(value) for key, value in own.items()})):
                found[name].append(held.judge.score(one, task).item())
    return {name: round(sum(values) / len(values), 4) for name, values in found.items()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--generators", nargs="+", required=True, metavar="NAME=DIR")
    options, result = parser.parse_args(), {}
    folders: dict[str, Path] = {
        name: Path(folder) for name, _, folder in (o.partition("=") for o in options.generators)
    }
    config = load_generator(next(iter(folders.values()))).config
    with Zoo.open(options.zoo) as zoo, torch_threads(1):
        result: dict[str, Any] = {"ends": ends(TrainingData(zoo, config)), "curves": {}, "stages": {}}
    for name, folder in folders.items():
        history = read_history(folder)
        before = list(history["stages"].values())[-2]["val_accuracy"]
        checks = [
            (row["step"], row["val_accuracy"]) for row in history["stages"]["behaviour"]["log"] if "val_accuracy" in row
        ]
        result["curves"][name] = [(0, before), *checks]
        result["stages"][name] = history["identity"]["config"]["stages"]["behaviour"]
    (RESULTS / "curve.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
