"""What files beside weights say about them. Nothing is invented: what is not said is ``None``."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.kinds import MAX_DEPTH, nested
from zoo.types import SPLITS

MAX_BYTES = 1 << 20
METRIC = re.compile(r"(^|_)(accuracy|acc|loss|f1|auc|mcc|perplexity|bleu|rouge|error)(_|$)")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_TEXTS = (*("task", "description", "dataset", "base_model", "revision", "license", "lineage", "split", "source"),)
_LISTS = {"license": 1, "base_model": 1, "dataset": 8}  # how many of several values are kept
MAX_DESCRIPTION, MAX_CARD, MAX_FRONT_MATTER = 500, 8_000, 50_000


@dataclass(frozen=True, slots=True)
class About:
    """Statements found beside weights; fields as in ``zoo.types.Record``.

    Attributes:
        architecture: JSON description of the network.
    """

    task: str | None = None
    description: str | None = None
    lineage: str | None = None
    split: str | None = None
    license: str | None = None
    base_model: str | None = None
    dataset: str | None = None
    revision: str | None = None
    source: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    architecture: Mapping[str, Any] | None = None


def read_about(path: Path) -> About:
    """Collect what is said about a weight file or an adapter folder.

    In falling order of authority: ``NAME.weightgen.json`` or ``NAME.metadata.json`` beside a file ``NAME.safetensors``,
    ``weightgen.json`` and ``metadata.json`` in the folder, the configuration of an adapter, and the model card
    ``README.md``: its front matter (with ``model-index``), then the first plain paragraph of its text as description.
    Files that are too large or cannot be parsed say nothing.

    Args:
        path: the file or folder.
    """
    if path.is_dir():
        sources = [
            _json(path / "weightgen.json"),
            _json(path / "metadata.json"),
            _adapter(path / "adapter_config.json"),
        ]
        sources.append(_card(path / "README.md"))
    else:
        stem = path.name.partition(".")[0]
        names = (f"{stem}.weightgen.json", f"{stem}.metadata.json", "weightgen.json", "metadata.json")
        sources = [*(_json(path.with_name(name)) for name in names), _card(path.with_name("README.md"))]
    return merged(*(_about(source) for source in sources))


def merged(*abouts: About) -> About:
    """One statement from several; where two say something of one thing, the earlier one counts."""
    said: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    for about in abouts:
        for name in (*_TEXTS, "architecture"):
            if said.get(name) is None:
                said[name] = getattr(about, name)
        metrics = {**about.metrics, **metrics}
    return About(**said, metrics=metrics)


def _about(source: Mapping[str, Any]) -> About:
    said: dict[str, Any] = {}
    for key in _TEXTS:
        value = source.get(key)
        if isinstance(value, list) and key in _LISTS:
            value = ", ".join(one for one in value[: _LISTS[key]] if isinstance(one, str))
        if isinstance(value, str) and value.strip() and _is_text(value) and (key != "split" or value in SPLITS):
            said[key] = value.strip()
    if isinstance(source.get("architecture"), dict):
        said["architecture"] = source["architecture"]
    return About(**said, metrics=_metrics(source))


def _metrics(source: Mapping[str, Any]) -> dict[str, float]:
    """Numbers under ``metrics``, and numbers at the top whose name is that of a metric."""
    given = source.get("metrics")
    named = {key: value for key, value in source.items() if isinstance(key, str) and METRIC.search(key)}
    values = {**named, **(given if isinstance(given, dict) else {})}
    metrics = {}
    for key, value in values.items():
        if type(value) in (int, float) and isinstance(key, str) and _is_text(key):
            with contextlib.suppress(OverflowError):  # whole numbers may have any size
                metrics[key] = float(value)
    return {key: value for key, value in metrics.items() if math.isfinite(value)}


def _is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8; JSON can hold others."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            return ""
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) and not nested(value, MAX_DEPTH) else {}


def _adapter(path: Path) -> dict[str, Any]:
    """The revision of the base model; the base model itself belongs to the layout."""
    return {"revision": _json(path).get("revision")}


def _card(path: Path) -> dict[str, Any]:
    text = _text(path)
    found = _FRONT_MATTER.match(text)
    front: dict[str, Any] = {}
    if found is not None:
        front = _yaml(found[1])
    metrics, task = _model_index(front.get("model-index"))
    given = front.get("metrics")
    return {
        **{key: value for key, value in front.items() if key != "architecture"},
        "task": front.get("task") or task or front.get("pipeline_tag"),
        "dataset": front.get("dataset") or front.get("datasets"),
        "description": front.get("description")
        or front.get("summary")
        or _paragraph(text[found.end() if found else 0 :]),
        "metrics": {**metrics, **(given if isinstance(given, dict) else {})},
    }


def _yaml(text: str) -> dict[str, Any]:
    """A YAML mapping that is not deep and has no aliases: a few lines of those can stand for more than memory holds."""
    import yaml

    if len(text) > MAX_FRONT_MATTER:
        return {}
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH or isinstance(event, yaml.AliasEvent):
                return {}
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    return value if isinstance(value, dict) else {}


def _model_index(entries: Any) -> tuple[dict[str, Any], str | None]:
    """Metrics and the first task of the ``model-index`` of a card."""
    metrics: dict[str, Any] = {}
    tasks: list[str] = []
    for entry in entries if isinstance(entries, list) else []:
        results = entry.get("results") if isinstance(entry, dict) else None
        for result in results if isinstance(results, list) else []:
            task = result.get("task") if isinstance(result, dict) else None
            if isinstance(task, dict):
                tasks += [value for key in ("type", "name") if isinstance(value := task.get(key), str)][:1]
            measured = result.get("metrics") if isinstance(result, dict) else None
            for metric in measured if isinstance(measured, list) else []:
                if isinstance(metric, dict) and isinstance(metric.get("type"), str):
                    metrics.setdefault(metric["type"], metric.get("value"))
    return metrics, tasks[0] if tasks else None


def _paragraph(text: str) -> str | None:
    """The first paragraph of plain text in a card; headings, lists, tables, code and empty forms are passed over."""
    for block in re.split(r"\n\s*\n", _COMMENT.sub("", text[:MAX_CARD].replace("\r", ""))):
        block = " ".join(block.split())
        if len(block) > 20 and block[0] not in "#-*|`<>![=+" and "[More Information Needed]" not in block:
            return block[:MAX_DESCRIPTION]
    return None
