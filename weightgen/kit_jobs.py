"""The job ``kit``; see ``weightgen.jobs``."""

from __future__ import annotations

from pathlib import Path

from weightgen.collect_jobs import collect_weights
from weightgen.progress import Progress
from weightgen.zoo_results import CollectResult


def kit(out: Path | str, progress: Progress | None = None) -> CollectResult:
    """Put the adapters that come with the package into a zoo, with their tasks, licences and measurements.

    Measured pairs of tasks and adapters come along, so that scores of retrieval are probabilities of beating the base;
    not where the zoo holds other weights, on which nothing was measured.

    Args:
        out: folder of the zoo, made if it does not exist; adapters that it holds already are not added again.
        progress: told what is done.

    Returns:
        One entry an adapter.

    Raises:
        UsageError: if ``out`` cannot be a zoo.
        BadArtefact: if this installation lacks the adapters, or ``out`` is a folder of something else.
    """
    from weightgen.kit import FOLDER, PAIRS, adapters_archive
    from weightgen.retrieve.index import add_pairs
    from zoo.zoo import Zoo

    result = collect_weights([adapters_archive()], out, progress=progress)
    with Zoo.open(Path(out)) as zoo:
        alone = len(zoo.records()) == len(result.sources)
    if alone:
        add_pairs(Path(out), FOLDER / PAIRS)
    return result
