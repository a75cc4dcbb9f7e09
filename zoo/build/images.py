"""Labelled images from files: npz, csv with file names, and folders of Hugging Face ``datasets``. See docs/data.md."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor

from zoo.build.arrow import is_arrow, read_arrow
from zoo.build.rows import labelled_rows
from zoo.build.sources import LabelledData, take_validation
from zoo.errors import BadArtefact, UsageError
from zoo.tasks import TEST, TRAIN

SUFFIXES = (".npz", ".csv")
Arrays = dict[str, Any]


def is_image_file(path: Path) -> bool:
    """Whether a path may hold labelled images."""
    return path.name.endswith(SUFFIXES) or is_arrow(path)


def expand(source: str) -> list[str]:
    """Names of data sets in a folder; a file or a name of a built-in data set stands for itself.

    Raises:
        UsageError: if a folder holds none.
    """
    path = Path(source)
    if not path.is_dir() or is_arrow(path):
        return [source]
    found = [str(p) for p in sorted(path.iterdir()) if is_image_file(p)]
    if not found:
        raise UsageError(f"{path} holds no images", f"it needs files that end in {', '.join(SUFFIXES)}")
    return found


def load_images(path: Path, validation: float, test: float, seed: int) -> LabelledData:
    """Load labelled images; bytes stay bytes.

    Args:
        path: the file or folder.
        validation: share of the training examples used for validation.
        test: share of all examples used for the last measurement, where the source states no test part.
        seed: decides the split.

    Raises:
        BadArtefact: if it is damaged or of another form.
        MissingExtra: if an optional dependency is missing.
    """
    try:
        read = _from_arrow if path.is_dir() else _from_csv if path.suffix == ".csv" else _from_npz
        return _data(path, read(path), validation, test, seed)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise BadArtefact(f"{path} holds no labelled images ({error})", "see docs/data.md for the formats") from None


def resized(data: LabelledData, size: int) -> LabelledData:
    """The same images with ``size`` x ``size`` pixels, averaged over areas; bytes stay bytes."""
    x = data.x
    if tuple(x.shape[-2:]) == (size, size):
        return data
    grey = x.ndim == 3
    blocks = []
    for block in x.split(1024):
        pixels = block[:, None].float() if grey else block.float()
        larger = size > min(pixels.shape[-2:])
        mode: dict[str, Any] = {"mode": "bilinear", "align_corners": False} if larger else {"mode": "area"}
        small = F.interpolate(pixels, (size, size), **mode)
        small = small.round().to(torch.uint8) if x.dtype == torch.uint8 else small.to(x.dtype)
        blocks.append(small[:, 0] if grey else small)
    return replace(data, x=torch.cat(blocks))


def _from_npz(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if "x" in arrays and "train_x" not in arrays:
        arrays |= {"train_x": arrays.pop("x"), "train_y": arrays.pop("y")}
    index = path.with_name("index.json")
    if index.is_file():
        about = json.loads(index.read_text(encoding="utf-8"))
        entry = about.get(path.stem) if isinstance(about, dict) else None
        arrays |= {key: entry[key] for key in ("description", "license") if isinstance(entry, dict) and key in entry}
    return arrays


def _from_csv(path: Path) -> Arrays:
    rows = labelled_rows(path, "file")
    parts = {"train": [row for row in rows if (row.get("split") or "train") != "test"]}
    parts["test"] = [row for row in rows if row.get("split") == "test"]
    names = sorted({row["label"] for row in rows})
    raw: Arrays = {"classes": names}
    for part, chosen in parts.items():
        if chosen:
            raw[f"{part}_x"] = np.stack([_pixels((path.parent / row["file"]).read_bytes()) for row in chosen])
            raw[f"{part}_y"] = np.array([names.index(row["label"]) for row in chosen])
    return raw


def _from_arrow(path: Path) -> Arrays:
    splits = read_arrow(path)
    first = next(iter(splits.values()))
    image, label = first.column(("image", "img"), path), first.column(("label", "labels"), path)
    raw: Arrays = {"description": first.description, "license": first.license}
    if label in first.names:
        raw["classes"] = first.names[label]
    for name, split in splits.items():
        if name in ("train", "test"):
            raw[f"{name}_x"] = np.stack([_pixels(value) for value in split.columns[image]])
            raw[f"{name}_y"] = np.array(split.columns[label])
    return raw


def _pixels(value: Any) -> np.ndarray:
    """Array of an encoded image, of what ``datasets`` stores for one, or of nested lists."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        return np.asarray(value, dtype=np.uint8)
    from PIL import Image

    with Image.open(io.BytesIO(value)) as image:
        return np.asarray(image if image.mode == "L" else image.convert("RGB"))


def _data(path: Path, raw: Arrays, validation: float, test: float, seed: int) -> LabelledData:
    y = np.concatenate([raw[f"{part}_y"] for part in ("train", "test") if f"{part}_y" in raw]).astype(np.int64)
    x = np.concatenate([raw[f"{part}_x"] for part in ("train", "test") if f"{part}_x" in raw])
    if y.ndim != 1 or len(x) != len(y) or len(y) == 0 or y.min() < 0:
        raise ValueError(f"inputs of shape {x.shape} do not go with labels of shape {y.shape} from 0 on")
    classes = tuple(map(str, raw["classes"])) if "classes" in raw else tuple(map(str, range(int(y.max()) + 1)))
    if int(y.max()) >= len(classes):
        raise ValueError(f"label {int(y.max())} has no name among {len(classes)} classes")
    part = torch.full((len(y),), TRAIN)
    if "test_y" in raw:
        part[len(raw["train_y"]) :] = TEST
    else:
        part = take_validation(y, part, test, seed, into=TEST)
        validation = min(validation / (1 - test), 0.9)
    return LabelledData(
        name=path.name.split(".")[0],
        description=str(raw.get("description") or f"images of {', '.join(classes[:12])}"),
        license=raw.get("license") or None,
        class_names=classes,
        x=_channels_first(x),
        y=torch.from_numpy(y),
        part=take_validation(y, part, validation, seed),
    )


def _channels_first(x: np.ndarray) -> Shaped[Tensor, "n ..."]:
    """Images [n h w], [n h w c] or [n c h w] with the channels, if any, before the pixels."""
    values = torch.from_numpy(np.ascontiguousarray(x))
    if values.dtype not in (torch.uint8, torch.float16, torch.float32):
        values = values.float()
    if values.ndim == 4 and values.shape[1] not in (1, 3) and values.shape[-1] in (1, 3):
        values = values.movedim(-1, 1).contiguous()
    return values[:, 0].contiguous() if values.ndim == 4 and values.shape[1] == 1 else values


def load_all(sources: Sequence[str], validation: float, test: float, seed: int, size: int | None) -> list[LabelledData]:
    """Load several data sets; errors as in ``load_source``, and ``UsageError`` if two have one name."""
    from zoo.build.sources import load_source

    found = [load_source(name, validation, test, seed) for source in sources for name in expand(source)]
    names = [data.name for data in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"two data sets are named {min(twice)!r}", "rename one of the files")
    return [data if size is None else resized(data, size) for data in found]
