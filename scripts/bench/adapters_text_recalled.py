"""Do texts that are remembered from other tasks stand in for the unlabelled texts that a new task lacks?

    python scripts/bench/adapters_text_recalled.py --tasks DIR

On the 47 training and validation tasks, each with the tasks of its family left out of the memory, in the space of the
unadapted encoder: labels follow the texts near them (``weightgen.prototypes.labels.soft_means``, the step that helps
with real texts), once 32 texts of the task, once the texts of other tasks that are nearest to its labels.
``adapters_text.py`` renders the result.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from scripts.bench.adapters_text_measure import RESULTS, UNLABELLED, nearest, scores  # noqa: E402
from scripts.bench.adapters_text_tasks import TEST, load  # noqa: E402
from weightgen.prototypes.labels import soft_means  # noqa: E402
from zoo.build.encoder import EncoderConfig, TextEncoder  # noqa: E402
from zoo.tasks import TRAIN, VAL  # noqa: E402

JUDGED = 96
RESAMPLES = 4000
FAMILIES = {
    "film": ("rt_polarity", "sst5", "sentences_imdb", "sentences_amazon_cells"),
    "questions": ("askubuntu", "webapplications", "transit_chatbot"),
    "emotion": ("goemotions_ekman", "goemotions_group"),
    "hate": ("hate_offensive_davidson", "hatecheck", "hatecheck_group", "tweet_hate", "tweet_offensive", "olid_target"),
}
"""Families whose tasks have no common first word; ``olid_targeted`` is one by its first word, with ``hate``."""
PULLS = (0.3, 0.7)
CENTRES = (0.3, 0.6)
RECALLED = (8, 32)
TEMPERATURE = 20.0
Rule = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From label vectors, texts of the task and remembered texts to prototypes, and what is taken off every text."""


def family(name: str) -> str:
    """The family of a task."""
    own = [key for key, members in FAMILIES.items() if name in members or (key == "hate" and name.startswith("olid"))]
    return own[0] if own else name.split("_")[0]


def difference(values: Tensor) -> list[float]:
    """Mean over tasks, with its 95 % interval from resampled tasks."""
    rng = torch.Generator().manual_seed(0)
    means = values[torch.randint(len(values), (RESAMPLES, len(values)), generator=rng)].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975])).tolist()
    return [round(one, 4) for one in (values.mean().item(), low, high)]


def following(recalled: int | None, centre: float, pull: float) -> Rule:
    """Labels follow the task's own texts, or so many remembered ones for each label."""

    def rule(labels: Tensor, own: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        texts = own if recalled is None else memory[(memory @ labels.T).topk(recalled, dim=0).indices.unique()]
        return soft_means(labels, texts, centre, pull, TEMPERATURE)

    return rule


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, required=True)
    folder = parser.parse_args().tasks
    encoder, known = TextEncoder(EncoderConfig()), {}
    for name in (entry["name"] for entry in json.loads((folder / "index.json").read_text(encoding="utf-8"))):
        if name not in TEST:
            task = load(folder, name)
            judged, y = task.select(VAL)
            with torch.autocast("cpu", torch.bfloat16):
                parts = (task.label_texts, task.select(TRAIN)[0][:UNLABELLED], judged[:JUDGED])
                known[name] = (*(encoder.encode(part) for part in parts), y[:JUDGED])

    def run(rule: Rule) -> Tensor:
        found = []
        for name, (labels, own, judged, y) in known.items():
            memory = torch.cat([one[1] for other, one in known.items() if family(other) != family(name)])
            moved, middle = rule(labels, own, memory)
            found.append(scores(nearest(F.normalize(judged - middle, dim=-1), moved), y)[0])
        return torch.tensor(found)

    base, rows = run(lambda labels, _own, _memory: (labels, torch.zeros(labels.shape[1]))), []
    for recalled in (None, *RECALLED):
        for centre in CENTRES:
            for pull in PULLS:
                gain = difference(run(following(recalled, centre, pull)) - base)
                rows.append({"recalled": recalled, "centre": centre, "pull": pull, "gain": gain})
    result = {"tasks": len(known), "texts": UNLABELLED, "base": round(base.mean().item(), 4), "rows": rows}
    (RESULTS / "recalled.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
