"""A million synthetic entries: recall and time of our search beside FAISS itself, in one process, call by call."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from weightgen.retrieve.fuse import Asked, rank
from weightgen.retrieve.vectors import VectorConfig, VectorIndex, faiss, faiss_threads, unit

K, QUERIES, CLUSTERS = 10, 200, 20_000


def make(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors in clusters, and queries from the same clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((CLUSTERS, size), np.float32)
    x = np.empty((count, size), np.float32)
    for start in range(0, count, 50_000):
        rows = slice(start, min(start + 50_000, count))
        n = rows.stop - rows.start
        x[rows] = unit(centres[rng.integers(CLUSTERS, size=n)] + rng.standard_normal((n, size), np.float32))
    queries = centres[rng.integers(CLUSTERS, size=QUERIES)] + rng.standard_normal((QUERIES, size), np.float32)
    return x, unit(queries)


def nearest(x: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The exact answer, by blocks."""
    best = np.zeros((len(queries), 0), np.int64)
    scores = np.zeros((len(queries), 0), np.float32)
    for start in range(0, len(x), 50_000):
        found = queries @ x[start : start + 50_000].T
        rows = np.argpartition(-found, K, axis=1)[:, :K]
        best = np.concatenate([best, rows + start], 1)
        scores = np.concatenate([scores, np.take_along_axis(found, rows, 1)], 1)
    return np.take_along_axis(best, np.argsort(-scores, 1)[:, :K], 1)


def measure(
    count: int, size: int, factory: str | None, effort: int, build_threads: int, seed: int = 0
) -> dict[str, Any]:
    """Build one index and search it, ours and FAISS in turn.

    The time of FAISS is that of its own search with the same parameters and as many candidates; the overhead of ours is
    everything around it: normalising, exact comparison of candidates, ids, strengths.
    """
    x, queries = make(count, size, seed)
    truth = nearest(x, queries)
    index = VectorIndex(size, VectorConfig(factory=factory, effort=effort, threads=build_threads, trained_on=50_000))
    index.add([f"{i:07d}" for i in range(count)], x)
    del x
    started = time.perf_counter()
    raw = index.faiss
    seconds = time.perf_counter() - started
    print(f"built in {seconds:.0f} s", file=sys.stderr, flush=True)
    index.config = VectorConfig(factory=factory, effort=effort)  # searches run on one thread
    refined = not isinstance(faiss.downcast_index(raw), faiss.IndexFlat | faiss.IndexHNSWFlat | faiss.IndexIVFFlat)
    wanted = K * index.config.refine if refined else K
    asked = [{"synthetic": Asked(index, query)} for query in queries]
    ours, theirs, right, right_raw = [], [], 0, 0
    with faiss_threads(1):
        for i, query in enumerate(queries):
            for turn in (i % 2, 1 - i % 2):  # who is first changes: the second finds warm caches
                started = time.perf_counter()
                if turn == 0:
                    found = {int(one.id) for one in rank(asked[i], K)}
                    ours.append(time.perf_counter() - started)
                    right += len(found & set(truth[i].tolist()))
                else:
                    _, rows = raw.search(query[None], wanted, params=index.parameters())
                    theirs.append(time.perf_counter() - started)
                    right_raw += len(set(rows[0, :K].tolist()) & set(truth[i].tolist()))
    filtered = []
    allowed = np.arange(count) % 2 == 0
    for query in queries[:100]:
        started = time.perf_counter()
        rank({"synthetic": Asked(index, query, allowed=allowed)}, K)
        filtered.append(time.perf_counter() - started)
    return {
        "entries": count,
        "size": size,
        "factory": index.config.factory_for(count),
        "effort": effort,
        "build_seconds": round(seconds, 1),
        "build_threads": build_threads,
        "queries": QUERIES,
        "clusters": CLUSTERS,
        "recall_at_10": right / (K * QUERIES),
        "recall_at_10_faiss": right_raw / (K * QUERIES),
        "candidates": wanted,
        "ms": 1000 * float(np.median(ours)),
        "ms_p95": 1000 * float(np.quantile(ours, 0.95)),
        "ms_faiss": 1000 * float(np.median(theirs)),
        "overhead": float(np.median(ours) / np.median(theirs) - 1),
        "ms_half_filtered": 1000 * float(np.median(filtered)),
    }
