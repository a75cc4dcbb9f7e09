"""Files of tensors: which format a file has, and how to read it without trusting it.

``read_tensors`` takes safetensors (one file or an index with shards), PyTorch checkpoints and numpy archives, and gives
back named tensors in the order of the file. Pickles are opened in a child process with limits, never here.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import safefile, unpickle
from zoo.errors import BadArtefact

if TYPE_CHECKING:
    from torch import Tensor

TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt")
INDEX_SUFFIX = ".index.json"
MAX_INDEX = 64 << 20
MAX_EXPANSION = 200


@dataclass(frozen=True)
class FileInfo:
    """One safetensors file that the tensors came from, or would be written to.

    Attributes:
        name: file name without folder.
        metadata: free text in its header.
        names: tensors in it, in order.
    """

    name: str
    metadata: Mapping[str, str]
    names: tuple[str, ...]


@dataclass(frozen=True)
class TensorFile:
    """What a source held.

    Attributes:
        tensors: by name, in the order of the source.
        files: the files to write to get the source back.
        index: name of the shard index and its ``metadata`` entry, or ``None`` for a single file.
        notes: what was left aside, in words.
    """

    tensors: dict[str, Tensor]
    files: tuple[FileInfo, ...]
    index: tuple[str, dict[str, Any]] | None = None
    notes: tuple[str, ...] = field(default=())


def detect(path: Path) -> str | None:
    """Format of a file by its name (for ``.model`` and ``.tar`` by its first bytes as well).

    Returns:
        ``"safetensors"``, ``"index"``, ``"torch"``, ``"npz"``, or ``None`` for anything else.
    """
    name = path.name.lower()
    if name.endswith((".safetensors" + INDEX_SUFFIX, ".bin" + INDEX_SUFFIX)):
        return "index"
    if name.endswith(".safetensors"):
        return "safetensors"
    if name.endswith(".npz"):
        return "npz"
    if name.endswith(TORCH_SUFFIXES):
        return "torch"
    if name.endswith((".model", ".tar")) and path.is_file():
        return "torch" if _start(path) == b"PK\x03\x04" or _start(path)[:1] == b"\x80" else None
    return None


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError:
        return b""


def read_tensors(path: Path, *, root: Path | None = None) -> TensorFile:
    """Read every tensor of a file and check that all values are finite.

    Args:
        path: a file that ``detect`` knows.
        root: folder that shards must lie in once symbolic links are followed; the file's own folder by default.

    Returns:
        The tensors and how to write them back.

    Raises:
        BadArtefact: if the file is missing, damaged, unsafe, or holds something that cannot be kept exactly.
    """
    if not path.is_file():
        raise BadArtefact(f"{path} is not a file", "check the path")
    readers = {"safetensors": _safetensors, "torch": _torch, "npz": _npz}
    kind = detect(path)
    if kind == "index":
        return _sharded(path, (root or path.parent).resolve())
    if kind is None:
        known = ", ".join((".safetensors", *TORCH_SUFFIXES, ".npz"))
        raise BadArtefact(f"{path} is not in a known format", f"known are {known} and safetensors indices")
    found = readers[kind](path)
    if not found.tensors:
        raise BadArtefact(f"{path} holds no tensors", "give a file with weights")
    safefile.check_finite(found.tensors, str(path))
    return found


def _safetensors(path: Path) -> TensorFile:
    tensors, metadata = safefile.load(path)
    return TensorFile(tensors, (FileInfo(path.name, metadata, tuple(tensors)),))


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], files: tuple[FileInfo, ...], index: Any = None) -> None:
    """Write tensors as one or several safetensors files, with an index if one is given.

    Args:
        folder: existing folder.
        tensors: by name.
        files: which tensors go where.
        index: ``TensorFile.index``.

    Raises:
        OSError: if the disk does not take the bytes.
    """
    for info in files:
        safefile.save(folder / info.name, {name: tensors[name] for name in info.names}, info.metadata)
    if index is not None:
        where = {name: info.name for info in files for name in info.names}
        content = {"metadata": index[1], "weight_map": {name: where[name] for name in tensors}}
        (folder / index[0]).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _weight_map(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    try:
        if path.stat().st_size > MAX_INDEX:
            raise ValueError(f"larger than {MAX_INDEX >> 20} MiB")
        content = json.loads(path.read_bytes())
        weight_map, metadata = content["weight_map"], content.get("metadata") or {}
        if not all(isinstance(v, str) for v in weight_map.values()) or not isinstance(metadata, dict):
            raise ValueError("weight_map does not map tensors to files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadArtefact(f"{path} is not a shard index: {error!r}", safefile.DOWNLOAD_AGAIN) from None
    return weight_map, metadata


def _sharded(path: Path, root: Path) -> TensorFile:
    weight_map, metadata = _weight_map(path)
    loaded: dict[str, Tensor] = {}
    files: list[FileInfo] = []
    notes: list[str] = []
    for shard in dict.fromkeys(weight_map.values()):
        target = path.parent / shard
        inside = Path(shard).name == shard and shard not in ("", ".", "..") and "\\" not in shard
        if not inside or not target.resolve().is_relative_to(root):
            raise BadArtefact(f"{path} names the shard {shard!r} outside its folder", "use an index you trust")
        if detect(target) not in ("safetensors", "torch"):
            raise BadArtefact(f"{path} names the shard {shard!r} of unknown format", safefile.DOWNLOAD_AGAIN)
        part = read_tensors(target)
        claimed = {name for name, where in weight_map.items() if where == shard}
        if claimed != set(part.tensors):
            wrong = sorted(claimed ^ set(part.tensors))[:3]
            raise BadArtefact(f"{target} and {path.name} disagree about the tensors {wrong}", safefile.DOWNLOAD_AGAIN)
        loaded |= part.tensors
        files += part.files
        notes += part.notes
    if not loaded:
        raise BadArtefact(f"{path} lists no tensors", safefile.DOWNLOAD_AGAIN)
    tensors = {name: loaded[name] for name in weight_map}
    index_name = path.name.replace(".bin" + INDEX_SUFFIX, ".safetensors" + INDEX_SUFFIX)
    return TensorFile(tensors, tuple(files), (index_name, metadata), tuple(notes))


def shards_of(path: Path) -> set[str]:
    """File names that a shard index lists; empty if the index is damaged."""
    try:
        return set(_weight_map(path)[0].values())
    except BadArtefact:
        return set()


def _torch(path: Path) -> TensorFile:
    tensors, unwrapped, aside = unpickle.read(path)
    notes = []
    if unwrapped:
        notes.append(f"taken from {'.'.join(unwrapped)}")
    if aside:
        notes.append(f"left aside: {', '.join(aside[:6])}{' ...' if len(aside) > 6 else ''}")
    info = FileInfo(path.stem + ".safetensors", {"format": "pt"}, tuple(tensors))
    return TensorFile(tensors, (info,), None, tuple(notes))


def _npz(path: Path) -> TensorFile:
    import numpy as np
    import torch

    tensors: dict[str, Tensor] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if total > MAX_EXPANSION * path.stat().st_size + (64 << 20):
                raise ValueError(f"it expands to {total} bytes, more than {MAX_EXPANSION} times its size")
            for member in members:
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"array {member.filename!r} is compressed by method {member.compress_type}")
                name = member.filename.removesuffix(".npy")
                if name in tensors:
                    raise ValueError(f"array {name!r} appears twice")
                array = _npy(archive, member)
                tensors[name] = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
                if safefile.dtype_name(tensors[name].dtype) is None:
                    raise ValueError(f"array {name!r} is {np.dtype(array.dtype)}, which safetensors cannot hold")
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, RuntimeError, zlib.error) as error:
        raise BadArtefact(f"{path} is not a readable numpy archive: {error}", safefile.DOWNLOAD_AGAIN) from None
    return TensorFile(tensors, (FileInfo(path.stem + ".safetensors", {}, tuple(tensors)),))


def _npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    import numpy as np
    from numpy.lib import format as npy

    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = npy.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = npy.read_array_header_2_0(file)
        else:
            raise ValueError(f"array {member.filename!r} has npy version {version}")
        if dtype.hasobject or dtype.kind not in "biufc":
            raise ValueError(f"array {member.filename!r} holds {dtype}, not numbers")
        size = dtype.itemsize
        for n in shape:
            size *= n
        if size > member.file_size:
            raise ValueError(f"array {member.filename!r} claims {size} bytes, it has {member.file_size}")
        data = file.read(size + 1)
        if len(data) != size:
            raise ValueError(f"array {member.filename!r} claims {size} bytes, it has {len(data)} or more")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
