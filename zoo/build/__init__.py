"""Train real zoos from a recipe: ``build("configs/digits.yaml", "runs/zoo")``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.config import StrictConfig, dump_config, parse_config, read_yaml
from zoo.errors import UsageError

if TYPE_CHECKING:
    from zoo.build.registry import Member, Recipe
    from zoo.zoo import Entry, Zoo

Progress = Callable[[str, int, int], None]
GROUP = 128
"""Members trained together and committed in one transaction; an interruption loses at most this many."""


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did: members added, skipped because they were there, failed; total in the zoo; seconds."""

    added: int
    skipped: int
    failed: int
    total: int
    seconds: float


def load_recipe(recipe: Path | str, overrides: Sequence[str] = ()) -> StrictConfig:
    """Read and check a recipe without running it.

    Raises:
        UsageError: if the file or one of its values cannot be used.
    """
    from zoo.build import class_subsets  # noqa: F401  (registers itself)
    from zoo.build.registry import RECIPES

    raw = read_yaml(recipe)
    name = raw.get("recipe")
    if name not in RECIPES:
        raise UsageError(f"{recipe}: unknown recipe {name!r}", f"set recipe to one of {', '.join(sorted(RECIPES))}")
    return parse_config(raw, RECIPES[name][0], source=str(recipe), overrides=overrides)


def build(
    recipe: Path | str, zoo_dir: Path | str, overrides: Sequence[str] = (), progress: Progress | None = None
) -> BuildReport:
    """Train every member of a recipe that the zoo does not hold yet.

    Args:
        recipe: YAML file with a ``recipe`` key.
        zoo_dir: folder of the zoo; made if missing.
        overrides: ``a.b=c`` changes of the recipe.
        progress: called with (stage, done, total).

    Returns:
        Counts and time. Running it again after an interruption goes on where it stopped.

    Raises:
        UsageError: if the recipe cannot be used, or the zoo was built by a different one.
    """
    from zoo.build.registry import RECIPES
    from zoo.zoo import Zoo

    started = time.monotonic()
    config = load_recipe(recipe, overrides)
    resolved = dump_config(config)
    plan: Recipe = RECIPES[resolved["recipe"]][1](config)
    with Zoo.open(zoo_dir, create=True) as zoo:
        _prepare(zoo, plan, resolved)
        members = plan.members()
        present = {record.lineage for record in zoo.records()}
        added = failed = 0
        for start in range(0, len(members), GROUP):  # the same groups in every run: rounding depends on the company
            chunk = members[start : start + GROUP]
            missing = [member for member in chunk if member[0] not in present]
            if not missing:
                continue
            failures = _commit(zoo, list(plan.train(missing)), resolved["recipe"])
            failed += failures
            added += len(missing) - failures
            if progress:
                progress("train networks", start + len(chunk), len(members))
        skipped = len(members) - added - failed
        return BuildReport(added, skipped, failed, len(zoo), time.monotonic() - started)


def _prepare(zoo: Zoo, plan: Recipe, resolved: dict) -> None:
    """Store recipe, data set and tasks; refuse a zoo that was built by another recipe."""
    known = zoo.meta("recipe")
    if known is not None and known != resolved:
        raise UsageError(
            f"the zoo {zoo.path} was built with another recipe or other settings",
            "build into a new folder, or repeat the settings of the first build",
        )
    if known is None:
        zoo.put_dataset(
            plan.data.name, plan.data.tensors(), description=plan.data.description, license=plan.data.license
        )
        zoo.put_tasks(list(plan.tasks()))
        zoo.put_meta("recipe", resolved)


def _commit(zoo: Zoo, group: Sequence[Member], recipe: str) -> int:
    """Store one group in a single transaction; return the number of failures."""
    from zoo.zoo import Entry

    entries: list[Entry] = []
    failures = 0
    for member in group:
        if member.weights is None:
            zoo.record_failure(member.lineage, member.failure or "unknown")
            failures += 1
            continue
        entries.append(
            Entry(
                weights=member.weights,
                task=member.task.name,
                description=member.task.description,
                lineage=member.lineage,
                split=member.task.split,
                metrics=member.metrics,
                source=f"recipe:{recipe}",
            )
        )
    zoo.add_many(entries)
    return failures
