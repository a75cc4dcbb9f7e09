"""Explore one model: choose layers, learn their chunks, sample candidates, score them, write the best checkpoint.

The side folder ``.<name of out>.explore`` keeps spectrum, trained generator and every score under names made of what
they depend on, so that a rerun goes on where the last one stopped, and further candidates or other strengths reuse the
generator. Candidates themselves are drawn again from their seeds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from weightgen import __version__
from weightgen.large import card as cards
from weightgen.large import sample as draw
from weightgen.large.card import ORIGINAL, RECONSTRUCTION, Scored
from weightgen.large.chunks import ChunkSet, read_chunks
from weightgen.large.config import ExploreConfig
from weightgen.large.folder import ModelFolder, open_model
from weightgen.large.result import ExploreResult
from weightgen.large.scoring import NotInPlaceError, Outcome, Subject, load_subject, metric_of
from weightgen.large.spectrum import Spectrum, choose
from weightgen.large.tasks import ScoringTask, load_task
from weightgen.large.train import encode, trained_model
from weightgen.large.write import CARD, README, check_checkpoint, check_target, write_checkpoint
from weightgen.progress import Progress
from zoo.config import dump_config
from zoo.errors import BadArtefact, UsageError
from zoo.seeds import seed_of
from zoo.threads import torch_threads

CHECKED_ITEMS = 16
TOLERANCE = 1e-4
LIBRARIES = ("torch", "transformers", "diffusers", "safetensors")


def side_folder(out: Path) -> Path:
    """Where an exploration keeps what a rerun needs."""
    return out.parent / f".{out.name}.explore"


def explore_model(
    model: str,
    config: ExploreConfig,
    data: str,
    out: Path,
    test_data: str | None = None,
    progress: Progress | None = None,
) -> ExploreResult:
    """Run or go on with an exploration; see ``weightgen.jobs.explore``."""
    folder = open_model(model)
    check_target(out)
    task = load_task(data, "validation", config.score.max_items)
    test = None if test_data is None else load_task(test_data, "test", config.score.max_items)
    _check_held_out(task, test)
    out.parent.mkdir(parents=True, exist_ok=True)
    with torch_threads(config.threads):
        return _Exploration(folder, config, task, test, out, progress).run()


def _check_held_out(task: ScoringTask, test: ScoringTask | None) -> None:
    if test is None:
        return
    if test.kind != task.kind:
        raise UsageError(f"{task.name} and {test.name} are tasks of different kinds", "give two of one kind")
    shared = len({(item.text, item.choices) for item in task.items} & {(i.text, i.choices) for i in test.items})
    if shared:
        raise UsageError(
            f"{test.name} shares {shared} items with {task.name}, which decides the choice", "give items of its own"
        )


def _peak_mb() -> float:
    """Highest memory that this process has held so far; mapped pages of files count while they are resident."""
    status = Path("/proc/self/status")
    if status.is_file():  # the other way counts the process that started this one, too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(line.split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class _Exploration:
    """One run: what the steps share."""

    def __init__(
        self,
        folder: ModelFolder,
        config: ExploreConfig,
        task: ScoringTask,
        test: ScoringTask | None,
        out: Path,
        progress: Progress | None,
    ) -> None:
        self.folder, self.config, self.task, self.test = folder, config, task, test
        self.out, self.progress = out, progress
        self.side = side_folder(out)
        self.side.mkdir(exist_ok=True)
        self.metric: cards.Metric = metric_of(task, config.score)
        self.seconds: dict[str, float] = {}
        self.memory = {"before": _peak_mb()}
        self._subject: Subject | None = None
        self._in_place = True

    def run(self) -> ExploreResult:
        config = self.config
        names, spectra = self._timed("spectrum", self._choose)
        chunks = read_chunks(self.folder, names, config.chunk)
        learned = _key(*(dump_config(part) for part in (config.model, config.chunk, config.codec, config.diffusion)))
        self.generator_key = _key(__version__, learned, config.seed, chunks.fingerprint)
        model = self._timed(
            "train",
            lambda: trained_model(config, chunks, self.side / f"generator-{self.generator_key}", self.progress),
        )
        latents = encode(model, chunks)
        codec_error = draw.reconstruct(model, chunks, latents)[1]
        self.memory["learning"] = _peak_mb()

        def make(seed: int) -> dict[str, Tensor]:
            return draw.sample(model, chunks, latents, seed, config.sample.strength, config.sample.residual)

        def decode() -> dict[str, Tensor]:
            return draw.reconstruct(model, chunks, latents)[0]

        scored = self._timed("score", lambda: self._score_all(chunks, decode, make))
        selected = cards.select(scored, self.metric)
        best = draw.original(chunks) if selected.kind == "original" else make(self._seed(selected))
        answers = None
        if self.test is not None:
            pair = [(selected.name, best), (ORIGINAL, draw.original(chunks))]
            answers = [self._answer(chunks, name, t, self.test) for name, t in pair]
        card = {
            "base": self.folder.name,
            "license": cards.stated_license(self.folder.path),
            "selected": selected.name,
            "verdict": cards.verdict(scored, selected, self.metric, (answers[0], answers[1]) if answers else None),
            "task": self.task.name,
            "items": len(self.task.items),
            "metric": self.metric,
            "test": self._test_rows(answers),
            "rows": [cards.row(one, scored[0], self.metric) for one in scored],
            "layers": self._layers(chunks, spectra, codec_error),
            "strength": model.effective_strength(config.sample.strength),
            "parameters": sum(p.numel() for p in model.parameters()),
            "config": dump_config(config),
            "versions": {"weightgen": __version__, **{lib: importlib.metadata.version(lib) for lib in LIBRARIES}},
        }
        self.memory["scoring"] = _peak_mb()
        self._timed("write", lambda: self._write(chunks, best, selected, card))
        return ExploreResult(self.out, card)

    def _timed(self, name: str, step: Callable[[], Any]) -> Any:
        started = time.monotonic()
        result = step()
        self.seconds[name] = round(time.monotonic() - started, 2)
        return result

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        """JSON that was kept under a name, else made now and kept."""
        path = self.side / f"{name}.json"
        if path.is_file():
            try:
                return json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                raise BadArtefact(f"{path} is damaged", "delete it and run the command again") from None
        value = make()
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(value), encoding="utf-8")
        partial.replace(path)
        return value

    def _choose(self) -> tuple[list[str], tuple[Spectrum, ...]]:
        stamps = [(self.folder.path / name).stat() for name in self.folder.shards]
        stamp = [[s.st_size, s.st_mtime_ns] for s in stamps]
        layers = self.config.layers

        def make() -> Any:
            names, spectra = choose(self.folder, layers, self.progress)
            return [names, [dataclasses.asdict(s) for s in spectra]]

        key = _key(self.folder.fingerprint(), stamp, dump_config(layers))
        names, spectra = self._kept(f"spectrum-{key}", make)
        return names, tuple(Spectrum(**s) for s in spectra)

    def _seed(self, scored: Scored) -> int:
        assert scored.seed is not None
        return scored.seed

    def _score_all(
        self, chunks: ChunkSet, decode: Callable[[], dict[str, Tensor]], make: Callable[[int], dict[str, Tensor]]
    ) -> list[Scored]:
        sample = self.config.sample
        about = [sample.strength, sample.residual]
        first = self._score(chunks, ORIGINAL, "original", lambda: draw.original(chunks), None, [])
        scored = [first, self._score(chunks, RECONSTRUCTION, "reconstruction", decode, None, [])]
        for i in range(sample.n):
            seed = seed_of(self.config.seed, "candidate", i)
            drawn: dict[str, dict[str, Tensor]] = {}

            def candidate(seed: int = seed, drawn: dict[str, dict[str, Tensor]] = drawn) -> dict[str, Tensor]:
                if "tensors" not in drawn:
                    drawn["tensors"] = make(seed)
                return drawn["tensors"]

            def noise(seed: int = seed, candidate: Callable[[], dict[str, Tensor]] = candidate) -> dict[str, Tensor]:
                return draw.noise_twin(chunks, candidate(), seed)

            scored.append(self._score(chunks, f"candidate-{i}", "candidate", candidate, seed, about))
            if i < sample.controls:
                scored.append(self._score(chunks, f"noise-{i}", "noise", noise, seed, about))
            if self.progress is not None:
                self.progress("score candidates", i + 1, sample.n)
        return scored

    def _score(
        self, chunks: ChunkSet, name: str, kind: Any, make: Callable[[], Mapping[str, Tensor]], seed: Any, about: Any
    ) -> Scored:
        """Score one model on validation, or read the score that is kept."""

        def score() -> dict[str, Any]:
            started = time.monotonic()
            tensors = make()
            outcome = self._ask(chunks, tensors, self.task)
            return {
                "outcome": dataclasses.asdict(outcome),
                "distance": draw.distance(chunks, tensors),
                "seconds": time.monotonic() - started,
            }

        judged = dump_config(self.config.score)
        key = _key(self.generator_key, self.folder.fingerprint(), kind, seed, about, self.task.fingerprint, judged)
        kept = self._kept(f"score-{key}", score)
        return Scored(name, kind, _outcome(kept["outcome"]), kept["distance"], kept["seconds"], seed)

    def _ask(self, chunks: ChunkSet, tensors: Mapping[str, Tensor], task: ScoringTask) -> Outcome:
        """Answers of the model with other values in its chosen tensors, in place where that can be done."""
        if self._in_place and self._subject is None:
            try:
                self._subject = load_subject(self.folder.path, task, draw.original(chunks))
            except NotInPlaceError:
                self._in_place = False
        if self._subject is not None:
            self._subject.take(tensors)
            return self._subject.answer(task, self.config.score)
        with tempfile.TemporaryDirectory(dir=self.out.parent, prefix=f".{self.out.name}.") as scratch:
            write_checkpoint(self.folder, tensors, Path(scratch) / "candidate")
            return load_subject(Path(scratch) / "candidate", task, {}).answer(task, self.config.score)

    def _answer(self, chunks: ChunkSet, name: str, tensors: Mapping[str, Tensor], task: ScoringTask) -> Outcome:
        if self.progress is not None:
            self.progress(f"held-out items, {name}", 0, 0)
        return self._ask(chunks, tensors, task)

    def _test_rows(self, answers: list[Outcome] | None) -> dict[str, Any] | None:
        if answers is None or self.test is None:
            return None
        selected, original = (answer.items(self.metric).mean().item() for answer in answers)
        return {"task": self.test.name, "items": len(self.test.items), "selected": selected, "original": original}

    def _layers(
        self, chunks: ChunkSet, spectra: tuple[Spectrum, ...], codec_error: Mapping[str, float]
    ) -> list[dict[str, Any]]:
        known = {s.name: dataclasses.asdict(s) for s in spectra}
        return [
            {
                "name": matrix.name,
                "shape": list(matrix.shape),
                "chunks": len(matrix.values),
                "codec_error": codec_error[matrix.name],
                "spectrum": known.get(matrix.name),
            }
            for matrix in chunks.matrices
        ]

    def _write(self, chunks: ChunkSet, best: Mapping[str, Tensor], selected: Scored, card: dict[str, Any]) -> None:
        """Write, compare bit by bit, load and compare answers; only then does the folder get its name."""
        items = self.task.items[:CHECKED_ITEMS]
        few = ScoringTask(self.task.name, self.task.kind, items, self.task.fingerprint)
        expected = self._ask(chunks, best, few)
        self._subject = None
        with tempfile.TemporaryDirectory(dir=self.out.parent, prefix=f".{self.out.name}.") as scratch:
            side = Path(scratch) / "checkpoint"
            changed = {} if selected.kind == "original" else best
            write_checkpoint(self.folder, changed, side)
            untouched = check_checkpoint(self.folder, changed, side)
            again = load_subject(side, few, best if self._in_place else {}).answer(few, self.config.score)
            gap = again.change(expected)
            if not gap <= TOLERANCE or again.answers != expected.answers:
                raise BadArtefact(
                    f"the reloaded checkpoint answers otherwise than the model that was scored (by {gap:.2g} nats)",
                    "check the disk and run the command again",
                )
            card |= {"untouched_tensors": untouched, "reload_difference": gap}
            card |= {"seconds": self.seconds, "memory_mb": {**self.memory, "writing": _peak_mb()}}
            card["checkpoint_mb"] = round(sum((side / s).stat().st_size for s in self.folder.shards) / 2**20, 1)
            (side / CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")
            (side / README).write_text(cards.readme(card), encoding="utf-8")
            _replace(side, self.out, Path(scratch) / "old")


def _replace(new: Path, out: Path, aside: Path) -> None:
    """Put a folder in the place of an earlier one; that one is moved aside first and put back if this fails."""
    if out.exists():
        out.rename(aside)
    try:
        new.rename(out)
    except OSError:
        if aside.exists():
            aside.rename(out)
        raise


def _outcome(data: Mapping[str, Any]) -> Outcome:
    return Outcome(tuple(data["log_probability"]), tuple(data["answers"]), tuple(data["correct"]))
