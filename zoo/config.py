"""Strict YAML: a file becomes one frozen, fully checked config, or an error that names the line to mend.

Recipes of zoos and configs of generators both go through here. Values keep their YAML type: ``"3"`` is not a number
and ``true`` is not one. A key that the config does not know is an error that suggests the nearest known one.
"""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from zoo.errors import UsageError


class StrictConfig(BaseModel):
    """Base of every config: immutable, no unknown keys, no silent conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


C = TypeVar("C", bound=StrictConfig)


def load_config(path: Path | str, cls: type[C], overrides: Sequence[str] = ()) -> C:
    """Read a YAML file into a config.

    Args:
        path: the YAML file.
        cls: the config class that the file must fill.
        overrides: changes of single values, each ``"a.b=c"``; the value is read as YAML.

    Returns:
        The checked config, defaults included.

    Raises:
        UsageError: if the file is missing or no YAML mapping, if a key is given twice or is unknown, if a value has
            the wrong type, or if an override has the wrong form.
    """
    return parse_config(read_yaml(path), cls, source=str(path), overrides=overrides)


def shipped_configs() -> dict[str, Path]:
    """Configs that come with weightgen, by name: those of the checkout, or their copy in the installed package."""
    package = Path(__file__).parent
    folder = next((f for f in (package / "configs", package.parent / "configs") if f.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(path: Path | str) -> Path:
    """Return the file that a path or the bare name of a shipped config means; a file of that path comes first."""
    given = Path(path)
    if given.exists() or given.suffix or len(given.parts) != 1:
        return given
    return shipped_configs().get(str(path), given)


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Args:
        path: the YAML file, or the name of a shipped config.

    Returns:
        Its content as plain Python values.

    Raises:
        UsageError: if the file cannot be read, is not valid YAML, repeats a key, or holds no mapping.
    """
    try:
        text = find_config(path).read_text(encoding="utf-8")
    except OSError as error:
        names = ", ".join(shipped_configs())
        remedy = f"check the path, or name a shipped config: {names}" if names else "check the path"
        raise UsageError(f"cannot read config {path} ({error.strerror})", remedy) from None
    except UnicodeDecodeError:
        raise UsageError(f"config {path} is not UTF-8 text", "give a YAML file") from None
    data = _parse_yaml(text, str(path))
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"holds a {type(data).__name__}"
        raise UsageError(f"config {path} {found}", "write 'key: value' lines at its top level")
    return data


def parse_config(data: Mapping[str, Any], cls: type[C], source: str, overrides: Sequence[str] = ()) -> C:
    """Check plain values against a config class.

    Args:
        data: nested mappings as they come from YAML or JSON.
        cls: the config class to fill.
        source: where the values come from, for messages.
        overrides: changes of single values, each ``"a.b=c"``; the value is read as YAML.

    Returns:
        The checked config, defaults included.

    Raises:
        UsageError: if a key is unknown or missing, a value has the wrong type, or an override has the wrong form.
    """
    merged: dict[str, Any] = dict(data)
    origins: dict[str, str] = {}
    for override in overrides:
        key, value = _split_override(override)
        merged = _with_value(merged, key.split("."), value, override)
        origins[key] = f"--set {override}"
    try:
        # JSON mode is strict about types and still takes a list for a tuple and a string for a path.
        return cls.model_validate_json(json.dumps(merged, default=str))
    except ValidationError as error:
        raise _explain(error, cls, merged, source, origins) from None


def dump_config(config: StrictConfig) -> dict[str, Any]:
    """Plain JSON form of a config, defaults included; ``parse_config`` is its inverse.

    Args:
        config: the config to save.

    Returns:
        Nested dictionaries of JSON values.
    """
    return config.model_dump(mode="json")


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses repeated keys, keeps every key as text and reads ``1e-3`` as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
            key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        # A subclass of SafeLoader: plain values only, no Python objects.
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{source}{line}: {problem}", "mend the YAML") from None


def _split_override(override: str) -> tuple[str, Any]:
    key, equals, value = override.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise UsageError(f"override {override!r} has not the form key=value", "write for example --set train.steps=100")
    return key, _parse_yaml(value, f"--set {override}")


def _with_value(data: Any, keys: Sequence[str], value: Any, override: str) -> dict[str, Any]:
    """Copy of ``data`` with one nested value replaced; mappings on the way are made if they are missing."""
    if not isinstance(data, Mapping):
        raise UsageError(
            f"override {override!r} goes into {data!r}, which has no keys", "override that value as a whole"
        )
    head, *rest = keys
    inner = data.get(head)
    return {**data, head: _with_value({} if inner is None else inner, rest, value, override) if rest else value}


def _explain(
    error: ValidationError, cls: type[BaseModel], data: Mapping[str, Any], source: str, origins: Mapping[str, str]
) -> UsageError:
    """Turn the first complaint of pydantic into one sentence with file, key, value and remedy."""
    problems = error.errors(include_url=False)
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    first = (unknown or problems)[0]
    key = _dotted(first["loc"], data)
    where = next((text for name, text in origins.items() if key == name or key.startswith(f"{name}.")), source)
    if first["type"] == "extra_forbidden":
        return UsageError(f"{where}: unknown key {key!r}", _suggest(key, first["loc"], cls))
    if first["type"] == "missing":
        return UsageError(f"{where}: key {key!r} is missing", "add it")
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not key:
        return UsageError(f"{where}: {message}", "change the values that it names")
    return UsageError(f"{where}: {key} = {json.dumps(first['input'], default=str)}: {message}", "change the value")


def _dotted(loc: Sequence[int | str], data: Any) -> str:
    """Key as the user wrote it: pydantic adds the tag of a union to the path, which is in no file."""
    parts: list[str] = []
    for index, part in enumerate(loc):
        try:
            data = data[part]
        except (KeyError, TypeError):
            if index < len(loc) - 1 or not isinstance(data, Mapping):
                continue
        parts.append(str(part))
    return ".".join(parts)


def _suggest(key: str, loc: Sequence[int | str], cls: type[BaseModel]) -> str:
    """Remedy for an unknown key: the nearest one beside it, the same name elsewhere, or all that are allowed."""
    parent, _, name = key.rpartition(".")
    prefix = f"{parent}." if parent else ""
    siblings = sorted({field for model in _models_at(cls, loc[:-1]) for field in model.model_fields})
    if near := difflib.get_close_matches(name, siblings, n=1):
        return f"did you mean {prefix + near[0]!r}?"
    if elsewhere := [known for known in _all_keys(cls) if known.rpartition(".")[2] == name]:
        return f"did you mean {elsewhere[0]!r}?"
    return f"known keys here: {', '.join(siblings)}"


def _models_at(cls: type[BaseModel], loc: Sequence[int | str]) -> list[type[BaseModel]]:
    """Config classes that may stand at a path; the tag of a union picks its members."""
    models = [cls]
    for part in loc:
        fields = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        if fields:
            models = [model for field in fields for model in _models_in(field)]
        else:
            models = [model for model in models if _is_tagged(model, part)] or models
    return models


def _is_tagged(model: type[BaseModel], tag: int | str) -> bool:
    return tag == model.__name__ or any(tag in typing.get_args(f.annotation) for f in model.model_fields.values())


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _all_keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield prefix + name
        for model in _models_in(field.annotation):
            yield from _all_keys(model, f"{prefix}{name}.")
