"""The job ``collect_weights``; see ``weightgen.jobs``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from weightgen.progress import Progress
from weightgen.zoo_results import CollectedSource, CollectResult


def collect_weights(
    sources: Sequence[Path | str],
    zoo: Path | str,
    dry_run: bool = False,
    progress: Progress | None = None,
    metadata: Path | str | None = None,
) -> CollectResult:
    """Read, check and store weights that exist already.

    Args:
        sources: files, adapter folders, archives, folders of them, or ids of the Hugging Face Hub.
        zoo: folder of the zoo, made if it does not exist and a source can be taken.
        dry_run: check everything and write nothing.
        progress: told what is done.
        metadata: CSV file with what is known about the items; see ``zoo.metadata_table``.

    Returns:
        One entry an item; those that cannot be taken say why.

    Raises:
        UsageError: if a source does not exist, or the CSV file cannot be used.
        BadArtefact: if a source folder holds no weights, or ``zoo`` is a folder of something else or damaged.
    """
    from zoo.collect import collect
    from zoo.metadata_table import MetadataTable

    def on_progress(done: int, total: int) -> None:
        if progress is not None:
            progress("collect", done, total)

    table = None if metadata is None else MetadataTable(metadata)
    entries = collect(sources, Path(zoo), dry_run=dry_run, metadata=table, on_progress=on_progress)
    return CollectResult(tuple(CollectedSource(**dataclasses.asdict(entry)) for entry in entries), dry_run)
