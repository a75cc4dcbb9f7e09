"""Taking in weights that exist already: files, adapter folders, folders of them, and repositories of the Hub."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zoo import formats, kinds
from zoo.adapter_folder import CONFIG_FILE, WEIGHT_FILES
from zoo.entry import Entry
from zoo.errors import BadArtefact, NetworkError, UsageError, WeightgenError
from zoo.sidecar import About, read_about
from zoo.types import Weights
from zoo.zoo import Zoo

BATCH_ENTRIES = 128
BATCH_BYTES = 64 << 20
BATCH_SECONDS = 2.0
# Files that training leaves beside weights, in formats that weights have too.
LEFTOVERS = re.compile(r"^(training_args\.bin|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state.*\.pth)$")
HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")
HUB_FILES = (
    *("*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.th", "*.ckpt", "*.npz"),
    *(CONFIG_FILE, "README.md", "weightgen.json", "metadata.json", "LICENSE*"),
)
HUB_IGNORED = ("*training_args.bin", "*optimizer.*", "*scheduler.*", "*rng_state*")


@dataclass(frozen=True, slots=True)
class Collected:
    """What became of one item.

    Attributes:
        path: the file or folder, or the source as given if it could not be reached.
        status: ``"added"``, ``"duplicate"`` or ``"refused"``.
        id: identifier of the record, ``None`` if refused.
        kind: kind of weights, ``None`` if not recognised.
        reason: why it was refused, or what was left aside; ``None`` if there is nothing to say.
    """

    path: str
    status: str
    id: str | None = None
    kind: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class _Item:
    path: Path
    root: Path
    refused: str | None = None
    source: str | None = None


def collect(
    sources: Sequence[str | Path],
    zoo: Zoo | None,
    *,
    dry_run: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Collected]:
    """Read, check and store every set of weights that the sources hold.

    Items are committed in batches; when the work is interrupted, everything that was reported to ``on_progress`` is in
    the zoo, and running it again skips it as duplicates.

    Args:
        sources: files, adapter folders, folders of these at any depth, or Hub ids such as ``org/name@revision``.
        zoo: where to put them; may be ``None`` in a dry run.
        dry_run: read and check everything, write nothing.
        on_progress: called with the number of finished items and of all items.

    Returns:
        One entry an item, in the order found. Items that cannot be taken say why; they stop nothing else.

    Raises:
        UsageError: if a path does not exist, or there is no zoo to write to.
        BadArtefact: if a folder holds no weights.
        WeightgenError: if the disk is full.
    """
    if zoo is None and not dry_run:
        raise UsageError("there is no zoo to collect into", "open one with Zoo.open(path, create=True)")
    if zoo is not None and not dry_run:
        zoo.sweep()
    items = [item for source in sources for item in _items(source)]
    results: dict[int, Collected] = {}
    batch: list[tuple[int, Entry, str | None]] = []
    started, size = time.monotonic(), 0

    def commit() -> None:
        entries = [entry for _, entry, _ in batch]
        if dry_run or zoo is None:
            ids = [zoo.contains(entry.weights) if zoo else None for entry in entries]
            outcome = [(key, key is None) for key in ids]
        else:
            outcome = [(record.id, new) for record, new in zoo.add_many(entries)]
        for (position, entry, note), (key, new) in zip(batch, outcome, strict=True):
            status = "added" if new else "duplicate"
            results[position] = Collected(str(entry.source), status, key, entry.weights.layout.kind, note)
        batch.clear()
        if on_progress is not None:
            on_progress(len(results), len(items))

    for position, item in enumerate(items):
        read = _read(item)
        if isinstance(read, Collected):
            results[position] = read
        else:
            entry, note = read
            batch.append((position, entry, note))
            size += sum(tensor.nbytes for tensor in entry.weights.tensors.values())
        full = len(batch) >= BATCH_ENTRIES or size > BATCH_BYTES or time.monotonic() - started > BATCH_SECONDS
        if full or position + 1 == len(items):
            commit()
            started, size = time.monotonic(), 0
    return [results[position] for position in range(len(items))]


def _read(item: _Item) -> tuple[Entry, str | None] | Collected:
    name = item.source or str(item.path)
    if item.refused:
        return Collected(name, "refused", reason=item.refused)
    kind = kinds.match(item.path)
    try:
        if kind is None:
            raise BadArtefact(f"{item.path} is not a known kind of weights", "see the documentation for known formats")
        found = kind.read(item.path, root=item.root)
        about = read_about(item.path)
    except (WeightgenError, OSError) as error:
        return Collected(name, "refused", kind=kind.name if kind else None, reason=str(error))
    entry = Entry(
        _described(found.weights, about),
        task=about.task,
        description=about.description,
        lineage=about.lineage,
        split=about.split,
        metrics=about.metrics,
        license=about.license,
        source=name,
        extra_files=found.extra_files,
    )
    return entry, "; ".join(found.notes) or None


def _described(weights: Weights, about: About) -> Weights:
    """Put base model and architecture from the side-car where the files themselves do not say them."""
    layout = weights.layout
    if layout.base_model is None and about.base_model is not None:
        layout = replace(layout, base_model=about.base_model)
    if layout.kind == "dense" and about.architecture is not None:
        layout = replace(layout, config={**layout.config, "architecture": about.architecture})
    return weights if layout is weights.layout else Weights(layout, weights.tensors)


def _items(source: str | Path) -> list[_Item]:
    text, path = str(source), Path(source)
    if path.is_dir():
        items = list(_scan(path, path.resolve()))
        if not items:
            raise BadArtefact(f"{path} holds no weights", "give a folder with weight files or adapters")
        return items
    if path.exists():
        return [_Item(path, path.parent.resolve())]
    looks_local = path.suffix in (".safetensors", ".npz", *formats.TORCH_SUFFIXES) or Path(path.parts[0]).exists()
    if looks_local or not HUB_ID.match(text):
        raise UsageError(f"{text} does not exist", "give a file, a folder, or a Hub id such as org/name")
    try:
        snapshot = _download(text)
    except NetworkError as error:
        return [_Item(path, path, str(error), text)]
    # Snapshots consist of links to files in the same cache entry, two folders up.
    found = [
        replace(item, source=_hub_source(text, item.path, snapshot)) for item in _scan(snapshot, snapshot.parents[1])
    ]
    return found or [_Item(path, path, f"{text} holds no weights on the Hub", text)]


def _hub_source(hub_id: str, path: Path, snapshot: Path) -> str:
    inner = path.relative_to(snapshot).as_posix()
    return hub_id if inner == "." else f"{hub_id}/{inner}"


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = hub_id.partition("@")
    try:
        folder = snapshot_download(
            repository, revision=revision or None, allow_patterns=[*HUB_FILES], ignore_patterns=[*HUB_IGNORED]
        )
    except Exception as error:  # the client raises errors of its own, of its HTTP library and of the system
        first = next(iter(str(error).strip().splitlines()), "")
        raise NetworkError(
            f"{hub_id} is not a local path, and cannot be fetched from the Hugging Face Hub "
            f"({type(error).__name__}: {first[:200]})",
            "check the name and the connection, or download it and give the folder",
        ) from None
    return Path(folder).resolve()


def _scan(folder: Path, root: Path) -> Iterator[_Item]:
    """Find the items of a folder, depth first in the order of names; links that lead outside are refused."""
    if not folder.resolve().is_relative_to(root):
        yield _Item(folder, root, f"{folder} is a link that leads out of {root}. Copy the folder itself")
        return
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    adapter = any(entry.name == CONFIG_FILE for entry in entries)
    if adapter:
        yield _Item(folder, root)
    files = [Path(entry.path) for entry in entries if not entry.is_dir()]
    indices = [file for file in files if formats.detect(file) == "index"]
    parts = {name for index in indices for name in formats.shards_of(index)}
    for file in files:
        taken = file.name in parts or (adapter and file.name in WEIGHT_FILES) or LEFTOVERS.match(file.name)
        if taken or formats.detect(file) is None:
            continue
        if file.resolve().is_relative_to(root):
            yield _Item(file, root)
        else:
            yield _Item(file, root, f"{file} is a link that leads out of {root}. Copy the file itself")
    for entry in entries:
        if entry.is_dir() and entry.is_symlink():
            if not Path(entry.path).resolve().is_relative_to(root):
                yield _Item(Path(entry.path), root, f"{entry.path} is a link that leads out of {root}. Copy the folder")
        elif entry.is_dir():
            yield from _scan(Path(entry.path), root)
