"""Child process that turns PyTorch checkpoints into safetensors, under limits it sets on itself.

``python -P -m zoo._unpickle`` reads one request a line from stdin (JSON: ``source``, ``target``, ``memory`` and
``file_bytes`` in bytes, ``seconds`` of processor time) and prints one answer a line: ``unwrapped`` (keys taken off the
outside) and ``aside`` (entries that are not weights), or ``error`` and ``remedy``; ``end`` says that it takes no more.
Unpickling is restricted to tensors and plain containers by ``weights_only``; this process exists so that a hostile
file cannot take more. It ends when stdin does.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module", "weights", "params")
GROWTH = 1 << 30
FOLDER = 0x10  # attribute of MS-DOS
CORES, MAKERS = ("core", "_core"), ("scalar", "_reconstruct")  # where numpy 1 and 2 have what makes their objects
PLAIN = "save its state dict alone, best with safetensors"
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)|Unsupported (?:class|type)[: ]+([\w.]+)")


def used_memory() -> int:
    """Bytes of address space of this process; 0 where the system does not tell."""
    import resource

    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0


@contextlib.contextmanager
def limits(memory: int, file_bytes: int, seconds: int) -> Iterator[None]:
    """Limit this process inside the block: memory above what it uses now, size of files, further processor time."""
    import resource

    wanted = {
        resource.RLIMIT_AS: used_memory() + memory,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CPU: math.ceil(time.process_time()) + seconds,
        resource.RLIMIT_CORE: 0,
    }
    before = {which: resource.getrlimit(which) for which in wanted}
    for which, amount in wanted.items():
        hard = before[which][1]
        resource.setrlimit(which, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))
    try:
        yield
    finally:
        for which, pair in before.items():
            resource.setrlimit(which, pair)


def is_optimiser(value: Any) -> bool:
    """Whether a container is the state dict of a torch optimiser."""
    return isinstance(value, Mapping) and "param_groups" in value and "state" in value


def flatten(value: Any, prefix: str, tensors: dict[str, Any], aside: list[str]) -> None:
    """Collect the tensors of nested containers under dotted names; note everything else in ``aside``."""
    import numpy as np
    import torch

    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
    if isinstance(value, torch.Tensor):
        if prefix in tensors:
            raise ValueError(f"two entries are both named {prefix!r}")
        tensors[prefix] = value
    elif is_optimiser(value):
        aside.append(prefix or "optimiser state")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            flatten(item, f"{prefix}.{key}" if prefix else str(key), tensors, aside)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            flatten(item, f"{prefix}.{index}" if prefix else str(index), tensors, aside)
    else:
        aside.append(prefix or type(value).__name__)


def select(loaded: Any) -> tuple[dict[str, Any], list[str], list[str]]:
    """Find the weights in what a checkpoint holds.

    Args:
        loaded: the unpickled object.

    Returns:
        Tensors by name as in the file, the wrapper keys taken off, and the entries left aside.

    Raises:
        ValueError: if there are no weights, or if two of them would get the same name.
    """
    unwrapped: list[str] = []
    aside: list[str] = []
    while isinstance(loaded, Mapping):
        key = next((k for k in WRAPPERS if isinstance(loaded.get(k), Mapping | list | tuple)), None)
        if key is None:
            break
        aside += [".".join([*unwrapped, str(k)]) for k in loaded if k != key]
        unwrapped.append(key)
        loaded = loaded[key]
        if isinstance(loaded, list | tuple) and len(loaded) == 1:
            unwrapped.append("0")
            loaded = loaded[0]
    tensors: dict[str, Any] = {}
    flatten(loaded, "", tensors, aside)
    if not tensors:
        raise ValueError(f"it holds no weights, only {', '.join(aside[:6]) or 'empty containers'}")
    return tensors, unwrapped, aside


def harmless() -> list[Any]:
    """What checkpoints hold beside tensors and what runs no code of the file: settings, numpy numbers and arrays."""
    import argparse

    import numpy as np
    from numpy._core import multiarray

    kinds = [type(np.dtype(name)) for name in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?")]
    makers = [(getattr(multiarray, name), f"numpy.{core}.multiarray.{name}") for name in MAKERS for core in CORES]
    return [argparse.Namespace, np.dtype, np.ndarray, *kinds, *makers]


def explain(error: Exception) -> tuple[str, str]:
    """Cause and remedy for what ``torch.load`` said; it never advises to trust the file."""
    text = str(error)
    if "TorchScript" in text:
        return "it is a scripted module, which holds code", "load it with torch.jit.load and save its state_dict()"
    found = _GLOBAL.search(text)
    if found is not None:
        cause = f"it holds an object of the class {found[1] or found[2]}, not plain tensors"
        return cause, "where you trust it, load it with the code that made it and save its state_dict()"
    lines = [line.strip() for line in text.partition("WeightsUnpickler error:")[2].splitlines() if line.strip()]
    lines += [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:500], PLAIN


def check_archive(source: str) -> None:
    """Compare the members of a checkpoint in zip form with their checksums, which ``torch.load`` does not look at.

    It also takes a member that is marked as a folder for one of the right size, and gives back memory that nobody
    wrote to. A checksum of 0 says that none was computed.

    Raises:
        ValueError, zipfile.BadZipFile: if a member is damaged, marked as a folder, or named twice.
    """
    import zipfile

    with Path(source).open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    with zipfile.ZipFile(source) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two of its members have the same name")
        for member in members:
            if member.is_dir() or member.external_attr & FOLDER:
                raise ValueError(f"its member {member.filename!r} is marked as a folder")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"its member {member.filename!r} is compressed by method {member.compress_type}")
            if member.CRC:
                with archive.open(member) as content:
                    while content.read(1 << 20):
                        pass


def convert(source: str, target: str, memory: int, file_bytes: int, seconds: int) -> dict[str, Any]:
    """Convert one file; returns the answer."""
    import torch

    from zoo import safefile
    from zoo.errors import BadArtefact

    too_much = {"error": f"it needs more than {memory >> 20} MiB of memory", "remedy": PLAIN, "end": True}
    try:
        with limits(memory, file_bytes, seconds), torch.serialization.safe_globals(harmless()):
            check_archive(source)
            loaded = torch.load(source, map_location="cpu", weights_only=True)
            tensors, unwrapped, aside = select(loaded)
            safefile.save(Path(target), tensors)
    except MemoryError:
        return too_much
    except BadArtefact as error:
        return {"error": error.cause, "remedy": error.remedy}
    except Exception as error:  # any failure of the unpickler is the file's, and is told to the parent as text
        if "can't allocate memory" in str(error):
            return too_much
        cause, remedy = explain(error)
        return {"error": cause, "remedy": remedy}
    return {"unwrapped": unwrapped, "aside": aside[:1000]}


def main() -> None:
    """Answer requests until there are no more, or this process has grown too large."""
    import torch

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints is not taken for an answer
    started = used_memory()
    for line in sys.stdin:
        answer = convert(**json.loads(line))
        answer["end"] = answer.get("end", False) or used_memory() > started + GROWTH
        print(json.dumps(answer), file=answers, flush=True)
        if answer["end"]:
            break


if __name__ == "__main__":
    main()
