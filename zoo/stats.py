"""Counting what records have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from zoo.store import Store
from zoo.types import Record

NOT_STATED = "not stated"
COUNTED: dict[str, Callable[[Record], str | None]] = {
    "kinds": lambda record: record.layout.kind,
    "base_models": lambda record: record.layout.base_model,
    "tasks": lambda record: record.task,
    "splits": lambda record: record.split,
    "licenses": lambda record: record.license,
}


def summarise(records: Sequence[Record], store: Store) -> dict[str, Any]:
    """Numbers of records, weights and bytes, and how many records have which kind, base model, task and so on.

    Args:
        records: records of one zoo.
        store: its blobs.
    """
    result: dict[str, Any] = {"records": len(records)}
    for name, value in COUNTED.items():
        counts = Counter(value(record) or NOT_STATED for record in records)
        result[name] = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    files = [store.path(blob) for blob in {record.blob for record in records}]
    return result | {
        "layouts": len({record.layout.fingerprint for record in records}),
        "parameters": sum(record.layout.numel for record in records),
        "blobs": len(files),
        "bytes": sum(file.stat().st_size for file in files if file.exists()),
    }
