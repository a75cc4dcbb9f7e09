"""Everything weightgen does, one function a job. Read this first.

The command line and the server are shells over these functions; call them from Python the same way:

    from weightgen import jobs
    jobs.build_zoo("configs/digits.yaml", "runs/zoo")
    print(jobs.list_records("runs/zoo", task="sklearn-digits/0-1-2-3-4").to_json())

Each takes plain values, imports what it needs when it is called, returns one frozen result with ``to_json()`` and
``summary()``, and raises ``zoo.errors.WeightgenError`` for everything that a user can mend.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from weightgen.collect_jobs import collect_weights as collect_weights
from weightgen.compose_jobs import compose as compose
from weightgen.decode_jobs import DecodeResult as DecodeResult
from weightgen.decode_jobs import DoctorResult as DoctorResult
from weightgen.decode_jobs import decode as decode
from weightgen.decode_jobs import doctor_fusion as doctor_fusion
from weightgen.evaluate_files import EvaluateWeightsResult as EvaluateWeightsResult
from weightgen.evaluate_files import evaluate_weights as evaluate_weights
from weightgen.generate_jobs import generate as generate
from weightgen.kit_jobs import kit as kit
from weightgen.large_jobs import explore as explore
from weightgen.leaderboard_jobs import LeaderboardResult as LeaderboardResult
from weightgen.leaderboard_jobs import leaderboard as leaderboard
from weightgen.lm_evaluation import LanguageModelResult as LanguageModelResult
from weightgen.lm_evaluation import evaluate_language_model as evaluate_language_model
from weightgen.progress import Progress
from weightgen.results import BuildResult, EvaluateResult, TrainResult
from weightgen.retrieve_jobs import RetrieveResult as RetrieveResult
from weightgen.retrieve_jobs import retrieve as retrieve
from weightgen.solve_jobs import solve as solve
from weightgen.zoo_results import (
    DedupeResult,
    ExportResult,
    ListResult,
    RemoveResult,
    ShowResult,
    StatsResult,
    TwinRecord,
    VerifyResult,
)


def build_zoo(
    recipe: Path | str,
    zoo: Path | str,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    engine: str = "inline",
    workers: int | None = None,
) -> BuildResult:
    """Train the networks of a recipe and store them in a zoo; a rerun trains only those that are missing.

    Args:
        recipe: YAML file of the recipe.
        zoo: folder of the zoo, made if it does not exist.
        overrides: changes of single values of the recipe, each ``"a.b=c"``.
        progress: told what is done.
        engine: ``inline`` (this process), ``local`` (a pool of processes) or ``ray`` (a cluster).
        workers: processes of the other engines; by default one a processor core.

    Returns:
        How many networks were added, skipped and failed.

    Raises:
        UsageError: if the recipe cannot be used, or the zoo was built with another one.
        BadArtefact: if the folder holds something else or a damaged zoo, or data of the recipe are damaged.
        MissingExtra: if the engine or a library that the recipe needs is not installed.
    """
    from zoo.build import build

    report = build(Path(recipe), Path(zoo), overrides, progress, engine=engine, workers=workers)
    return BuildResult(Path(zoo), report.added, report.skipped, report.failed, report.total, report.seconds)


def list_records(
    zoo: Path | str,
    *,
    kind: str | None = None,
    base_model: str | None = None,
    task: str | None = None,
    split: str | None = None,
    license: str | None = None,
    dataset: str | None = None,
    metrics: Sequence[str] = (),
) -> ListResult:
    """List what a zoo holds; every filter that is given must match exactly.

    Args:
        zoo: folder of the zoo.
        kind: kind of weights, for example ``"lora"``.
        base_model: identifier of the model that adapters belong to.
        task: name of the task.
        split: ``"train"``, ``"val"`` or ``"test"``.
        license: licence as stated by the source.
        dataset: name of the data the weights were trained on.
        metrics: conditions such as ``"val_accuracy>=0.9"``.

    Returns:
        The matching records.

    Raises:
        UsageError: if a condition has another form.
        BadArtefact: if there is no zoo in the folder.
    """
    from zoo.zoo import Zoo

    about = {"kind": kind, "base_model": base_model, "task": task, "split": split, "license": license}
    with Zoo.open(Path(zoo)) as opened:
        return ListResult(tuple(opened.records(**about, dataset=dataset, metrics=metrics)))


def zoo_stats(
    zoo: Path | str,
    *,
    kind: str | None = None,
    base_model: str | None = None,
    task: str | None = None,
    split: str | None = None,
    license: str | None = None,
    dataset: str | None = None,
    metrics: Sequence[str] = (),
) -> StatsResult:
    """Count records, weights and bytes of a zoo; filters and errors as in ``list_records``.

    Returns:
        The numbers, and how many records have which kind, base model, task, split and licence.
    """
    from zoo.zoo import Zoo

    about = {"kind": kind, "base_model": base_model, "task": task, "split": split, "license": license}
    with Zoo.open(Path(zoo)) as opened:
        return StatsResult(Path(zoo), opened.stats(opened.records(**about, dataset=dataset, metrics=metrics)))


def show_record(zoo: Path | str, id: str) -> ShowResult:
    """Show one record of a zoo in full.

    Args:
        zoo: folder of the zoo.
        id: identifier of the record, or a unique beginning of it.

    Returns:
        The record.

    Raises:
        UsageError: if no record, or more than one, has such an identifier.
        BadArtefact: if there is no zoo in the folder.
    """
    from zoo.zoo import Zoo

    with Zoo.open(Path(zoo)) as opened:
        return ShowResult(opened.get(id))


def verify_zoo(zoo: Path | str, score: Path | str | None = None, progress: Progress | None = None) -> VerifyResult:
    """Read everything in a zoo and compare it with its checksums.

    Args:
        zoo: folder of the zoo.
        score: folder of a generator that finds networks unlike the others, by their likelihood.
        progress: called with (stage, done, total).

    Returns:
        The problems, none if all is intact, and the networks that stand out.

    Raises:
        BadArtefact: if there is no zoo in the folder, or no generator.
        UsageError: if the generator knows no likelihoods, or writes no layout of the zoo.
    """
    from zoo.zoo import Zoo

    with Zoo.open(Path(zoo)) as opened:
        problems = tuple(opened.verify())
        if score is None or problems:
            return VerifyResult(Path(zoo), len(opened), problems)
        from weightgen.score import score_zoo

        scored = score_zoo(Path(score), opened, progress)
        outliers = tuple(
            f"{one.id}: {one.bits:.2f} bits a code, {one.deviations:.1f} deviations above its like"
            + ("" if one.limit is None else f", {one.limit:.2f} are usual")
            for one in sorted(scored, key=lambda one: -one.deviations)
            if one.stands_out
        )
        return VerifyResult(Path(zoo), len(opened), problems, len(scored), outliers)


def export_record(zoo: Path | str, id: str, out: Path | str, force: bool = False) -> ExportResult:
    """Write one record back as the files it came from, bit for bit.

    Args:
        zoo: folder of the zoo.
        id: identifier of the record, or a unique beginning of it.
        out: new or empty folder, or a path that ends in ``.safetensors`` for a record of a single file.
        force: write into a folder that is not empty, replacing files of the same names.

    Returns:
        The files that were written.

    Raises:
        UsageError: if no record, or more than one, has such an identifier, or if ``out`` is in use and ``force`` is not
            given.
        BadArtefact: if there is no zoo in the folder, or the stored weights are damaged.
    """
    from zoo.zoo import Zoo

    with Zoo.open(Path(zoo)) as opened:
        record = opened.get(id)
        return ExportResult(record.id, tuple(opened.export(record.id, out, force=force)))


def remove_record(zoo: Path | str, id: str) -> RemoveResult:
    """Remove one record from a zoo, and its files unless another record needs them.

    Args:
        zoo: folder of the zoo.
        id: identifier of the record, or a unique beginning of it.

    Returns:
        The record as it was.

    Raises:
        UsageError: if no record, or more than one, has such an identifier.
        BadArtefact: if there is no zoo in the folder.
    """
    from zoo.zoo import Zoo

    with Zoo.open(Path(zoo)) as opened:
        return RemoveResult(opened.remove(id))


def dedupe_zoo(zoo: Path | str, apply: bool = False) -> DedupeResult:
    """Find records with the weights of an earlier one: the same tensors, or the same up to symmetry.

    Args:
        zoo: folder of the zoo.
        apply: remove them, keeping the first of each.

    Returns:
        The twins.

    Raises:
        BadArtefact: if there is no zoo in the folder, or weights that have to be compared are damaged.
    """
    from zoo.zoo import Zoo

    with Zoo.open(Path(zoo)) as opened:
        twins = opened.twins()
        for twin in twins if apply else ():
            opened.remove(twin.id)
    return DedupeResult(tuple(TwinRecord(twin.id, twin.of, twin.how) for twin in twins), apply)


def train(
    config: Path | str,
    zoo: Path | str,
    out: Path | str,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    progress: Progress | None = None,
    devices: int = 1,
    strategy: str = "auto",
    accelerator: str = "cpu",
) -> TrainResult:
    """Train a generator on the train split of a zoo; a rerun after an interruption goes on where it stopped.

    Args:
        config: YAML file of the generator.
        zoo: folder of the zoo.
        out: folder of the generator; it appears when training is complete.
        overrides: changes of single values of the config, each ``"a.b=c"``.
        fresh: start anew, whatever is there.
        progress: told what is done.
        devices: processes or devices that train together.
        strategy: of Lightning: ``ddp``, or ``fsdp`` on accelerators.
        accelerator: ``cpu``, ``gpu`` or ``auto``.

    Returns:
        Size, times and validation accuracies.

    Raises:
        UsageError: if the config cannot be used, or ``out`` holds something else.
        BadArtefact: if the zoo is missing, damaged, or lacks a split.
    """
    from weightgen.processes import Processes
    from weightgen.train import load_train_config, train_generator
    from zoo.zoo import Zoo

    parsed = load_train_config(config, overrides)
    with Zoo.open(Path(zoo)) as opened:
        processes = Processes(devices, strategy, accelerator)
        history = train_generator(parsed, opened, Path(out), fresh=fresh, progress=progress, processes=processes)
    stages = {name: {k: v for k, v in stage.items() if k != "log"} for name, stage in history["stages"].items()}
    return TrainResult(Path(out), history["parameters"], stages)


def evaluate(
    generator: Path | str,
    zoo: Path | str,
    out: Path | str,
    seeds: Sequence[int] = (0, 1, 2),
    candidates: int = 8,
    progress: Progress | None = None,
) -> EvaluateResult:
    """Judge a generator on the held-out tasks of a zoo, beside everything simpler.

    Args:
        generator: folder of a trained generator.
        zoo: the zoo it was trained on, or another one of the same layout.
        out: folder for ``card.json`` and ``card.png``.
        seeds: each draws new examples, noise and initialisations.
        candidates: networks a task for the best-of rows; the main rows use one.
        progress: told what is done.

    Returns:
        The verdict card.

    Raises:
        UsageError: if the generator was trained on a task that it would be judged on.
        BadArtefact: if generator or zoo are missing or damaged.
    """
    from weightgen.evaluate import evaluate_on_zoo

    return evaluate_on_zoo(Path(generator), Path(zoo), Path(out), tuple(seeds), candidates, progress)
