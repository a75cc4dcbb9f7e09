"""The job ``solve``; see ``weightgen.jobs``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightgen.progress import Progress
from weightgen.results import JobResult

if TYPE_CHECKING:
    from weightgen.generate.task import GivenTask
    from weightgen.solve.run import Means, Solution
    from zoo.build.encoder import TextEncoder

REPORT = "solve.json"
CHECKED = 16
"""Labelled texts on which the written adapter is compared with the one in memory."""


@dataclass(frozen=True)
class SolveResult(JobResult):
    """The best weights that were found, and how.

    Attributes:
        out: folder of the adapter; PEFT loads it. Where the base is best it changes nothing.
        report: every candidate, controls, cost and verdict: the content of ``solve.json``.
    """

    out: Path
    report: Mapping[str, Any]

    def summary(self) -> str:
        report, verdict = self.report, self.report["verdict"]
        lines = [f"{self.out}: {verdict['sentence']}", f"on the ground of {verdict['basis_in_words']}"]
        for row in report["candidates"]:
            score = "" if row["macro_f1"] is None else f"{100 * row['macro_f1']:5.1f}"
            gain = ""
            if row["gain_over_base"] is not None and row["way"] != "base":
                gain = f"{100 * row['gain_over_base']:+5.1f} ± {100 * row['noise']:.1f}"
            lines.append(f"  {row['name']:28s} {score:>6s} {gain:>12s}  {row['fate']}")
        cost = report["cost"]
        spent = f"{cost['steps']:g} steps, {cost['seconds']:.0f} s, peak memory {cost['peak_memory_mib']} MiB"
        return "\n".join([*lines, spent, *report["notes"]])


def solve(
    description: str | None = None,
    data: Path | str | None = None,
    base: str | None = None,
    out: Path | str = "solved",
    budget: str = "60s",
    *,
    labels: Sequence[str] = (),
    task: Path | str | None = None,
    use_examples: int | None = None,
    use_labels: int | None = None,
    zoo: Path | str | None = None,
    generators: Sequence[Path | str] = (),
    encoder: str | None = None,
    record: Path | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SolveResult:
    """Find the best adapter for a text task, whichever way it comes, or advise to use the base; likewise a network.

    Args:
        description: the task in a sentence.
        data: labelled examples (a task file or csv: all are used) or unlabelled texts, one a line. For an ``.npz`` file
            of ``x`` and ``y`` a network is found, in a zoo of networks or by generators of networks.
        base: id or folder of the text encoder; by default all-MiniLM-L6-v2.
        out: folder of the result; an earlier result there is replaced, anything else is not touched.
        budget: ``"60s"``, ``"2m"`` or ``"500steps"``; with steps every run gives the same result.
        labels: each label in words; by default those of the file.
        task: file of a text task of which only the words are used, unless the next two say more.
        use_examples: texts of the file to use without their labels.
        use_labels: examples of each label of the file to use with their labels.
        zoo: folder of a zoo of adapters; by default those that come with the package.
        generators: folders of trained generators, beside the shipped one.
        encoder: text encoder that retrieval compares texts with; by default MiniLM.
        record: file with what the ways gained on other tasks; by default the shipped one.
        seed: the same seed gives the same result under a budget in steps.
        progress: told what is done.

    Returns:
        The adapter's folder and the verdict.

    Raises:
        UsageError: if the labels are not known in words, something does not fit the base, or ``out`` is in use.
        BadArtefact: if a file, the zoo or a generator is missing or damaged.
        NetworkError: if the base is not on this machine and cannot be fetched.
    """
    from weightgen.generate.target import check_target
    from weightgen.kit import generator_folder
    from weightgen.solve.budget import Budget
    from weightgen.solve.given import given_to_solve
    from weightgen.solve.journal import Journal
    from weightgen.solve.record import SHIPPED, Record
    from weightgen.solve.run import Means, solve_task
    from weightgen.solve_network_jobs import solve_network
    from zoo.build.encoder import MINILM, EncoderConfig, TextEncoder
    from zoo.errors import UsageError

    if data is not None and Path(data).suffix == ".npz":
        for_texts = {"base": base, "labels": labels, "task": task, "record": record}
        if given_too := [name for name, value in for_texts.items() if value]:
            raise UsageError(f"{data} holds examples of networks, {given_too[0]} is for adapters", "leave it out")
        return solve_network(
            Path(data),
            Path(out),
            budget,
            description=description or "",
            zoo=zoo,
            generators=generators,
            encoder=encoder or MINILM,
            seed=seed,
            progress=progress,
        )
    out, limit = Path(out), Budget.parse(budget)
    check_target(out)
    task, data = None if task is None else Path(task), None if data is None else Path(data)
    given = given_to_solve(description, tuple(labels), task, data, use_examples, use_labels, seed)
    folders = [(generator_folder(None), False), *((generator_folder(folder), True) for folder in generators)]
    name = base or MINILM
    sources = [str(zoo), *(str(folder) for folder, _ in folders)]
    journal = Journal(out.with_name(f".{out.name}.solve.json"), _key(given, name, sources, seed), limit)
    model = TextEncoder(EncoderConfig(name=name))
    known = Record.load(SHIPPED if record is None else Path(record), model.base_model)
    with _index(zoo, encoder or MINILM, model) as index:
        means = Means(index, folders, record=known)
        solution = solve_task(model, given, means, limit, seed=seed, journal=journal, report=progress)
    report = _write(out, solution, given, model, means)
    journal.remove()
    return SolveResult(out, report)


@contextlib.contextmanager
def _index(zoo: Path | str | None, encoder: str, base: TextEncoder) -> Iterator[Any]:
    """The index of a zoo, or of the shipped adapters, unpacked for a while."""
    from weightgen.kit import FOLDER, PAIRS, adapters_archive
    from weightgen.retrieve import Index
    from weightgen.retrieve.index import add_pairs
    from zoo.collect import collect
    from zoo.scratch import folder

    with contextlib.ExitStack() as stack:
        if zoo is None:
            zoo = Path(stack.enter_context(folder())) / "kit"
            collect([adapters_archive()], zoo)
            add_pairs(zoo, FOLDER / PAIRS)
        index = stack.enter_context(Index.open(zoo, encoder=encoder))
        if encoder == base.config.name:
            index.encoder.model = base  # loaded once
        yield index


def _key(given: GivenTask, base: str, sources: Sequence[str], seed: int) -> str:
    """What a search is; another one must not go on with its answers."""
    from zoo.seeds import seed_of

    text = given.text
    about = [text.description, *text.labels, *text.texts, *given.texts, str(given.y.tolist()), base, *sources]
    return str(seed_of(json.dumps(about), seed))


def _write(out: Path, solution: Solution, given: GivenTask, encoder: TextEncoder, means: Means) -> dict[str, Any]:
    """Write adapter, card and report side by side, check that PEFT loads the adapter, and put them in place."""
    from weightgen.adapted import AdaptedEncoder
    from weightgen.generate.adapters import write_checked
    from weightgen.generate.target import RECEIPT, replaced
    from weightgen.solve.card import solve_card, solve_report

    about = means.record.about if means.record else None
    report = solve_report(solution, given.about(), encoder.base_model, about)
    assert solution.weights is not None
    adapted = AdaptedEncoder(encoder, solution.weights.layout)
    few = replace(given, texts=given.texts[:CHECKED], y=given.y[:CHECKED])
    with replaced(out) as side:
        write_checked(adapted, solution.weights, side, solve_card(report), few)
        (side / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        files = sorted(path.name for path in side.iterdir())
        receipt = {"description": given.text.description, "task": given.name, "generated": {"files": files}}
        (side / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    return report
