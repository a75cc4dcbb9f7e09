"""Finding what a source holds: files, adapter folders, archives, folders of these, repositories of the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from zoo import archives, formats, pretrained
from zoo.adapter_folder import CONFIG_FILE, KEPT_FILES, WEIGHT_FILES
from zoo.errors import BadArtefact, NetworkError, UsageError

# Files that training leaves beside weights, in formats that weights have too.
LEFTOVERS = re.compile(r"^(training_args\.bin|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state.*\.pth)$")
HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")
HUB_FILES = (
    *("*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.th", "*.ckpt", "*.npz"),
    *(CONFIG_FILE, pretrained.CONFIG_FILE, "README.md", "weightgen.json", "metadata.json", "LICENSE*"),
)
HUB_IGNORED = ("*training_args.bin", "*optimizer.*", "*scheduler.*", "*rng_state*")


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to collect.

    Attributes:
        path: file or folder.
        root: folder that links may lead to.
        source: how people know it, where that is not the path.
        refused: why it cannot be read, if that is clear already.
        code: exit code of that error.
    """

    path: Path
    root: Path
    source: str | None = None
    refused: str | None = None
    code: int = BadArtefact.exit_code

    @property
    def name(self) -> str:
        """What the item is called in results."""
        return (self.source or str(self.path)).encode(errors="surrogateescape").decode(errors="replace")


def find(source: str | Path) -> list[Item]:
    """List the items of a source without reading them; a repository of the Hub is downloaded.

    Args:
        source: file, adapter folder, archive, folder of these at any depth, or Hub id such as ``org/name@revision``.

    Returns:
        Its items, at least one. What leads outside the source, and a Hub that cannot be reached, are items that say
        why they are refused.

    Raises:
        UsageError: if there is no such path.
        BadArtefact: if a folder holds no weights.
    """
    path, text = Path(source), str(source)
    if not text.strip():
        raise UsageError("a source is empty", "give a file, a folder, an archive, or a Hub id such as org/name")
    if path.is_dir():
        if items := list(scan(path, path.resolve())):
            return items
        raise BadArtefact(f"{path} holds no weights", "give a folder with weight files or adapters")
    if path.is_file():
        return [Item(path, path.parent.resolve())]
    if os.path.lexists(path):
        raise UsageError(f"{text} is neither a file nor a folder", "give what it stands for")
    if not HUB_ID.match(text) or path.suffix in (".safetensors", *formats.TORCH_SUFFIXES):
        raise UsageError(f"{text} does not exist", "give a file, a folder, an archive, or a Hub id such as org/name")
    try:
        snapshot = download(text)
    except NetworkError as error:
        return [Item(path, path, text, str(error), error.exit_code)]
    # Snapshots consist of links to files in the same cache entry, two folders up.
    found = [replace(item, source=_inside(text, item.path, snapshot)) for item in scan(snapshot, snapshot.parents[1])]
    return found or [Item(path, path, text, f"{text} holds no weights on the Hub")]


def unpacked(item: Item, folder: Path) -> list[Item]:
    """Unpack an archive and list what it holds.

    Args:
        item: an archive.
        folder: existing empty folder to unpack into.

    Raises:
        BadArtefact: if it is unsafe or damaged, or holds no weights.
        WeightgenError: if the disk is full.
    """
    archives.extract(item.path, folder)
    found = []
    for inner in scan(folder.resolve(), folder.resolve()):
        name = _inside(item.name, inner.path, folder.resolve())
        refused = f"{name} is an archive inside an archive. Unpack the outer one" if is_archive(inner) else None
        found.append(replace(inner, source=name, refused=inner.refused or refused))
    if not found:
        raise BadArtefact(f"{item.path} holds no weights", "give an archive with weight files or adapters")
    return found


def is_archive(item: Item) -> bool:
    """Whether an item has to be unpacked first."""
    return item.refused is None and item.path.is_file() and archives.is_archive(item.path)


def files_of(path: Path) -> list[Path]:
    """Files that make up an item: those of an adapter folder, an index with its shards, or the file itself."""
    if path.is_dir():
        names = (CONFIG_FILE, *WEIGHT_FILES, *KEPT_FILES)
        return [path / name for name in names if (path / name).is_file()]
    if formats.detect(path) == "index":
        shards = [path.parent / name for name in sorted(formats.shards_of(path)) if Path(name).name == name]
        return [path, *(shard for shard in shards if shard.is_file()), *pretrained.files_beside(path)]
    return [path, *pretrained.files_beside(path)]


def download(hub_id: str) -> Path:
    """Fetch the weights of a repository ``org/name`` or ``org/name@revision``; returns the folder they are in.

    Raises:
        NetworkError: if it cannot be fetched.
    """
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


def _inside(source: str, path: Path, folder: Path) -> str:
    inner = path.relative_to(folder).as_posix()
    return source if inner == "." else f"{source}/{inner}"


def scan(folder: Path, root: Path) -> Iterator[Item]:
    """Find the items of a folder, depth first in the order of names; links that lead outside are refused.

    Args:
        folder: where to look.
        root: folder that links may lead to, resolved.

    Yields:
        Adapter folders, weight files, shard indices and archives.
    """
    if not folder.resolve().is_relative_to(root):
        yield _outside(folder, root, "Copy the folder itself")
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield Item(folder, root, refused=f"{folder} cannot be read: {error.strerror}. Check its permissions")
        return
    adapter = any(entry.name == CONFIG_FILE for entry in entries)
    if adapter:
        yield Item(folder, root)
    files = [Path(entry.path) for entry in entries if not _is_folder(entry)]
    indices = [file for file in files if formats.detect(file) == "index"]
    parts = {name for index in indices for name in formats.shards_of(index)}
    for file in files:
        taken = file.name in parts or (adapter and file.name in WEIGHT_FILES) or LEFTOVERS.match(file.name)
        if taken or (formats.detect(file) is None and not archives.is_archive(file)):
            continue
        if not file.exists():
            yield Item(file, root, refused=f"{file} is a link that leads nowhere. Copy the file itself")
            continue
        inside = file.resolve().is_relative_to(root)
        yield Item(file, root) if inside else _outside(file, root, "Copy the file itself")
    for entry in entries:
        if _is_folder(entry) and entry.is_symlink():
            if not Path(entry.path).resolve().is_relative_to(root):
                yield _outside(Path(entry.path), root, "Copy the folder")
        elif _is_folder(entry):
            yield from scan(Path(entry.path), root)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _outside(path: Path, root: Path, remedy: str) -> Item:
    return Item(path, root, refused=f"{path} is a link that leads out of {root}. {remedy}")
