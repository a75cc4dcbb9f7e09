"""What files beside weights say about them. Nothing is invented: what is not said is ``None``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.types import SPLITS

MAX_BYTES = 1 << 20
_METRIC = re.compile(r"(^|_)(accuracy|acc|loss|f1|auc|mcc|perplexity|bleu|rouge|error)(_|$)")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
_TEXTS = ("task", "description", "lineage", "split", "license", "base_model")


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
    metrics: Mapping[str, float] = field(default_factory=dict)
    architecture: Mapping[str, Any] | None = None


def read_about(path: Path) -> About:
    """Collect what is said about a weight file or an adapter folder.

    In falling order of authority: ``NAME.weightgen.json`` beside a file ``NAME.safetensors``, ``weightgen.json`` in the
    folder, ``metadata.json`` in the folder of an adapter, and the front matter of ``README.md``. Files that are too
    large or cannot be parsed say nothing.

    Args:
        path: the file or folder.
    """
    said: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    if path.is_dir():
        sources = [_json(path / "weightgen.json"), _json(path / "metadata.json"), _card(path / "README.md")]
    else:
        own = path.with_name(path.name.partition(".")[0] + ".weightgen.json")
        sources = [_json(own), _json(path.parent / "weightgen.json"), _card(path.parent / "README.md")]
    for source in sources:
        for key in _TEXTS:
            value = source.get(key)
            if isinstance(value, list) and value and key in ("license", "base_model"):
                value = value[0]
            if key not in said and isinstance(value, str) and value and (key != "split" or value in SPLITS):
                said[key] = value
        if "architecture" not in said and isinstance(source.get("architecture"), dict):
            said["architecture"] = source["architecture"]
        metrics = {**_metrics(source), **metrics}
    return About(**said, metrics=metrics)


def _metrics(source: Mapping[str, Any]) -> dict[str, float]:
    """Numbers under ``metrics``, and numbers at the top whose name is that of a metric."""
    given = source.get("metrics")
    named = {key: value for key, value in source.items() if isinstance(key, str) and _METRIC.search(key)}
    values = {**named, **(given if isinstance(given, dict) else {})}
    return {
        str(key): float(value) for key, value in values.items() if type(value) in (int, float) and math.isfinite(value)
    }


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
    return value if isinstance(value, dict) else {}


def _card(path: Path) -> dict[str, Any]:
    found = _FRONT_MATTER.match(_text(path))
    if found is None:
        return {}
    import yaml

    try:
        value = yaml.safe_load(found[1])
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
