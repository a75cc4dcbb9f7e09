"""The ``compose`` job: adapters or networks in, one folder with a mixture and its receipt out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightgen.progress import Progress
from weightgen.results import JobResult

if TYPE_CHECKING:
    from weightgen.compose import Objective
    from zoo.types import Weights

LONGEST_TEXT = 512


@dataclass(frozen=True)
class ComposeResult(JobResult):
    """A mixture that was written.

    Attributes:
        out: its folder.
        files: what was written.
        receipt: parents, method, weights, errors; the content of ``weightgen.json``.
    """

    out: Path
    files: tuple[Path, ...]
    receipt: Mapping[str, Any]

    def summary(self) -> str:
        done = self.receipt["composed"]
        lines = [f"{self.out}: {self.receipt['description']}"]
        if "rank" in done:
            error = f"{100 * done['relative_error']:.3g} % of the update"
            lines.append(f"  rank {done['rank']} (exact at {done['rank_needed']}), cut off: {error}")
        for parent, weight in zip(done["parents"], _means(done), strict=True):
            lines.append(f"  {weight:+.4f}  {parent['name']}")
        return "\n".join(lines)


def _means(done: Mapping[str, Any]) -> list[float]:
    """Mean coefficient of every parent over tensors, or its given weight."""
    rows = list(done["coefficients"].values())
    if not rows:
        return [parent["weight"] for parent in done["parents"]]
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def compose(
    parents: Sequence[str | Path],
    out: Path | str,
    method: str = "linear",
    *,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    base: str | None = None,
    data: Path | str | None = None,
    unlabelled: bool = False,
    zoo: Path | str | None = None,
    overrides: Sequence[str] = (),
    examples: int = 256,
    batch: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> ComposeResult:
    """Mix LoRA adapters of one base model, or networks of one architecture.

    Args:
        parents: adapter folders or network files; with ``zoo`` also ids of its records.
        out: new or empty folder.
        method: how; see ``weightgen.compose.method_names``.
        weights: one number a parent; by default equal ones.
        rank: rank of the resulting adapter; by default the smallest that loses nothing.
        base: for adapters the base model to run learned methods on (id on the Hub or folder); for networks the network
            that they were fine-tuned from (file, or id in the zoo).
        data: examples for learned methods: a text task (see docs/data.md) for encoders, a ``.txt`` file with one text
            a line for causal language models, an ``.npz`` file with ``x`` and ``y`` for networks.
        unlabelled: use the texts of ``data`` and not their labels.
        zoo: folder of a zoo that parents may come from.
        overrides: settings of the method, each ``"key=value"``.
        examples: examples of ``data`` that are used at most, drawn at random.
        batch: examples of a gradient step.
        seed: the same seed gives the same mixture.
        progress: told what is done.

    Returns:
        The files and the receipt.

    Raises:
        UsageError: if the parents do not fit together or to the method, or ``out`` is in use.
        BadArtefact: if a parent or the data are missing or damaged.
        NetworkError: if the base model is not on this machine and cannot be fetched.
    """
    from weightgen.compose import compose as mix
    from weightgen.compose import get_method, save
    from zoo.config import dump_config, parse_config
    from zoo.errors import UsageError

    out, report = Path(out), progress or (lambda *_: None)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already", "give a new or empty folder")
    chosen = get_method(method)
    settings = parse_config({}, chosen.config, source=f"settings of the method {method}", overrides=overrides)
    learned = chosen.learned
    if learned != (data is not None):
        cause = f"the method {method} {'learns and has no data' if learned else 'does not learn and cannot use data'}"
        raise UsageError(cause, "give --data FILE" if learned else "leave --data out, or use atlas, scalearn, lorahub")
    found = []
    for done, parent in enumerate(parents):
        report("read", done, len(parents))
        found.append(_find(str(parent), zoo))
    report("read", len(parents), len(parents))
    adapters = bool(found) and found[0].layout.kind != "dense"
    start = None if base is None or adapters else _find(base, zoo)
    goal = (
        None if data is None else _objective(found, base, start, Path(data), unlabelled, _Some(examples, batch, seed))
    )
    report("compose", 0, 1)
    mixed = mix(
        found,
        method,
        weights=weights,
        rank=rank,
        base=start,
        objective=goal,
        settings=dump_config(settings),
        seed=seed,
        names=[str(parent) for parent in parents],
    )
    report("compose", 1, 1)
    return ComposeResult(out, tuple(save(mixed, out)), json.loads(json.dumps(mixed.receipt)))


def _find(name: str, zoo: Path | str | None) -> Weights:
    """Weights from a path, or from a zoo by id."""
    from weightgen.compose import load
    from zoo.errors import UsageError
    from zoo.zoo import Zoo

    if Path(name).exists():
        return load(name)
    if zoo is None:
        raise UsageError(f"{name} does not exist", "give a path, or an id of a zoo with --zoo DIR")
    with Zoo.open(Path(zoo)) as opened:
        return opened.weights(opened.get(name))


@dataclass(frozen=True)
class _Some:
    """How many examples, and how many a step."""

    most: int
    batch: int
    seed: int

    def rows(self, count: int) -> list[int]:
        """Numbers of the examples that are used."""
        import torch

        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        return order[: self.most].tolist()


def _objective(
    parents: Sequence[Weights], base: str | None, start: Weights | None, data: Path, unlabelled: bool, some: _Some
) -> Objective:
    from zoo.errors import UsageError

    first = parents[0].layout
    if first.kind == "dense":
        if unlabelled:
            raise UsageError("networks are composed with labelled examples", "leave --unlabelled out")
        return _image_objective(parents[0], start, data, some)
    base = base or first.base_model
    if base is None:
        raise UsageError("the adapters name no base model", "give it with --base ID")
    if first.config.get("peft", {}).get("task_type") == "CAUSAL_LM":
        return _language_objective(base, data, some)
    return _text_objective(base, data, unlabelled, some)


def _image_objective(parent: Weights, start: Weights | None, data: Path, some: _Some) -> Objective:
    from weightgen.compose.objectives import classification
    from weightgen.generate.examples import read_examples
    from zoo.networks import architecture_of

    x, y = read_examples(data)
    rows = some.rows(len(y))
    tensors = None if start is None else start.tensors
    return classification(architecture_of(parent.layout), tensors, x[rows], y[rows], batch=some.batch, seed=some.seed)


def _text_objective(base: str, data: Path, unlabelled: bool, some: _Some) -> Objective:
    from weightgen.compose.objectives import text_classification, text_unlabelled
    from zoo.build.encoder import EncoderConfig, TextEncoder
    from zoo.build.text_tasks import load_text_task
    from zoo.tasks import TRAIN

    task, encoder = load_text_task(data, 0.0, some.seed), TextEncoder(EncoderConfig(name=base))
    all_texts, y = task.select(TRAIN)
    rows = some.rows(len(y))
    texts = [all_texts[i] for i in rows]
    if unlabelled:
        return text_unlabelled(encoder, texts, task.label_texts, batch=some.batch, seed=some.seed)
    return text_classification(encoder, texts, y[rows], task.label_texts, batch=some.batch, seed=some.seed)


def _language_objective(base: str, data: Path, some: _Some) -> Objective:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from weightgen.compose.objectives import causal_lm
    from zoo.errors import BadArtefact, NetworkError

    try:
        texts = [line for line in data.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadArtefact(f"{data} is no text file ({error})", "give a .txt file with one text a line") from None
    if not texts:
        raise BadArtefact(f"{data} holds no text", "give a .txt file with one text a line")
    try:
        tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base).eval()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise NetworkError(f"the base {base!r} cannot be loaded ({reason})", "give --base a folder of it") from None
    chosen = [texts[i] for i in some.rows(len(texts))]
    rows = [row[:LONGEST_TEXT] for row in tokenizer(chosen)["input_ids"]]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = labels[i, : len(row)] = torch.tensor(row)
    return causal_lm(model, ids, labels, batch=some.batch, seed=some.seed)
