"""The folder form of PEFT adapters: ``adapter_config.json``, one file of tensors, and small files beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import formats, safefile
from zoo.errors import BadArtefact
from zoo.kinds import ORIGIN, parse_json

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
KEPT_FILES = ("README.md", "metadata.json", "weightgen.json", "LICENSE", "LICENSE.txt", "LICENSE.md")
SAVE_AGAIN = "save the adapter again with PeftModel.save_pretrained"
MAX_EXTRA = 1 << 20
DEFAULT_METADATA = {"format": "pt"}


def is_adapter(path: Path) -> bool:
    """Whether it is a folder with an adapter configuration, or the weight file inside one."""
    return (path / CONFIG_FILE).is_file() or (path.name in WEIGHT_FILES and (path.parent / CONFIG_FILE).is_file())


def method_of(path: Path) -> str | None:
    """The ``peft_type`` of an adapter folder or its weight file; ``None`` if the configuration cannot be read."""
    folder = path.parent if path.name in WEIGHT_FILES else path
    try:
        data = small_file(folder / CONFIG_FILE, folder.resolve(), limited=False)
        method = parse_json(data or b"", "").get("peft_type")
    except (BadArtefact, OSError):
        return None
    return method if isinstance(method, str) else None


def base_model(config: Mapping[str, Any]) -> str | None:
    """The base model that a configuration names.

    Raises:
        BadArtefact: if it is not a name.
    """
    base = config.get("base_model_name_or_path")
    if base is not None and not (isinstance(base, str) and base.isprintable()):
        raise BadArtefact(f"base_model_name_or_path is {base!r}, not a name", SAVE_AGAIN)
    return base or None


def read(path: Path, root: Path | None) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, bytes], tuple[str, ...]]:
    """Read an adapter folder.

    Args:
        path: the folder, or the weight file in it.
        root: folder that links may lead to; the adapter's own by default.

    Returns:
        Tensors in file order, the configuration, the small files to give back, and notes on what was left aside.

    Raises:
        BadArtefact: if a file is missing, damaged, or a link that leads outside.
    """
    folder = path.parent if path.is_file() else path
    root = (root or folder).resolve()
    config_bytes = small_file(folder / CONFIG_FILE, root)
    if config_bytes is None:
        raise BadArtefact(f"{folder / CONFIG_FILE} leads outside its folder or is too large", SAVE_AGAIN)
    config = parse_json(config_bytes, str(folder / CONFIG_FILE))
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise BadArtefact(f"{folder} has {CONFIG_FILE} but none of {', '.join(WEIGHT_FILES)}", SAVE_AGAIN)
    if not file.resolve().is_relative_to(root):
        raise BadArtefact(f"{file} leads outside its folder", "copy the file itself")
    source = formats.read_tensors(file)
    kept = {CONFIG_FILE: config_bytes}
    for name in KEPT_FILES:
        if (data := small_file(folder / name, root)) is not None:
            kept[name] = data
    if source.files[0].metadata != DEFAULT_METADATA:
        kept[ORIGIN] = json.dumps({"metadata": dict(source.files[0].metadata)}).encode()
    return source.tensors, config, kept, source.notes


def write(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], extra_files: Mapping[str, bytes] | None
) -> None:
    """Write a folder that ``PeftModel.from_pretrained`` loads.

    Args:
        folder: existing folder.
        tensors: by name.
        config: the configuration; the bytes in ``extra_files`` are used where they say the same.
        extra_files: as given by ``read``.

    Raises:
        OSError: if the disk does not take the bytes.
    """
    extra = dict(extra_files or {})
    metadata = DEFAULT_METADATA
    if ORIGIN in extra:
        metadata = parse_json(extra.pop(ORIGIN), ORIGIN)["metadata"]
    if CONFIG_FILE not in extra or parse_json(extra[CONFIG_FILE], CONFIG_FILE) != config:
        extra[CONFIG_FILE] = (json.dumps(dict(config), indent=2) + "\n").encode()
    safefile.save(folder / WEIGHT_FILES[0], tensors, metadata)
    for name, data in extra.items():
        (folder / name).write_bytes(data)


def small_file(path: Path, root: Path, *, limited: bool = True) -> bytes | None:
    """Content of a file beside weights; ``None`` if there is none, it is too large, or a link that leads outside.

    Args:
        path: the file.
        root: resolved folder that links may lead to.
        limited: whether that is asked for.
    """
    if not path.is_file() or path.stat().st_size > MAX_EXTRA:
        return None
    if limited and not path.resolve().is_relative_to(root):
        return None
    return path.read_bytes()
