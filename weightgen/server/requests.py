"""Request models from the signatures and docstrings of jobs, so that names, defaults and meaning are theirs."""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from weightgen import jobs
from weightgen.server.registry import ARRAYS, LABELLED, LEAST, TEXTS, Endpoint

CALLBACKS = frozenset({"progress", "on_text", "on_memory"})
HEARD = ("progress", "on_text")


class Labelled(BaseModel):
    """A text with its label."""

    model_config = ConfigDict(extra="forbid")

    text: str
    label: Annotated[str, Field(description="the label in words")]


class Arrays(BaseModel):
    """Labelled examples of a network."""

    model_config = ConfigDict(extra="forbid")

    x: Annotated[list[Any], Field(description="numbers, nested: [examples, ...]")]
    y: Annotated[list[int], Field(description="one label an example, from 0")]


INLINE: Mapping[str, tuple[Any, str]] = {
    TEXTS: (list[str] | None, "unlabelled texts, instead of a file in `data`"),
    LABELLED: (list[Labelled] | None, "labelled texts, instead of a file in `data`"),
    ARRAYS: (Arrays | None, "labelled examples of a network, instead of an .npz file in `data`"),
}


@functools.cache
def parameters(job: str) -> Mapping[str, inspect.Parameter]:
    """Parameters of a job that a request may set, with real types for annotations."""
    function = inspect.unwrap(getattr(jobs, job))
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in CALLBACKS:
            hint = parameter.annotation
            real = eval(hint, function.__globals__) if isinstance(hint, str) else hint  # our own annotations
            found[name] = parameter.replace(annotation=real)
    return found


def callbacks_of(job: str) -> list[str]:
    """The callbacks of a job that the server listens to."""
    known = inspect.signature(getattr(jobs, job)).parameters
    return [name for name in HEARD if name in known]


def is_required(job: str, name: str) -> bool:
    """Whether a job cannot do without an argument."""
    known = parameters(job).get(name)
    return known is not None and known.default is known.empty


def holds_path(hint: Any) -> bool:
    """Whether values of a type name files somewhere."""
    return hint is Path or any(holds_path(part) for part in typing.get_args(hint))


def _as_json(hint: Any) -> Any:
    """The type that JSON has for values of a type."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Path:
        return str
    if origin in (typing.Union, types.UnionType):
        kept = tuple(dict.fromkeys(_as_json(part) for part in parts))
        return functools.reduce(lambda a, b: a | b, kept)
    if origin is Sequence:
        return list[_as_json(parts[0])]
    if origin is tuple:
        return tuple[tuple(_as_json(part) for part in parts)]  # pyright: ignore[reportInvalidTypeArguments]
    return dict[str, Any] if origin is Mapping else hint


def argument_docs(function: Callable[..., Any]) -> dict[str, str]:
    """What the ``Args`` section of a docstring says of each argument."""
    text = inspect.getdoc(function) or ""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    docs: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", section[1].rstrip()) if section else ():
        names, _, about = " ".join(entry.split()).partition(": ")
        docs |= dict.fromkeys((name.strip() for name in names.split(",")), about)
    return docs


def first_sentence(function: Callable[..., Any]) -> str:
    """Summary line of a docstring."""
    return (inspect.getdoc(function) or "").split("\n")[0].replace("``", "`")


@functools.cache
def request_model(endpoint: Endpoint) -> type[BaseModel]:
    """The request of an endpoint.

    Args:
        endpoint: which.

    Returns:
        A model that knows no other fields than the job has arguments, and what may be sent inline.
    """
    docs = argument_docs(getattr(jobs, endpoint.job))
    fields: dict[str, Any] = {}
    for name, parameter in parameters(endpoint.job).items():
        kind, default = _as_json(parameter.annotation), parameter.default
        about = docs.get(name, "").replace("``", "`")
        if name == endpoint.out and name == "out":
            kind, default = str | None, None
            about = f"{about} Left out, the result is kept with the job.".strip()
        if default is inspect.Parameter.empty and name == "data" and endpoint.inline:
            kind, default = kind | None, None  # it may come inline
        elif default is inspect.Parameter.empty:
            default = ...
        elif isinstance(default, tuple):
            default = list(default)
        fields[name] = (kind, Field(default, description=about or None, ge=LEAST.get(name)))
    for name in endpoint.inline:
        kind, about = INLINE[name]
        fields[name] = (kind, Field(None, description=about))
    title = "".join(part.title() for part in endpoint.job.split("_")) + "Request"
    return create_model(title, __config__=ConfigDict(extra="forbid"), **fields)
