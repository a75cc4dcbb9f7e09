"""How long one has to train tiny CNNs to be as good as those that D2NWG writes.

    python scripts/bench/d2nwg_images_cost.py --zoo ZOO   # the zoo of d2nwg_images.py; after its command run

Random starts are trained with more and more epochs, each time with a schedule that ends there, until their mean
accuracy on test images is that of the networks in the saved results. Where these hold random starts after many epochs,
those are taken (one schedule to 25 epochs, another to 50). A single network is timed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a script beside this one is named like the package

from scripts.bench import d2nwg_images as bench  # noqa: E402
from weightgen.evaluation import start_points as points  # noqa: E402
from zoo.datasets import load_groups  # noqa: E402
from zoo.zoo import Zoo  # noqa: E402

EPOCHS = (1, 5, 10, 25, 50)
NETWORKS = 3


def epochs_to(data: points.ImageSet, target: float, known: Mapping[str, Sequence[float]], seed: int) -> dict[str, Any]:
    """Accuracy by number of epochs up to the first that reaches the target, and core-seconds of one such training.

    Args:
        data: the image set.
        target: accuracy to reach.
        known: accuracies of random starts by epochs, of the saved results.
        seed: of the random starts.
    """
    measured = str(EPOCHS[-1]) in known
    found: dict[str, Any] = {"target": round(target, 5), "saved": measured, "accuracy": {}}
    for epochs in (int(one) for one in known if one != "0") if measured else EPOCHS:
        if measured:
            scores = list(known[str(epochs)])
        else:
            starts = {"scratch": points.scratch(data.architecture, NETWORKS, seed)}
            scores = bench.run_curves(data, starts, (epochs,), seed)["scratch"][str(epochs)]
        found["accuracy"][str(epochs)] = scores
        if sum(scores) / len(scores) >= target:
            found["epochs"] = epochs
            break
    started = time.process_time()
    bench.run_curves(data, {"scratch": points.scratch(data.architecture, 1, seed)}, (1,), seed)
    found["core_seconds"] = round(found.get("epochs", EPOCHS[-1]) * (time.process_time() - started), 2)
    return found


def main(zoo: Annotated[Path, typer.Option(help="Zoo of tiny CNNs.")], seed: int = 0) -> None:
    """Measure, and save after every set."""
    torch.set_num_threads(1)
    curves = json.loads((bench.RESULTS / "seen-0.json").read_text())["curves"]
    result: dict[str, Any] = {}
    with Zoo.open(zoo) as opened:
        for members in load_groups(opened, "train"):
            for name in sorted({str(record.task) for record in members.records}):
                written, known = curves[name]["d2nwg"]["0"], curves[name]["scratch"]
                target = sum(written) / len(written)
                result[name] = epochs_to(bench.image_set(opened, members, name), target, known, seed)
                bench.log(f"{name}: {result[name]}")
                bench.save("cost", result)


if __name__ == "__main__":
    typer.run(main)
