"""Kinds of weights. Each is one file in this folder with one registered class; nothing else has to be edited."""

from __future__ import annotations

import abc
import contextlib
import functools
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.errors import BadArtefact, UsageError
from zoo.types import Layout, Weights

if TYPE_CHECKING:
    from torch import Tensor

ORIGIN = ".origin.json"
TOLERANCE = 1e-5
MAX_DEPTH = 64


@dataclass(frozen=True, eq=False)
class Found:
    """What a kind read from a path.

    Attributes:
        weights: the weights.
        extra_files: small files to give back on export, by file name; ``ORIGIN`` is for the kind itself.
        notes: what was left aside, in words.
    """

    weights: Weights
    extra_files: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Kind(abc.ABC):
    """One way in which weights are packed into files. Instances have no state.

    Attributes:
        name: the name in ``Layout.kind``.
        order: kinds with smaller numbers are asked first whether a path is theirs.
    """

    name: ClassVar[str]
    order: ClassVar[int] = 100

    @abc.abstractmethod
    def matches(self, path: Path) -> bool:
        """Whether a file or folder looks like this kind; reads no tensors."""

    @abc.abstractmethod
    def read(self, path: Path, *, root: Path | None = None) -> Found:
        """Read and check one item.

        Args:
            path: a path that ``matches``.
            root: folder that links may lead to; the item's own folder by default.

        Raises:
            BadArtefact: if it is damaged or cannot be represented exactly.
        """

    @abc.abstractmethod
    def write(self, weights: Weights, folder: Path, extra_files: Mapping[str, bytes] | None = None) -> None:
        """Write the files that ``read`` understands into an existing empty folder.

        Args:
            weights: what to write.
            folder: where.
            extra_files: as given by ``read``.

        Raises:
            OSError: if the disk does not take the bytes.
        """

    @abc.abstractmethod
    def canonical(self, weights: Weights) -> Weights:
        """The one representative of all weights that compute the same function, as far as the kind knows."""

    def invariant(self, weights: Weights) -> float | None:
        """A number that all weights with one canonical form share up to rounding; ``None`` where it is not known."""
        return None

    def function_config(self, layout: Layout) -> dict[str, Any]:
        """The part of ``Layout.config`` that decides, with the tensors, which function is computed."""
        return dict(layout.config)

    def same_function(self, a: Weights, b: Weights) -> bool:
        """Whether two sets of weights of equal names, shapes and ``function_config`` are equal up to symmetry."""
        return close(self.canonical(a).tensors, self.canonical(b).tensors)


def close(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether tensors of the same names are equal up to ``TOLERANCE`` of their norm; integers have to be equal."""
    import torch

    for name, value in a.items():
        other = b[name]
        if torch.equal(value, other):
            continue
        if not (value.is_floating_point() and other.is_floating_point()):
            return False
        if (value.double() - other.double()).norm() > TOLERANCE * value.double().norm():
            return False
    return True


_KINDS: dict[str, Kind] = {}


def register(cls: type[Kind]) -> type[Kind]:
    """Class decorator that makes a kind known under its name.

    Raises:
        ValueError: if the name is taken.
    """
    if cls.name in _KINDS:
        raise ValueError(f"two kinds are named {cls.name!r}")
    _KINDS[cls.name] = cls()
    return cls


@functools.cache
def _discover() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def names() -> list[str]:
    """Names of all kinds, sorted."""
    _discover()
    return sorted(_KINDS)


def get(name: str) -> Kind:
    """Kind by name.

    Raises:
        UsageError: if there is none of that name.
    """
    _discover()
    if name not in _KINDS:
        raise UsageError(f"unknown kind of weights {name!r}", f"known are {', '.join(names())}")
    return _KINDS[name]


def match(path: Path) -> Kind | None:
    """The kind that a file or folder belongs to, or ``None``."""
    _discover()
    kinds = sorted(_KINDS.values(), key=lambda kind: (kind.order, kind.name))
    return next((kind for kind in kinds if kind.matches(path)), None)


def read(path: Path, *, root: Path | None = None) -> Found:
    """Read a file or folder with the kind it belongs to.

    Raises:
        BadArtefact: if no kind knows it, or the kind refuses it.
    """
    kind = match(path)
    if kind is None:
        raise BadArtefact(f"{path} is not a known kind of weights", f"known kinds are {', '.join(names())}")
    return kind.read(path, root=root)


@contextlib.contextmanager
def blamed_on(path: Path) -> Iterator[None]:
    """Name the file in a ``BadArtefact`` that is raised inside of the block."""
    try:
        yield
    except BadArtefact as error:
        raise BadArtefact(f"{path}: {error.cause}", error.remedy) from None


def canonical(weights: Weights) -> Weights:
    """Canonical form of weights of any kind; see ``Kind.canonical``."""
    return get(weights.layout.kind).canonical(weights)


def parse_json(data: bytes, origin: str) -> dict[str, Any]:
    """Parse a JSON object from a file that came with weights.

    Raises:
        BadArtefact: if it is not one.
    """
    import json

    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadArtefact(f"{origin} is not valid JSON: {error}", "download or save the file again") from None
    if not isinstance(value, dict):
        raise BadArtefact(f"{origin} is not a JSON object", "download or save the file again")
    if nested(value, MAX_DEPTH):
        raise BadArtefact(f"{origin} is nested more than {MAX_DEPTH} levels deep", "write a plainer file")
    return value


def nested(value: Any, depth: int) -> bool:
    """Whether JSON values are nested more than ``depth`` levels deep."""
    level = [value]
    for _ in range(depth + 1):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [one for many in inner for one in many]
        if not level:
            return False
    return True
