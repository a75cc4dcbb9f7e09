"""Train real zoos from a recipe: ``build("configs/digits.yaml", "runs/zoo")``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
    from zoo.build.registry import recipes

    raw, known = read_yaml(recipe), recipes()
    name = raw.get("recipe")
    if not isinstance(name, str) or name not in known:
        raise UsageError(f"{recipe}: unknown recipe {name!r}", f"set recipe to one of {', '.join(sorted(known))}")
    return parse_config(raw, known[name][0], source=str(recipe), overrides=overrides)


def build(
    recipe: Path | str,
    zoo_dir: Path | str,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    *,
    engine: str = "inline",
    workers: int | None = None,
) -> BuildReport:
    """Train every member of a recipe that the zoo does not hold yet.

    Args:
        recipe: YAML file with a ``recipe`` key.
        zoo_dir: folder of the zoo; made if missing.
        overrides: ``a.b=c`` changes of the recipe.
        progress: called with (stage, done, total).
        engine: ``inline`` (this process), ``local`` (a pool of processes) or ``ray`` (a cluster).
        workers: processes of the engines other than ``inline``; by default one a processor core.

    Returns:
        Counts and time. Running it again after an interruption goes on where it stopped.

    Raises:
        UsageError: if the recipe cannot be used, or the zoo was built by a different one.
        MissingExtra: if the engine or a library that the recipe needs is not installed.
    """
    from zoo.build import engines
    from zoo.build.registry import make_recipe
    from zoo.zoo import Zoo

    started = time.monotonic()
    engines.check(engine, workers)
    resolved = dump_config(load_recipe(recipe, overrides))
    plan = make_recipe(resolved)
    with Zoo.open(zoo_dir, create=True) as zoo:
        _prepare(zoo, plan, resolved)
        licenses = {data.name: data.license for data in plan.datasets()}
        present = {record.lineage for record in zoo.records()}
        groups = plan.groups(GROUP)  # the same groups in every run: rounding depends on the company
        rest = [[member for member in group if member[0] not in present] for group in groups]
        missing = [group for group in rest if group]
        total, added, failed = sum(map(len, groups)), 0, 0
        done = total - sum(map(len, missing))
        for index, trained in engines.run(engine, resolved, plan, missing, workers):
            failures = _commit(zoo, trained, resolved["recipe"], licenses)
            failed += failures
            added += len(missing[index]) - failures
            done += len(missing[index])
            if progress:
                progress("train networks", done, total)
        return BuildReport(added, total - added - failed, failed, len(zoo), time.monotonic() - started)


def _prepare(zoo: Zoo, plan: Recipe, resolved: dict) -> None:
    """Store recipe, data set and tasks; refuse a zoo that was built by another recipe."""
    known = zoo.meta("recipe")
    if known is not None and known != resolved:
        raise UsageError(
            f"the zoo {zoo.path} was built with another recipe or other settings",
            "build into a new folder, or repeat the settings of the first build",
        )
    if known is None:
        for data in plan.datasets():
            zoo.put_dataset(data.name, data.tensors(), description=data.description, license=data.license)
        zoo.put_tasks(list(plan.tasks()))
        zoo.put_meta("recipe", resolved)


def _commit(zoo: Zoo, group: Sequence[Member], recipe: str, licenses: Mapping[str, str | None]) -> int:
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
                license=licenses.get(member.task.dataset),
                source=f"recipe:{recipe}",
                dataset=member.task.dataset,
                extra_files=member.extra_files,
            )
        )
    zoo.add_many(entries)
    return failures
