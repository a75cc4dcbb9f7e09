"""Child process that turns a PyTorch checkpoint into safetensors, under limits it sets on itself.

``python -P -m zoo._unpickle SOURCE TARGET MEMORY_BYTES FILE_BYTES CPU_SECONDS`` prints one line of JSON: ``unwrapped``
(keys taken off the outside), ``aside`` (entries that are not weights) or ``error``. Unpickling is restricted to
tensors and plain containers by ``weights_only``; this process exists so that a hostile file cannot take more.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module", "weights", "params")


def limit(memory: int, file_bytes: int, seconds: int) -> None:
    """Limit this process: memory above what it uses now, size of files it writes, processor time."""
    import resource

    used = 0
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
    for which, amount in (
        (resource.RLIMIT_AS, used + memory),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(which)[1]
        allowed = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(which, (allowed, hard))


def is_optimiser(value: Any) -> bool:
    """Whether a container is the state dict of a torch optimiser."""
    return isinstance(value, Mapping) and "param_groups" in value and "state" in value


def flatten(value: Any, prefix: str, tensors: dict[str, Any], aside: list[str]) -> None:
    """Collect the tensors of nested containers under dotted names; note everything else in ``aside``."""
    import torch

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


def main(source: str, target: str, memory: int, file_bytes: int, seconds: int) -> dict[str, Any]:
    """Convert one file; returns what the parent is told."""
    import torch

    from zoo import safefile
    from zoo.errors import BadArtefact

    torch.set_num_threads(1)
    limit(memory, file_bytes, seconds)
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
        tensors, unwrapped, aside = select(loaded)
        safefile.save(Path(target), tensors)
    except MemoryError:
        return {"error": f"it needs more than {memory >> 20} MiB of memory"}
    except BadArtefact as error:
        return {"error": error.cause}
    except Exception as error:  # any failure of the unpickler is the file's, and is told to the parent as text
        return {"error": f"{type(error).__name__}: {error}"[:2000]}
    return {"unwrapped": unwrapped, "aside": aside[:1000]}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], *(int(a) for a in sys.argv[3:6]))))
