"""The safetensors format, read and written byte for byte.

A file is eight bytes of header length, a JSON header and the raw values. Reading checks every claim of the header
before any memory is taken for it, keeps the order of the header, and refuses what it cannot represent exactly. Writing
keeps the given order, so that a file which was read and written again has the same keys in the same places.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from zoo.errors import BadArtefact

if TYPE_CHECKING:
    from torch import Tensor, dtype

MAX_HEADER = 100_000_000
MAPPED_ABOVE = 32 << 20
FINITE_CHUNK = 1 << 24

# safetensors name -> (attribute of torch, bytes an element)
DTYPES: dict[str, tuple[str, int]] = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I32": ("int32", 4),
    "U32": ("uint32", 4),
    "F32": ("float32", 4),
    "I64": ("int64", 8),
    "U64": ("uint64", 8),
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
}
_NAMES = {attribute: name for name, (attribute, _) in DTYPES.items()}
DOWNLOAD_AGAIN = "download or save the file again"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies: name, element type, sizes, and its bytes counted from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def dtype_name(dtype: dtype) -> str | None:
    """safetensors name of a torch element type, or ``None`` if the format has none for it."""
    return _NAMES.get(str(dtype).removeprefix("torch."))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {twice!r} appears twice")
    return result


def _entry(name: str, info: Any) -> Entry:
    name.encode()  # what JSON can write and UTF-8 cannot is refused
    if not isinstance(info, dict) or set(info) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {name!r} has the unknown element type {dtype!r}")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or any(type(n) is not int or not 0 <= n < 1 << 63 for n in numbers):
            raise ValueError(f"tensor {name!r} has a {what} that is not a list of sizes: {str(numbers)[:80]}")
    if len(offsets) != 2 or len(shape) > 64:
        raise ValueError(f"tensor {name!r} has {len(offsets)} data_offsets and {len(shape)} dimensions")
    size = DTYPES[dtype][1]
    for n in shape:
        size *= n
    if offsets[1] - offsets[0] != size:
        raise ValueError(f"tensor {name!r} of {size} bytes claims the bytes {offsets[0]} to {offsets[1]}")
    return Entry(name, dtype, tuple(shape), offsets[0], offsets[1])


def parse_header(text: bytes, data_bytes: int) -> tuple[list[Entry], dict[str, str]]:
    """Check a header against the number of data bytes that follow it.

    Args:
        text: the JSON header.
        data_bytes: bytes in the file after the header.

    Returns:
        The tensors in header order, and the free metadata of the file.

    Raises:
        ValueError: if the header is not exact: duplicate keys, unknown types, sizes that do not add up, gaps.
    """
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ is not a map from text to text")
    json.dumps(metadata, ensure_ascii=False).encode()
    entries = [_entry(name, info) for name, info in header.items()]
    position = 0
    for entry in sorted(entries, key=lambda e: (e.begin, e.end)):
        if entry.begin != position:
            raise ValueError(f"tensor {entry.name!r} starts at byte {entry.begin}, expected {position}")
        position = entry.end
    if position != data_bytes:
        raise ValueError(f"header describes {position} bytes of values, the file holds {data_bytes}")
    return entries, metadata


def _buffer(path: Path) -> bytearray | mmap.mmap:
    size = path.stat().st_size
    if size > MAPPED_ABOVE:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    buffer = bytearray(size)
    with path.open("rb") as file:
        if file.readinto(buffer) != size:
            raise ValueError("file changed its size while it was read")
    return buffer


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file; large ones are mapped into memory and their pages loaded on use.

    Args:
        path: a safetensors file.

    Returns:
        Tensors by name in header order, and the metadata of the file. Values are not checked (see ``check_finite``).

    Raises:
        BadArtefact: if the file cannot be read or its header is not exact.
    """
    try:
        buffer = _buffer(path)
        if len(buffer) < 8:
            raise ValueError(f"file has {len(buffer)} bytes, at least 8 are needed")
        (length,) = struct.unpack_from("<Q", buffer)
        if length > min(MAX_HEADER, len(buffer) - 8):
            raise ValueError(f"header claims {length} bytes in a file of {len(buffer)}")
        entries, metadata = parse_header(bytes(buffer[8 : 8 + length]), len(buffer) - 8 - length)
    except OSError as error:
        raise BadArtefact(f"{path} cannot be read: {error.strerror or error}", "check its permissions") from None
    except ValueError as error:
        raise BadArtefact(f"{path} is not a valid safetensors file: {error}", DOWNLOAD_AGAIN) from None
    return {entry.name: _tensor(buffer, entry, 8 + length) for entry in entries}, metadata


def names(path: Path) -> list[str]:
    """Names of the tensors of a file in header order, without reading values; empty if the header is not exact."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(MAX_HEADER, size - 8):
                return []
            entries, _ = parse_header(file.read(length), size - 8 - length)
    except (OSError, ValueError, struct.error):
        return []
    return [entry.name for entry in entries]


def _tensor(buffer: bytearray | mmap.mmap, entry: Entry, start: int) -> Tensor:
    import torch

    attribute, size = DTYPES[entry.dtype]
    dtype = getattr(torch, attribute)
    begin, end = start + entry.begin, start + entry.end
    if begin == end:
        return torch.empty(entry.shape, dtype=dtype)
    if begin % size:
        return torch.frombuffer(bytearray(buffer[begin:end]), dtype=dtype).reshape(entry.shape)
    flat = torch.frombuffer(buffer, dtype=dtype, offset=begin, count=(end - begin) // size)
    return flat.reshape(entry.shape)


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, without a copy where it already lies so on the CPU."""
    import torch

    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def chunks(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """Bytes of a file that holds the tensors in the given order, piece by piece.

    Args:
        tensors: dense tensors by name; they may share memory and need not be contiguous.
        metadata: free text of the file.

    Yields:
        The length and header first, then the values of one tensor at a time.

    Raises:
        BadArtefact: if a tensor is sparse, quantised or of a type that the format does not have.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, tensor in tensors.items():
        dtype = dtype_name(tensor.dtype)
        if dtype is None or str(tensor.layout) != "torch.strided":
            kind = tensor.dtype if dtype is None else tensor.layout
            raise BadArtefact(f"tensor {name!r} is {kind}, which safetensors cannot hold", "convert it to a dense type")
        if name == "__metadata__":
            raise BadArtefact("a tensor is named '__metadata__', which safetensors reserves", "rename the tensor")
        end = position + tensor.numel() * DTYPES[dtype][1]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for tensor in tensors.values():
        yield raw(tensor)


def write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write the tensors to an open binary file.

    Returns:
        Hexadecimal SHA-256 of the bytes written.

    Raises:
        BadArtefact: see ``chunks``.
        OSError: if the disk does not take the bytes.
    """
    digest = hashlib.sha256()
    for piece in chunks(tensors, metadata):
        digest.update(piece)
        file.write(piece)
    return digest.hexdigest()


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write the tensors to ``path`` and wait until the disk has them.

    Raises:
        BadArtefact: see ``chunks``.
        OSError: if the disk does not take the bytes.
    """
    with path.open("wb") as file:
        write(file, tensors, metadata)
        file.flush()
        os.fsync(file.fileno())


def check_finite(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Refuse values that are not numbers.

    Args:
        tensors: tensors by name; integers are always accepted.
        origin: where they come from, for the message.

    Raises:
        BadArtefact: if a tensor holds NaN or an infinity; it names the first such tensor and counts its values.
    """
    import torch

    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        bad = 0
        for part in tensor.reshape(-1).split(FINITE_CHUNK) if tensor.numel() > FINITE_CHUNK else (tensor,):
            values = part.float() if part.element_size() <= 2 else part
            if not torch.isfinite(values.sum()):  # one bad value makes the sum bad; a sum of good ones may overflow
                bad += values.numel() - int(torch.count_nonzero(torch.isfinite(values)))
        if bad:
            raise BadArtefact(
                f"tensor {name!r} of {origin} holds {bad} values that are NaN or infinite",
                "use a checkpoint from before training diverged",
            )
