"""A checkpoint with new values in some tensors: the same files, everything else the same to the last bit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from weightgen.large.folder import INDEX, ModelFolder, open_model
from zoo import safefile
from zoo.errors import BadArtefact, UsageError

CARD = "weightgen_card.json"
README = "README.md"
ORIGINAL_README = "README_of_the_given_model.md"


def check_target(out: Path) -> None:
    """Fail if writing there would destroy anything but an earlier result.

    Raises:
        UsageError: if the folder is a file, or holds files and no card.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, not a folder", "choose another folder")
    if out.is_dir() and any(out.iterdir()) and not (out / CARD).is_file():
        raise UsageError(f"{out} is not empty and holds no earlier exploration", "choose another folder")


def write_checkpoint(model: ModelFolder, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write a complete checkpoint: shards without changes are copied, the others streamed tensor by tensor.

    Args:
        model: the given one.
        tensors: new values of some of its tensors, of their shapes and element types.
        folder: new folder.

    Raises:
        BadArtefact: if a file of the given model is damaged.
        OSError: if the disk does not take the bytes.
    """
    folder.mkdir(parents=True)
    for path in model.extra_files():
        inner = path.relative_to(model.path)
        target = folder / (ORIGINAL_README if str(inner) == README else inner)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    if (model.path / INDEX).is_file():
        shutil.copyfile(model.path / INDEX, folder / INDEX)
    for shard in model.shards:
        if not any(model.tensors[name].file == shard for name in tensors):
            shutil.copyfile(model.path / shard, folder / shard)
            continue
        loaded, metadata = safefile.load(model.path / shard)
        safefile.save(folder / shard, {name: tensors.get(name, old) for name, old in loaded.items()}, metadata)


def check_checkpoint(model: ModelFolder, tensors: Mapping[str, Tensor], folder: Path) -> int:
    """Compare a written checkpoint with what it should hold, bit by bit.

    Returns:
        Number of tensors that were left as they were.

    Raises:
        BadArtefact: if a tensor is missing, of another type or file, or differs in any bit.
    """
    written = open_model(str(folder))
    if written.tensors != model.tensors:
        raise BadArtefact(f"{folder} holds other tensors than {model.path}", "check the disk and run it again")
    for shard in model.shards:
        before, after = safefile.load(model.path / shard)[0], safefile.load(folder / shard)[0]
        for name in before:
            if not _same_bits(tensors.get(name, before[name]), after[name]):
                raise BadArtefact(f"{name} in {folder} is not what was written", "check the disk and run it again")
    return len(model.tensors) - len(tensors)


def _same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors agree in every bit; NaN and the sign of zero count."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(first.contiguous().reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))
