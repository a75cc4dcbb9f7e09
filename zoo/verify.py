"""Reading a whole zoo again to find out whether every byte is as it was written."""

from __future__ import annotations

from zoo import kinds, safefile
from zoo.catalog import Catalog
from zoo.errors import BadArtefact, WeightgenError
from zoo.store import BYTES, Store, read_weights, record_id
from zoo.types import Record


def find_problems(catalog: Catalog, store: Store) -> list[str]:
    """Check catalogue, blobs, layouts and values of a zoo, and look for files that a dead process left.

    Returns:
        What is wrong, in words; empty if nothing is.
    """
    problems = catalog.damaged_rows()
    problems += [f"temporary file {path} of a process that died" for path in store.orphans()]
    try:
        problems += [f"blob {blob[:16]} {why}" for blob in sorted(catalog.blobs()) if (why := store.problem(blob))]
        for digest in sorted(catalog.extra_blobs()):
            if why := store.problem(digest, BYTES):
                problems.append(f"extra file {digest[:16]} {why}")
        records = catalog.records({})
    except (WeightgenError, ValueError) as error:
        return [*problems, f"catalogue: {error}"]
    for record in records:
        try:
            _check_record(record, store)
        except WeightgenError as error:
            problems.append(f"record {record.id}: {error.cause}")
    return problems


def _check_record(record: Record, store: Store) -> None:
    if record.id != record_id(record.blob, record.layout.fingerprint):
        raise BadArtefact("its id does not follow from its blob and layout")
    kinds.get(record.layout.kind)
    safefile.check_finite(read_weights(store, record).tensors, f"record {record.id}")
