"""Every path of a request stays under the root: no way up, no absolute path elsewhere, no link that leads out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from weightgen.server.answers import Refused
from weightgen.server.registry import JSON_OR_FILE, PARTS, WORDS, Endpoint
from weightgen.server.requests import holds_path, parameters
from zoo.config import read_yaml
from zoo.store import disk_errors

STATE = "weightgen-jobs"
"""Folder below the root with what the server knows about its jobs, and their results."""
UPLOADS, OUT = "uploads", "out"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
"""The base of everything that is shipped; it comes with an extra, so that naming it needs no network."""

_HUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(@[\w./-]+)?")
_RECORD = re.compile(r"[0-9a-f]+")
_WORD = re.compile(r"[\w-][\w:+-]*")


class Places:
    """The files that requests may name.

    Args:
        root: folder that they are confined to.
        allow_hub: whether ids of the Hub may be named as well.
    """

    def __init__(self, root: Path, allow_hub: bool = False) -> None:
        self.root = root.resolve()
        self.allow_hub = allow_hub

    def inside(self, text: str) -> Path:
        """The path that a text of a request means, whether it exists or not.

        Raises:
            Refused: if it leads out of the root.
        """
        try:
            path = (self.root / text).resolve()
        except (OSError, ValueError, RuntimeError):
            raise Refused(422, f"{text!r} is no path", "give a path below the root") from None
        if not path.is_relative_to(self.root) or text.startswith("~"):
            raise Refused(403, f"{text!r} is not below the root of this server", "give a path below the root")
        return path

    def relative(self, path: Path) -> str:
        """A path as clients see it."""
        return path.relative_to(self.root).as_posix()

    def existing(self, text: str) -> str:
        """A file or folder that is there; a folder must hold no link that leads out.

        Raises:
            Refused: if it is not there, or leads out of the root.
        """
        path = self.inside(text)
        if not text or not path.exists():
            raise Refused(404, f"{text!r} does not exist below the root", "upload it with PUT /v1/files/NAME")
        state = self.root / STATE
        if path.is_relative_to(state) and path.relative_to(state).parts[1:2] != (OUT,):
            raise Refused(403, f"{text!r} belongs to the server", f"name what a job wrote: {STATE}/ID/{OUT}")
        for folder, folders, files in os.walk(path):
            for entry in (Path(folder) / name for name in (*folders, *files)):
                if entry.is_symlink() and not entry.resolve().is_relative_to(self.root):
                    link = self.relative(entry)
                    raise Refused(403, f"{link!r} is a link out of the root", "give a folder without it")
        return self.relative(path)

    def new(self, text: str) -> str:
        """A file or folder that may be written.

        Raises:
            Refused: if it leads out of the root, is the root, or belongs to a job.
        """
        path = self.inside(text)
        if path == self.root or path.is_relative_to(self.root / STATE):
            where = "the root itself" if path == self.root else f"{text!r} in the folder of the jobs"
            raise Refused(403, f"{where} is not written to", "name another folder below the root, or leave it out")
        return self.relative(path)

    def check_values(self, value: Any, source: str) -> None:
        """Fail if any text in nested values, of a config for example, is a path out of the root.

        Raises:
            Refused: if there is one.
        """
        for text in _texts(value):
            parts = text.replace("\\", "/").split("/")
            if text.startswith(("/", "~")) or ".." in parts or os.path.lexists(self.root / text[:4096]):
                try:
                    self.inside(text)
                except Refused as error:
                    raise Refused(error.status, f"{source}: {error.cause}", error.remedy) from None


def confine(
    endpoint: Endpoint, request: Mapping[str, Any], places: Places, folder: Path | None = None
) -> dict[str, Any]:
    """Arguments of a job from a request: its paths checked, and relative to the root.

    Args:
        endpoint: the job.
        request: fields of the request model.
        places: what may be named.
        folder: of the job, if it has one; its result goes there if the request does not say where.

    Returns:
        Arguments of the job, without those that are sent inline.

    Raises:
        Refused: if a path leads out of the root or does not exist, or an id of the Hub is not allowed.
    """
    arguments: dict[str, Any] = {}
    for name, parameter in parameters(endpoint.job).items():
        value = request.get(name)
        if value is None:
            if name == endpoint.out and folder is not None:
                arguments[name] = places.relative(folder / OUT)
            elif parameter.default is parameter.empty:
                arguments[name] = None
            continue
        if name == endpoint.config and folder is not None and places.inside(value).exists():
            arguments[name] = _config(value, places, folder)
            continue
        arguments[name] = _map_texts(value, _rule(endpoint, name, parameter.annotation, places, request))
    return arguments


def _rule(endpoint: Endpoint, name: str, hint: Any, places: Places, request: Mapping[str, Any]) -> Callable[[str], str]:
    """What is done with each text of one argument."""
    if name == endpoint.out or name in endpoint.outputs:
        return places.new
    if name == "overrides":
        return lambda text: _override(text, places)
    if name == "settings":
        places.check_values(request[name], name)
        return lambda text: text
    if name in WORDS:
        return _word
    if name in JSON_OR_FILE and endpoint.job == "generate":
        return lambda text: text if text.lstrip().startswith("{") else places.existing(text)
    if not (holds_path(hint) or name in endpoint.hub or name in endpoint.records):
        return lambda text: text
    if endpoint.job == "explore" and name in PARTS:
        return lambda text: "#".join([places.existing(text.partition("#")[0]), *text.split("#")[1:]])
    return lambda text: _named(text, name, endpoint, places)


def _named(text: str, name: str, endpoint: Endpoint, places: Places) -> str:
    """A path that exists, or the name of something else that the argument takes."""
    if text and places.inside(text).exists():
        return places.existing(text)
    if text in (endpoint.shipped[name]() if name in endpoint.shipped else ()):
        return text
    if name in endpoint.records and _RECORD.fullmatch(text):
        return text
    if name in endpoint.hub and _HUB.fullmatch(text):
        if places.allow_hub or text == MINILM:
            return text
        raise Refused(
            403,
            f"{text!r} does not exist below the root, and this server takes no models of the Hub",
            "start it with --allow-hub, or put the model below the root",
        )
    return places.existing(text)


def _config(text: str, places: Places, folder: Path) -> str:
    """A copy of a config beside the job, so that nobody changes it after it was checked."""
    found = places.existing(text)
    content = read_yaml(places.root / found)
    places.check_values(content, found)
    copy = folder / f"config-{Path(found).stem}.yaml"
    with disk_errors(found):
        folder.mkdir(mode=0o700, exist_ok=True)
        copy.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return places.relative(copy)


def _override(text: str, places: Places) -> str:
    try:
        value = yaml.safe_load(text.partition("=")[2])
    except (ValueError, yaml.YAMLError, RecursionError):
        raise Refused(422, f"{text!r} has not the form key=value", 'write for example "train.steps=100"') from None
    places.check_values(value, text)
    return text


def _word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise Refused(403, f"{text!r} is no name", "name benchmarks that lm-eval knows; its files can run code")
    return text


def _map_texts(value: Any, rule: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return rule(value)
    if isinstance(value, list | tuple):
        return [_map_texts(item, rule) for item in value]
    return value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
