"""A transformers checkpoint on disk, read shard by shard: what it holds is known without any value in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from zoo import safefile
from zoo.build.encoder import find_files
from zoo.errors import BadArtefact, NetworkError, UsageError
from zoo.formats import INDEX_SUFFIX, shards_of

SINGLE = "model.safetensors"
INDEX = SINGLE + INDEX_SUFFIX
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".ot", ".ckpt", ".gguf", ".safetensors")
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint: file name, safetensors name of the element type, sizes."""

    file: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelFolder:
    """A checkpoint that was opened.

    Attributes:
        path: its folder.
        name: what the user called it.
        shards: weight files in order.
        tensors: by name.
    """

    path: Path
    name: str
    shards: tuple[str, ...]
    tensors: dict[str, TensorInfo]

    def stream(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Give tensors one by one, shard after shard; large shards are mapped, so only pages that are used are read.

        Raises:
            BadArtefact: if a file has changed or is damaged.
        """
        wanted = set(names)
        for shard in self.shards:
            here = [name for name in wanted if self.tensors[name].file == shard]
            if here:
                loaded = safefile.load(self.path / shard)[0]
                for name in sorted(here, key=list(loaded).index):
                    yield name, loaded[name]

    def extra_files(self) -> list[Path]:
        """Files of the folder that hold no weights: configuration, tokenizer, licence and so on."""
        found = [path for path in sorted(self.path.rglob("*")) if path.is_file()]
        return [
            path
            for path in found
            if not any(part.startswith(".") for part in path.relative_to(self.path).parts)
            and not path.name.endswith(OTHER_WEIGHTS)
            and not path.name.endswith(INDEX_SUFFIX)
        ]

    def fingerprint(self) -> str:
        """Identity of configuration, names, types and sizes; the values of chosen tensors are added by the caller."""
        digest = hashlib.sha256((self.path / "config.json").read_bytes())
        rows = [[name, t.file, t.dtype, list(t.shape)] for name, t in self.tensors.items()]
        digest.update(json.dumps(rows).encode())
        return digest.hexdigest()


def open_model(model: str) -> ModelFolder:
    """Open a checkpoint folder, or fetch one from the Hub.

    Args:
        model: folder that ``from_pretrained`` reads, or id such as ``org/name`` or ``org/name@revision``.

    Raises:
        UsageError: if there is no such folder.
        BadArtefact: if the folder holds no safetensors checkpoint, or a damaged one.
        NetworkError: if the Hub cannot be reached.
    """
    path = Path(find_files(model))
    if not path.is_dir():
        path = _download(model)
    if not (path / "config.json").is_file():
        raise BadArtefact(f"{path} holds no config.json", "give a folder written by save_pretrained")
    if (path / INDEX).is_file():
        shards = tuple(sorted(shards_of(path / INDEX)))
        if not shards or any(Path(name).name != name or not (path / name).is_file() for name in shards):
            raise BadArtefact(f"{path / INDEX} names shards that are not there", safefile.DOWNLOAD_AGAIN)
    elif (path / SINGLE).is_file():
        shards = (SINGLE,)
    else:
        raise BadArtefact(
            f"{path} holds neither {SINGLE} nor {INDEX}",
            "load it with transformers and save it with save_pretrained, which writes safetensors",
        )
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        for name, tensor in safefile.load(path / shard)[0].items():
            tensors[name] = TensorInfo(shard, safefile.dtype_name(tensor.dtype) or "", tuple(tensor.shape))
    return ModelFolder(path, model, shards, tensors)


def _download(model: str) -> Path:
    if Path(model).exists() or model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise UsageError(f"{model} is no folder", "give the folder of a checkpoint, or a Hub id such as org/name")
    from huggingface_hub import snapshot_download

    repository, _, revision = model.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=[*HUB_FILES]))
    except Exception as error:  # the client raises errors of its own, of its HTTP library and of the system
        first = next(iter(str(error).strip().splitlines()), "")
        raise NetworkError(
            f"{model} is no folder here, and cannot be fetched from the Hub ({type(error).__name__}: {first[:160]})",
            "check the name and the connection, or download it and give the folder",
        ) from None
