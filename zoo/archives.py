"""Taking zip and tar archives apart without trusting them.

Names that lead anywhere but into the folder, links, devices and sparse files are refused, and so is what is too large,
too many, or expands too much. Sizes are counted while bytes are written; no header is believed.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from zoo import formats
from zoo.errors import BadArtefact
from zoo.store import disk_errors, is_full

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_MEMBERS = 100_000
MAX_EXPANSION = formats.MAX_EXPANSION
SPARE_BYTES = 64 << 20
MAX_PIECE = 64 << 20
XZ_MEMORY = 256 << 20
_CHUNK = 1 << 20
_NOISE = ("__MACOSX/", "/._", "/.DS_Store")
REPACK = "unpack it yourself, look at it, and give the folder"


def is_archive(path: Path) -> bool:
    """Whether a file is an archive by its name; checkpoints that PyTorch users call ``.pth.tar`` are none."""
    return path.name.lower().endswith((*ZIP_SUFFIXES, *TAR_SUFFIXES)) and formats.detect(path) is None


def extract(path: Path, folder: Path) -> None:
    """Unpack an archive.

    Args:
        path: a file for which ``is_archive`` holds.
        folder: existing empty folder.

    Raises:
        BadArtefact: if it is damaged, holds anything but plain files and folders, or is too large.
        WeightgenError: if the disk is full.
    """
    limit = MAX_EXPANSION * path.stat().st_size + SPARE_BYTES
    try:
        with path.open("rb") as file:
            members = _zip(file) if path.name.lower().endswith(ZIP_SUFFIXES) else _tar(path, file, limit)
            _write(members, folder, limit)
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, ValueError) as error:
        raise BadArtefact(f"{path} is not a sound archive: {error}", REPACK) from None
    except (RuntimeError, NotImplementedError, MemoryError, RecursionError, LookupError) as error:
        raise BadArtefact(f"{path} cannot be unpacked: {error}", REPACK) from None
    except OSError as error:
        if is_full(error):
            with disk_errors(f"the files of {path} to {folder}"):
                raise
        raise BadArtefact(f"{path} cannot be unpacked: {error.strerror or error}", REPACK) from None


def _write(members: Iterator[tuple[str, IO[bytes] | None]], folder: Path, limit: int) -> None:
    total = 0
    for count, (name, content) in enumerate(members, 1):
        if count > MAX_MEMBERS:
            raise ValueError(f"it has more than {MAX_MEMBERS} members")
        if any(noise in f"/{name}" for noise in _NOISE) or name.startswith(_NOISE[0]):
            continue
        parts = _parts(name)
        if not parts and content is not None:
            raise ValueError(f"member {name!r} has no name")
        target = folder.joinpath(*parts)
        if content is None:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise ValueError(f"member {name!r} appears twice")
        with target.open("xb") as file:
            while piece := content.read(_CHUNK):
                total += len(piece)
                if total > limit:
                    raise ValueError(f"it expands to more than {limit} bytes, {MAX_EXPANSION} times its size")
                file.write(piece)


def _parts(name: str) -> list[str]:
    """Folder and file names of a member that stays where it is unpacked."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    outside = name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or ":" in name[:2]
    if outside:
        raise ValueError(f"member {name!r} leads outside the archive")
    return parts


class _Bounded(io.RawIOBase):
    """A file read forward, in pieces of bounded size: a header that claims more is not believed."""

    def __init__(self, source: Any, limit: int) -> None:
        self._source, self._limit = source, limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        most = MAX_PIECE + 1
        data = self._source.read(most if size is None or size < 0 else min(size, most))
        if len(data) > MAX_PIECE:
            raise ValueError(f"its headers claim {size} bytes at once")
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if whence == 0 and offset > self._limit:
            raise ValueError(f"it expands to more than {self._limit} bytes, {MAX_EXPANSION} times its size")
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()


class _Xz(io.RawIOBase):
    """An xz stream read forward with bounded memory for its dictionary, which ``lzma.open`` does not offer."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self._position = source, 0
        self._decoder = lzma.LZMADecompressor(memlimit=XZ_MEMORY)

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if whence != 0 or offset < self._position:
            raise ValueError("its members are not in order")
        while self._position < offset and self.read(min(offset - self._position, _CHUNK)):
            pass
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        pieces, missing = [], size or 0
        while missing > 0:
            if self._decoder.eof:
                rest = self._decoder.unused_data or self._source.read(_CHUNK)
                if not rest.strip(b"\0"):
                    break
                self._decoder = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
            else:
                rest = self._source.read(_CHUNK) if self._decoder.needs_input else b""
                if not rest and self._decoder.needs_input:
                    raise EOFError("it ends in the middle")
            piece = self._decoder.decompress(rest, missing)
            pieces.append(piece)
            missing -= len(piece)
        data = b"".join(pieces)
        self._position += len(data)
        return data


def _zip(file: IO[bytes]) -> Iterator[tuple[str, IO[bytes] | None]]:
    with zipfile.ZipFile(_Bounded(file, os.fstat(file.fileno()).st_size)) as archive:  # pyright: ignore[reportArgumentType]
        for member in archive.infolist():
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError(f"member {member.filename!r} is a link or a device")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"member {member.filename!r} is compressed by method {member.compress_type}")
            if member.is_dir():
                yield member.filename, None
            else:
                with archive.open(member) as content:
                    yield member.filename, content


def _tar(path: Path, file: IO[bytes], limit: int) -> Iterator[tuple[str, IO[bytes] | None]]:
    name = path.name.lower()
    source: Any = file
    if name.endswith(("gz", "tgz")):
        source = gzip.GzipFile(fileobj=file)
    elif name.endswith("bz2"):
        source = bz2.BZ2File(file)
    elif name.endswith("xz"):
        source = _Xz(file)
    stream = _Bounded(source, limit)
    with tarfile.open(fileobj=stream, mode="r:") as archive:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for member in archive:
            if member.isdir():
                yield member.name, None
            elif member.isreg() and not member.issparse():
                content = archive.extractfile(member)
                if content is None:
                    raise ValueError(f"member {member.name!r} has no content")
                yield member.name, content
            else:
                raise ValueError(f"member {member.name!r} is a link, a device or a sparse file")
