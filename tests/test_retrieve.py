"""The parts of retrieval: one FAISS index, sketches of weights, fusion of views, calibration."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.compose_parents import adapter, changes
from weightgen.retrieve.calibration import Calibration, Pair, calibrate, fused, load_pairs, save_pairs
from weightgen.retrieve.fuse import Asked, compare, rank
from weightgen.retrieve.sketches import count_sketch, fit_scales, network_sketch, product_sketch, update_sketch
from weightgen.retrieve.vectors import VectorConfig, VectorIndex, faiss, unit
from zoo import kinds
from zoo.errors import BadArtefact, UsageError
from zoo.types import Layout, TensorSpec, Weights

COUNT, SIZE = 600, 16


def points(seed: int = 0, count: int = COUNT) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((count, SIZE)).astype(np.float32))


def names(count: int = COUNT, first: str = "r") -> list[str]:
    return [f"{first}{i}" for i in range(count)]


def nearest(x: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    return np.argsort(-(x @ query), kind="stable")[:k].tolist()


@pytest.mark.parametrize("factory", [None, "HNSW8", "IVF4,Flat", "IVF4,PQ4x4", "L2norm,IVF4,Flat"])
def test_every_kind_of_index_finds_the_nearest_and_obeys_the_filter(factory: str | None) -> None:
    x, query = points(), points(1, 1)[0]
    config = VectorConfig(factory=factory, effort=64, refine=60, exact_up_to=100)
    index = VectorIndex(SIZE, config)
    index.add(names(), x)
    rows, scores = index.search(query, 5)
    assert rows.tolist() == nearest(x, query, 5)
    np.testing.assert_allclose(scores, x[rows] @ query, atol=1e-5)
    for keep in (np.arange(COUNT) % 2 == 1, np.arange(COUNT) < 20):  # many of them, and few enough to compare all
        rows, _ = index.search(query, 5, keep)
        wanted = [row for row in nearest(x, query, COUNT) if keep[row]][:5]
        assert rows.tolist() == wanted
    assert len(index.search(query, 5, np.zeros(COUNT, bool))[0]) == 0


def test_adding_replacing_and_deleting() -> None:
    x = points()
    index = VectorIndex(SIZE, VectorConfig(factory="HNSW8", exact_up_to=1, effort=200))
    index.add(names(500), x[:500])
    assert index.search(x[550], 1)[0][0] != 550
    index.add(["late"], x[550:551])
    assert index.ids[index.search(x[550], 1)[0][0]] == "late"
    index.add(["r3"], x[560:561])
    assert index.row("r3") == 501
    assert index.ids[index.search(x[560], 1)[0][0]] == "r3"
    assert index.search(x[3], 1)[1][0] < 0.999
    assert index.delete(["late", "nobody"]) == 1
    assert len(index) == 500
    assert index.search(x[550], 1)[1][0] < 0.999
    index.delete(names(200, "r"))  # so many that the index is made anew
    assert len(index.ids) == len(index) == 300
    assert index.ids[index.search(x[300], 1)[0][0]] == "r300"


def test_the_kind_follows_the_size_and_threads_are_left_as_they_were() -> None:
    config = VectorConfig(exact_up_to=10, graph_up_to=100)
    assert [config.factory_for(n) for n in (10, 11, 101)] == ["Flat", "HNSW32", "IVF4096,PQ64"]
    assert VectorConfig().factory_for(100_000) == "Flat"
    faiss.omp_set_num_threads(2)
    index = VectorIndex(SIZE)
    index.add(names(), points())
    index.search(points()[0], 3)
    assert faiss.omp_get_max_threads() == 2
    copy = pickle.loads(pickle.dumps(index))  # for worker processes: without anything of FAISS
    assert copy.search(points()[4], 1)[0].tolist() == [4]


def test_bad_vectors_are_refused() -> None:
    index = VectorIndex(SIZE)
    with pytest.raises(UsageError, match="size 16"):
        index.add(["a"], np.zeros((1, 3), np.float32))
    with pytest.raises(UsageError, match="twice"):
        index.add(["a", "a"], points(count=2))
    with pytest.raises(UsageError, match="NaN"):
        index.add(["a"], np.full((1, SIZE), np.nan, np.float32))
    index.add(["a"], points(count=1))
    with pytest.raises(UsageError, match="3 values"):
        index.search(np.ones(3, np.float32), 1)
    odd = VectorIndex(SIZE, VectorConfig(factory="Nonsense"))
    odd.add(["a"], points(count=1))
    with pytest.raises(UsageError, match="factory string"):
        odd.search(np.ones(SIZE, np.float32), 1)


def test_the_sketch_of_a_product_is_that_of_the_matrix() -> None:
    rng = torch.Generator().manual_seed(0)
    b, a = torch.randn(6, 2, generator=rng).double(), torch.randn(2, 5, generator=rng).double()
    found = product_sketch(b, a, "layer", 32)
    # by the definition: every entry goes to the sum of the places of its row and column
    up, down = (
        count_sketch(torch.eye(6).double(), "layer/outputs", 32),
        count_sketch(torch.eye(5).double(), "layer/inputs", 32),
    )
    wanted = torch.zeros(32).double()
    for i in range(6):
        for j in range(5):
            place = (int(up[:, i].abs().argmax()) + int(down[:, j].abs().argmax())) % 32
            wanted[place] += (b @ a)[i, j] * up[:, i].sum() * down[:, j].sum()
    torch.testing.assert_close(found, wanted)


def test_sketches_of_updates_keep_cosines_whatever_the_gauge() -> None:
    one, other = adapter(0), adapter(1)
    turned = kinds.canonical(one)
    sketches = [update_sketch(w, 8192) for w in (one, other, turned)]
    torch.testing.assert_close(sketches[0], sketches[2], atol=1e-4, rtol=1e-4)
    full = [torch.cat([v.flatten().double() for _, v in sorted(changes(w).items())]) for w in (one, other)]
    mixed = full[0] + 0.5 * full[1]
    cosine = torch.nn.functional.cosine_similarity
    sum_of_sketches = sketches[0] + 0.5 * sketches[1]  # linear
    assert abs(cosine(sum_of_sketches, sketches[1], dim=0) - cosine(mixed, full[1], dim=0)) < 0.06
    assert abs(float(sketches[0].norm() / full[0].norm()) - 1) < 0.06


def small_network(seed: int, outputs: int = 2) -> Weights:
    rng = torch.Generator().manual_seed(seed)
    specs = (TensorSpec("w", (outputs, 3), "F32", 0, "weight"), TensorSpec("b", (outputs,), "F32", 0, "bias"))
    layout = Layout("dense", None, specs)
    return Weights(layout, {"w": 8 * torch.randn(outputs, 3, generator=rng), "b": torch.randn(outputs, generator=rng)})


def test_networks_are_sketched_exactly_where_they_fit_and_nearly_where_not() -> None:
    networks = [small_network(i, 40) for i in range(3)]
    scales = fit_scales(networks)
    assert scales["weight"] == 3
    assert scales["bias"] == 0
    exact = torch.stack([network_sketch(w, scales, 512) for w in networks])
    values = torch.stack([torch.cat([w.tensors["w"].flatten() / 8, w.tensors["b"]]) for w in networks])
    torch.testing.assert_close(exact @ exact.T, values @ values.T)
    rough = torch.stack([network_sketch(w, scales, 128) for w in networks])
    assert (rough @ rough.T - values @ values.T).abs().max() < 0.5 * values.square().sum(1).max()
    with pytest.raises(UsageError, match="no scale"):
        network_sketch(networks[0], {"bias": 0}, 512)


def test_fusion_ranks_by_deviations_above_unrelated_ones() -> None:
    x = points(count=50)
    first, second = VectorIndex(SIZE), VectorIndex(SIZE)
    first.add(names(50), x)
    second.add(["r7", "r8"], x[[20, 21]])
    asked = {"a": Asked(first, x[7], 0.0, 0.5), "b": Asked(second, x[21], 0.1, 0.3)}
    found = rank(asked, 3)
    assert {one.id for one in found[:2]} == {"r7", "r8"}
    seven = next(one for one in found if one.id == "r7")
    assert seven.cosines["a"] == pytest.approx(1, abs=1e-5)
    expected = (1 / 0.5 + (float(x[20] @ x[21]) - 0.1) / 0.3) / 2
    assert seven.strength == pytest.approx(expected, abs=1e-4)
    missing = compare(asked, ["r5"])[0]
    assert missing.strength == pytest.approx(missing.strengths["a"] / 2)
    alone = rank({"a": asked["a"]}, 2)
    assert alone[0].id == "r7"
    assert alone[0].strength == pytest.approx(2, abs=1e-4)


def made_pairs(count: int, steep: float, seed: int = 0) -> list[Pair]:
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(count):
        strength = float(rng.normal())
        win = rng.random() < 1 / (1 + math.exp(-steep * strength))
        pairs.append(Pair(f"task{i % 10}", f"r{i}", False, {"a": strength, "b": 0.0}, 0.1 if win else -0.1))
    return pairs


def test_calibration_finds_the_slope_and_says_where_there_is_none() -> None:
    found = calibrate(made_pairs(600, 2.0), ["a"])
    assert isinstance(found, Calibration)
    assert 1.5 < found.slope < 2.5
    assert found.probability(1.0) == pytest.approx(1 / (1 + math.exp(-2)), abs=0.06)
    assert found.brier < found.brier_rate
    both = calibrate(made_pairs(600, 2.0), ["a", "b"])  # half the strength, twice the slope
    assert isinstance(both, Calibration)
    assert both.slope == pytest.approx(2 * found.slope, rel=0.01)
    backwards = calibrate(made_pairs(200, -2.0), ["a"])
    assert isinstance(backwards, Calibration)
    assert backwards.slope == 0
    assert backwards.probability(5.0) == pytest.approx(backwards.rate, abs=0.02)


def test_calibration_gives_a_reason_where_it_cannot_be() -> None:
    assert "too few" in str(calibrate(made_pairs(10, 2.0), ["a"]))
    assert "too few" in str(calibrate(made_pairs(100, 2.0), ["a", "unknown"]))
    winners = [Pair(f"t{i % 9}", "r", False, {"a": 1.0}, 0.1) for i in range(50)]
    assert "nothing to tell apart" in str(calibrate(winners, ["a"]))
    assert fused({"a": 2.0}, ["a", "b"]) == 1.0


def test_pairs_are_kept_for_one_encoder(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    pairs = made_pairs(3, 1.0)
    save_pairs(path, pairs, "encoder")
    assert load_pairs(path, "encoder") == pairs
    assert load_pairs(path, "another") == []
    assert load_pairs(tmp_path / "none.json", "encoder") == []
    path.write_text('{"pairs": 3}')
    with pytest.raises(BadArtefact, match="calibrate again"):
        load_pairs(path, "encoder")
