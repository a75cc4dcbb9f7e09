"""Content-addressed files: what is stored under a hash has that hash, or is not there at all.

A file is written under a temporary name in the same file system, flushed to the disk, then renamed to its hash, and the
folder flushed. A process that dies at any point leaves at most a temporary file, which ``orphans`` finds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zoo import safefile
from zoo.errors import BadArtefact, WeightgenError
from zoo.types import Record, Weights

if TYPE_CHECKING:
    from torch import Tensor

TENSORS = ".safetensors"
BYTES = ".bin"
REPAIR = "remove the entries that use it and collect or build them again"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FLUSH_TOGETHER = 8
_HASH_BYTES = 1 << 22


def is_full(error: OSError) -> bool:
    """Whether the disk has no room for what was to be written."""
    return error.errno in _FULL


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn an ``OSError`` inside the block into a ``WeightgenError`` that names the file and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = "free some space and run it again" if is_full(error) else "check the disk and its permissions"
        raise WeightgenError(f"cannot write {what}: {error.strerror or error}", remedy) from error


def flush(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_all(paths: Collection[Path]) -> None:
    """``flush`` for several files or folders of one file system; many are flushed by one call where the system has it.

    Raises:
        OSError: if the disk does not take the bytes.
    """
    together = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None) if os.name == "posix" else None
    if len(paths) < FLUSH_TOGETHER or together is None:
        for path in paths:
            flush(path)
        return
    descriptor = os.open(next(iter(paths)), os.O_RDONLY)
    try:
        if together(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file.

    Raises:
        OSError: if it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_HASH_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Name that the blob of these tensors has in every store."""
    digest = hashlib.sha256()
    for piece in safefile.chunks(tensors):
        digest.update(piece)
    return digest.hexdigest()


def record_id(blob: str, fingerprint: str) -> str:
    """Identifier of the record with this blob and layout."""
    return hashlib.sha256((blob + fingerprint).encode()).hexdigest()[:16]


class Store:
    """Blobs under ``root/blobs``, temporary files under ``root/tmp``.

    Args:
        root: folder of the zoo.
    """

    def __init__(self, root: Path) -> None:
        self.blobs = root / "blobs"
        self.temporary = root / "tmp"

    def create(self) -> None:
        """Make the folders.

        Raises:
            WeightgenError: if the disk refuses.
        """
        with disk_errors(str(self.blobs)):
            self.blobs.mkdir(parents=True, exist_ok=True)
            self.temporary.mkdir(exist_ok=True)

    def path(self, digest: str, suffix: str = TENSORS) -> Path:
        """Where the blob with this hash is or would be."""
        return self.blobs / digest[:2] / (digest + suffix)

    def batch(self) -> Batch:
        """Start a batch of writes; see ``Batch``."""
        return Batch(self)

    def put(self, tensors: Mapping[str, Tensor]) -> str:
        """Store tensors alone; returns their hash once the disk has them. Errors as in ``Batch``."""
        with self.batch() as batch:
            digest = batch.put(tensors)
            batch.commit()
        return digest

    def put_bytes(self, data: bytes) -> str:
        """Store a small file alone; returns its hash once the disk has it. Errors as in ``Batch``."""
        with self.batch() as batch:
            digest = batch.put_bytes(data)
            batch.commit()
        return digest

    def get(self, digest: str, *, verify: bool = False) -> dict[str, Tensor]:
        """Read tensors back, in the order they were stored.

        Args:
            digest: hash from ``put``.
            verify: compute the hash again first.

        Raises:
            BadArtefact: if the blob is missing or damaged.
        """
        path = self._checked(digest, TENSORS, verify)
        return safefile.load(path)[0]

    def get_bytes(self, digest: str) -> bytes:
        """Read a small file back; its hash is always checked.

        Raises:
            BadArtefact: if it is missing or damaged.
        """
        return self._checked(digest, BYTES, True).read_bytes()

    def _checked(self, digest: str, suffix: str, verify: bool) -> Path:
        path = self.path(digest, suffix)
        problem = self.problem(digest, suffix) if verify else None if path.is_file() else "is missing"
        if problem:
            raise BadArtefact(
                f"blob {path} {problem}", "remove the entries that use it and collect or build them again"
            )
        return path

    def problem(self, digest: str, suffix: str = TENSORS) -> str | None:
        """What is wrong with a blob, or ``None`` if its bytes have the hash that names it."""
        try:
            found = hash_file(self.path(digest, suffix))
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return None if found == digest else f"is damaged: its hash is {found[:16]}"

    def delete(self, digest: str, suffix: str = TENSORS) -> None:
        """Remove a blob if it is there."""
        with disk_errors(str(self.blobs)):
            self.path(digest, suffix).unlink(missing_ok=True)

    def orphans(self) -> list[Path]:
        """Temporary files whose writer, on this machine, no longer runs."""
        host = socket.gethostname()
        result = []
        for path in sorted(self.temporary.iterdir()) if self.temporary.is_dir() else []:
            owner, _, process = path.name.partition("@")[0].rpartition("-")
            if not process.isdigit() or (owner == host and not is_alive(int(process))):
                result.append(path)
        return result


def is_alive(process: int) -> bool:
    """Whether a process of this machine still runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def read_weights(store: Store, record: Record, *, verify: bool = False) -> Weights:
    """Load the blob of a record and compare it with the layout.

    Raises:
        BadArtefact: if it is missing, damaged, or holds other tensors.
    """
    tensors = store.get(record.blob, verify=verify)
    expected = [(spec.name, spec.shape, spec.dtype) for spec in record.layout.tensors]
    if expected != [(n, tuple(t.shape), safefile.dtype_name(t.dtype)) for n, t in tensors.items()]:
        raise BadArtefact(f"blob {record.blob[:16]} does not have the tensors of record {record.id}", REPAIR)
    return Weights(record.layout, tensors)


class Batch:
    """Writes that reach the disk together: every file is written, then all are flushed, then all are named.

    Use it as a context manager. Blobs exist only after ``commit``; leaving the block without it removes the temporary
    files.

    Args:
        store: where to write.

    Raises:
        WeightgenError: by every method, if the disk does not take the bytes; nothing half-written stays.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._waiting: dict[Path, Path] = {}

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        for temporary in self._waiting.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._waiting.clear()

    def put(self, tensors: Mapping[str, Tensor]) -> str:
        """Write tensors to a temporary file unless they are stored; returns their hash."""
        digest = hash_tensors(tensors)
        self._write(self.store.path(digest), lambda path: self._tensors(path, tensors))
        return digest

    def put_bytes(self, data: bytes) -> str:
        """Write a small file to a temporary file unless it is stored; returns its hash."""
        digest = hashlib.sha256(data).hexdigest()
        self._write(self.store.path(digest, BYTES), lambda path: path.write_bytes(data))
        return digest

    @staticmethod
    def _tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
        with path.open("wb") as file:
            safefile.write(file, tensors)

    def _write(self, target: Path, write: Callable[[Path], object]) -> None:
        if target in self._waiting or target.exists():
            return
        name = f"{socket.gethostname()}-{os.getpid()}@{secrets.token_hex(8)}"
        temporary = self.store.temporary / name
        self._waiting[target] = temporary
        with disk_errors(str(target)):
            write(temporary)

    def commit(self) -> None:
        """Flush every file of the batch and give it its name."""
        with disk_errors(str(self.store.blobs)):
            folders = {target.parent for target in self._waiting}
            flush_all(self._waiting.values())
            for folder in folders:
                folder.mkdir(exist_ok=True)
            for target, temporary in self._waiting.items():
                temporary.replace(target)
            self._waiting.clear()
            if folders:
                flush_all((*folders, self.store.blobs))
