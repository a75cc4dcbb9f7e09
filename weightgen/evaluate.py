"""The ``evaluate`` job: a generator, a zoo with held-out tasks, one verdict card."""

from __future__ import annotations

import json
from pathlib import Path

from weightgen.checkpoint import load_generator, read_history
from weightgen.evaluation.plot import draw_card
from weightgen.evaluation.setting import make_setting
from weightgen.evaluation.verdict import evaluate_generator
from weightgen.progress import Progress
from weightgen.results import EvaluateResult
from zoo.errors import UsageError
from zoo.threads import torch_threads
from zoo.zoo import Zoo


def evaluate_on_zoo(
    folder: Path, zoo: Path, out: Path, seeds: tuple[int, ...], candidates: int, progress: Progress | None
) -> EvaluateResult:
    """Run the comparison and write the card; see ``weightgen.jobs.evaluate``."""
    if not seeds or candidates < 1:
        raise UsageError(f"{len(seeds)} seeds and {candidates} candidates", "give at least one of each")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", "give a folder")
    generator, history = load_generator(folder), read_history(folder)
    if len(generator.problem.forms) != 1:
        raise UsageError(
            f"the generator {folder} writes {len(generator.problem.forms)} layouts",
            "evaluate one that writes one layout",
        )
    form = generator.problem.forms[0]
    with Zoo.open(zoo) as opened:
        setting = make_setting(opened, form.reference, generator.config.shots)
    if setting.raw.layout.fingerprint != form.layout.fingerprint:
        raise UsageError(
            f"the generator {folder} writes another layout than the zoo {zoo} holds",
            "evaluate it on the zoo it learned from",
        )
    seen = {*history["train_tasks"], *history["val_tasks"]} & {task.name for task in setting.tasks}
    if seen:
        raise UsageError(
            f"the generator was trained on {len(seen)} of the held-out tasks, for example {min(seen)!r}",
            "evaluate it on the zoo it learned from",
        )
    with torch_threads(generator.config.threads):
        card = evaluate_generator(generator, setting, seeds=seeds, candidates=candidates, progress=progress)
    card["training"] = {
        name: {k: v for k, v in stage.items() if k != "log"} for name, stage in history["stages"].items()
    }
    out.mkdir(parents=True, exist_ok=True)
    json_file, picture = out / "card.json", out / "card.png"
    side = json_file.with_suffix(".partial")
    side.write_text(json.dumps(card, indent=1))
    draw_card(card, picture)
    side.replace(json_file)
    return EvaluateResult(card, json_file, picture)
