"""The job ``solve`` for networks; see ``weightgen.jobs``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightgen.progress import Progress
from weightgen.solve_jobs import REPORT, SolveResult

if TYPE_CHECKING:
    from weightgen.solve.solution import Solution
    from zoo.types import Weights

NETWORK = "network.safetensors"


def solve_network(
    data: Path,
    out: Path,
    budget: str,
    *,
    description: str,
    zoo: Path | str | None,
    generators: Sequence[Path | str],
    encoder: str,
    seed: int,
    progress: Progress | None,
) -> SolveResult:
    """Find the best network for labelled examples; arguments as in ``weightgen.jobs.solve``."""
    from weightgen.generate.examples import read_examples
    from weightgen.generate.target import check_target
    from weightgen.kit import generator_folder
    from weightgen.retrieve import Index
    from weightgen.solve.budget import Budget
    from weightgen.solve.journal import Journal
    from weightgen.solve.networks import NetworkMeans, solve_networks
    from zoo.seeds import seed_of
    from zoo.store import hash_tensors

    limit = Budget.parse(budget)
    check_target(out)
    x, y = read_examples(data)
    folders = [generator_folder(folder) for folder in generators]
    about = [description, hash_tensors({"x": x, "y": y}), str(zoo), *map(str, folders)]
    journal = Journal(out.with_name(f".{out.name}.solve.json"), str(seed_of(json.dumps(about), seed)), limit)
    with contextlib.ExitStack() as stack:
        index = None if zoo is None else stack.enter_context(Index.open(zoo, encoder=encoder))
        means = NetworkMeans(index, folders, data)
        solution = solve_networks(x, y, description, means, journal, seed=seed, report=progress)
    task = {
        "name": data.name,
        "description": description,
        "labels": [str(label) for label in range(int(y.max()) + 1)],
        "unlabelled_texts": 0,
        "labelled_texts": len(y),
    }
    report = _write(out, solution, task)
    journal.remove()
    return SolveResult(out, report)


def _write(out: Path, solution: Solution, task: Mapping[str, Any]) -> dict[str, Any]:
    """Write the network, card and report side by side, check that the file holds what it should, put them in place."""
    from weightgen.generate.target import RECEIPT, replaced
    from weightgen.solve.card import solve_card, solve_report

    report = solve_report(solution, task, None, None)
    with replaced(out) as side:
        if solution.weights is not None:
            _write_network(solution.weights, side / NETWORK)
        (side / "README.md").write_text(solve_card(report), encoding="utf-8")
        (side / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        files = sorted(path.name for path in side.iterdir())
        receipt: dict[str, Any] = {"description": task["description"], "generated": {"files": files}}
        if solution.weights is not None:
            receipt["architecture"] = solution.weights.layout.config["architecture"]
        (side / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    return report


def _write_network(weights: Weights, path: Path) -> None:
    from zoo import safefile
    from zoo.errors import WeightgenError

    safefile.check_finite(weights.tensors, "the chosen network")
    metadata = {"format": "pt", "architecture": json.dumps(dict(weights.layout.config["architecture"]))}
    safefile.save(path, weights.tensors, metadata)
    found = safefile.load(path)[0]
    if any(not value.equal(found[name]) for name, value in weights.tensors.items()):
        raise WeightgenError(f"{path.name} holds something else after it was written", "check the disk, then retry")
