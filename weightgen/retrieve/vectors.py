"""One FAISS index over unit vectors: its kind by size, filters inside the search, rebuilt from the vectors at any time.

FAISS files are never read or written: an index is made from plain vectors whenever it is needed. Searches run on one
thread by default, which keeps no pool of threads that a fork could break.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, final

import faiss as faiss_library
import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from pydantic import Field

from zoo.config import StrictConfig
from zoo.errors import UsageError

faiss: Any = faiss_library  # its Python layer changes classes when it is loaded, which type checkers cannot follow
BLOCK = 1 << 16
REBUILD_SHARE = 0.2
"""Share of deleted rows above which an index is made anew."""


class VectorConfig(StrictConfig):
    """Which index is made for how many vectors; names are those of ``faiss.index_factory``."""

    exact_up_to: int = Field(default=100_000, ge=1, description="vectors up to which every one is compared")
    graph_up_to: int = Field(default=1_000_000, ge=1)
    graph: str = Field(default="HNSW32", description="above exact_up_to")
    quantised: str = Field(default="IVF4096,PQ64", description="above graph_up_to")
    factory: str | None = Field(default=None, description="the same index for any size")
    effort: int = Field(default=64, ge=1, description="efSearch of graphs, nprobe of inverted lists")
    refine: int = Field(default=10, ge=1, description="candidates a hit that are compared exactly after quantised ones")
    trained_on: int = Field(default=200_000, ge=1, description="vectors that quantisers are trained on, at most")
    threads: int = Field(default=1, ge=1)

    def factory_for(self, count: int) -> str:
        """Name of the index for a number of vectors."""
        if self.factory is not None:
            return self.factory
        return "Flat" if count <= self.exact_up_to else self.graph if count <= self.graph_up_to else self.quantised


@contextlib.contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """Let FAISS use this many threads inside the ``with`` block."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def unit(vectors: Float[ndarray, "*n d"]) -> Float[ndarray, "*n d"]:
    """Vectors of length one; those of length zero stay."""
    size = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))[..., None]
    return (vectors / np.maximum(size, 1e-12)).astype(np.float32)


@final
class VectorIndex:
    """Vectors by id, searched by cosine.

    Attributes:
        ids: of every row, deleted ones included.
        alive: which rows are not deleted.
    """

    def __init__(self, size: int, config: VectorConfig | None = None) -> None:
        """Make an empty index of vectors of a size."""
        self.config = config or VectorConfig()
        self.ids: list[str] = []
        self.alive: Bool[ndarray, " n"] = np.zeros(0, bool)
        self._rows: dict[str, int] = {}
        self._x: Float[ndarray, "n d"] = np.zeros((0, size), np.float32)
        self._faiss: Any = None
        self._refined = False

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_faiss": None}

    @property
    def size(self) -> int:
        """Length of a vector."""
        return self._x.shape[1]

    def row(self, id: str) -> int | None:
        """Row of an id that is not deleted."""
        return self._rows.get(id)

    def add(self, ids: Sequence[str], vectors: Float[ndarray, "n d"]) -> None:
        """Add vectors; one whose id is there already takes its place.

        Raises:
            UsageError: if the vectors have another size, an id comes twice, or a value is not finite.
        """
        if vectors.shape != (len(ids), self.size):
            raise UsageError(
                f"{len(ids)} vectors of size {self.size} are expected, got {vectors.shape}", "rebuild the index"
            )
        if len(set(ids)) < len(ids):
            raise UsageError("one id is given twice", "give every id once")
        if not np.isfinite(vectors).all():
            raise UsageError("a vector holds NaN or infinity", "check the weights or texts that it was made of")
        self.delete(ids)
        new = unit(vectors)
        first = len(self.ids)
        self.ids += ids
        self._rows |= {id: first + i for i, id in enumerate(ids)}
        self._x = np.concatenate([self._x, new]) if first else new
        self.alive = np.concatenate([self.alive, np.ones(len(ids), bool)])
        if self._faiss is not None:
            if self.config.factory_for(len(self.ids)) == self.config.factory_for(first):
                with faiss_threads(self.config.threads):
                    self._faiss.add(new)
            else:
                self._faiss = None

    def delete(self, ids: Collection[str]) -> int:
        """Forget vectors; returns how many were there."""
        rows = [self._rows.pop(id) for id in ids if id in self._rows]
        self.alive[rows] = False
        if len(self._rows) < (1 - REBUILD_SHARE) * len(self.ids):
            self._compact()
        return len(rows)

    def _compact(self) -> None:
        keep = np.flatnonzero(self.alive)
        self.ids, self._x = [self.ids[i] for i in keep], self._x[keep]
        self.alive, self._faiss = np.ones(len(keep), bool), None
        self._rows = {id: i for i, id in enumerate(self.ids)}

    @property
    def faiss(self) -> Any:
        """The FAISS index; it is made when it is first asked for.

        Raises:
            UsageError: if FAISS does not take the name of the index.
        """
        if self._faiss is None:
            self._faiss = self._built(self.config.factory_for(len(self.ids)))
            exact = (faiss.IndexFlat, faiss.IndexHNSWFlat, faiss.IndexIVFFlat)
            self._refined = not isinstance(faiss.downcast_index(self._faiss), exact)
        return self._faiss

    def _built(self, name: str) -> Any:
        with faiss_threads(self.config.threads):
            try:
                index = faiss.index_factory(self.size, name, faiss.METRIC_INNER_PRODUCT)
                if not index.is_trained:
                    step = -(-len(self._x) // self.config.trained_on)
                    index.train(np.ascontiguousarray(self._x[::step]))
                index.add(self._x)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise UsageError(
                    f"the index {name!r} cannot be made of {len(self._x)} vectors of size {self.size} ({reason})",
                    "choose another factory string, for example Flat",
                ) from None
        return index

    def search(
        self, query: Float[ndarray, " d"], k: int, allowed: Bool[ndarray, " n"] | None = None
    ) -> tuple[Int[ndarray, " k"], Float[ndarray, " k"]]:
        """The rows of largest cosine, best first; fewer than ``k`` if there are no more.

        Args:
            query: of any length but zero.
            k: how many.
            allowed: rows that may be found; all by default. Few of them are compared one by one, so that nothing is
                missed; among many, the search of the index passes over the others.
        """
        if query.shape != (self.size,):
            raise UsageError(f"the query has {query.shape[0]} values, the index {self.size}", "rebuild the index")
        query = query / max(float(query @ query) ** 0.5, 1e-12)
        if allowed is None:
            mask, count = (None if len(self._rows) == len(self.ids) else self.alive), len(self._rows)
        else:
            mask = allowed & self.alive
            count = int(mask.sum())
        k = min(k, count)
        if k == 0:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        if mask is not None and count <= self.config.exact_up_to:
            return self._best(query, np.flatnonzero(mask), k)
        index = self.faiss
        wanted = min(count, k * self.config.refine) if self._refined else k
        with faiss_threads(self.config.threads):
            scores, rows = index.search(query[None], wanted, params=self.parameters(mask))
        if self._refined or rows[0, -1] < 0:
            rows = rows[0, rows[0] >= 0]
            return self._best(query, rows, min(k, len(rows)))
        return rows[0], scores[0]

    def parameters(self, mask: Bool[ndarray, " n"] | None = None) -> Any:
        """What FAISS is told with a search: the effort, and the rows that may be found."""
        given = {} if mask is None else {"sel": faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))}
        index, wrap = faiss.downcast_index(self.faiss), False
        if isinstance(index, faiss.IndexPreTransform):
            index, wrap = faiss.downcast_index(index.index), True
        if isinstance(index, faiss.IndexHNSW):
            made = faiss.SearchParametersHNSW(efSearch=self.config.effort, **given)
        elif isinstance(index, faiss.IndexIVF):
            made = faiss.SearchParametersIVF(nprobe=self.config.effort, **given)
        else:
            made = faiss.SearchParameters(**given)
        return faiss.SearchParametersPreTransform(index_params=made) if wrap else made

    def _best(
        self, query: Float[ndarray, " d"], rows: Int[ndarray, " n"], k: int
    ) -> tuple[Int[ndarray, " k"], Float[ndarray, " k"]]:
        scores = self.cosines(query, rows)
        order = np.lexsort((rows, -scores))[:k]
        return rows[order], scores[order]

    def cosines(self, query: Float[ndarray, " d"], rows: Int[ndarray, " n"]) -> Float[ndarray, " n"]:
        """Cosines of some rows with a query of length one."""
        query = query.astype(np.float32)
        if len(rows) <= BLOCK:
            return self._x[rows] @ query
        parts = range(0, len(rows), BLOCK)
        return np.concatenate([self._x[rows[i : i + BLOCK]] @ query for i in parts])

    def background(self, seed: int, pairs: int = 4096) -> tuple[float, float]:
        """Mean and deviation of the cosine of two random rows; (0, 1) if there are too few to say."""
        rows = np.flatnonzero(self.alive)
        if len(rows) < 3:
            return 0.0, 1.0
        rng = np.random.default_rng(seed)
        a, b = rng.choice(rows, pairs), rng.choice(rows, pairs)
        a, b = a[a != b], b[a != b]
        found = np.concatenate([np.einsum("nd,nd->n", self._x[a[i::8]], self._x[b[i::8]]) for i in range(8)])
        deviation = float(found.std())
        return float(found.mean()), deviation if deviation > 1e-4 else 1.0
