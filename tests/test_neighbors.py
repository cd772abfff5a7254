"""The engine against brute force; graphs without self; approximate ones close to exact."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catalyzer import InvalidInput
from catalyzer.files.vectors import VectorFile
from catalyzer.neighbors import _smallest, _torch_knn, graph_recall, knn, knn_graph
from tests.helpers import brute_force, clustered


@settings(deadline=None, max_examples=30)
@given(nq=st.integers(1, 20), n=st.integers(1, 200), dim=st.integers(1, 8), data=st.data())
def test_knn_is_brute_force_ties_included(nq: int, n: int, dim: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    random = np.random.default_rng(n)
    # Few distinct integers: many ties, and distances that float32 holds exactly.
    queries, base = (random.integers(0, 3, (m, dim)).astype(np.float32) for m in (nq, n))
    distances, ids = knn(queries, base, k)
    expected_distances, expected_ids = brute_force(queries, base, k)
    np.testing.assert_array_equal(distances, expected_distances)
    if k < 100:  # from 100 on, faiss selects with a reservoir, which may keep another of the ties at rank k
        np.testing.assert_array_equal(ids, expected_ids)


def test_knn_streams_a_file_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = clustered(3000, 16, 0)
    np.save(tmp_path / "base.npy", base)
    whole = knn(base[:50], base, 10)
    monkeypatch.setattr("catalyzer.files.vectors.float_blocks.__defaults__", (700,))
    blocks = knn(base[:50], VectorFile(tmp_path / "base.npy"), 10)
    np.testing.assert_array_equal(whole[1], blocks[1])
    np.testing.assert_array_equal(whole[1], brute_force(base[:50], base, 10)[1])


def test_the_torch_engine_agrees(random: np.random.Generator) -> None:
    queries, base = (random.normal(size=(n, 12)).astype(np.float32) for n in (40, 900))
    kept = base.copy()
    blocks = iter([base[:500], base[500:505], base[505:]])
    distances, ids = _torch_knn(queries, blocks, 20, "cpu")
    expected, expected_ids = brute_force(queries, base, 20)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(distances, expected, rtol=1e-4)
    np.testing.assert_array_equal(base, kept)


@pytest.mark.parametrize("n", [40, 640, 2_005])  # too few for groups, groups alone, groups and a rest
def test_the_smallest_of_groups_are_the_smallest_of_all(n: int, random: np.random.Generator) -> None:
    d = torch.from_numpy(np.sort(random.integers(0, 500, (30, n)), axis=1).astype(np.float32))  # neighbours in one place; ties
    values, columns = _smallest(d.flip(1), 10)
    torch.testing.assert_close(values.sort(1).values, d[:, :10], rtol=0, atol=0)
    torch.testing.assert_close(d.flip(1).gather(1, columns), values, rtol=0, atol=0)
    assert all(len(set(row.tolist())) == 10 for row in columns)


def test_the_torch_engine_among_ties_and_zero_distances() -> None:
    x = np.repeat(np.arange(700, dtype=np.float32)[:, None], 2, axis=0)
    distances, ids = _torch_knn(x, iter([x]), 2, "cpu")
    np.testing.assert_array_equal(ids, np.arange(1400).reshape(-1, 2).repeat(2, axis=0))
    np.testing.assert_array_equal(distances, 0)


@pytest.mark.parametrize("method", ["exact", "ivf"])
def test_no_row_is_its_own_neighbour_even_among_duplicates(method: str, random: np.random.Generator) -> None:
    x = np.repeat(random.normal(size=(50, 6)).astype(np.float32), 8, axis=0)
    graph = knn_graph(x, 7, method, nprobe=50)
    assert graph.shape == (400, 7)
    assert (graph >= 0).all()
    assert not (graph == np.arange(400)[:, None]).any()
    # The seven duplicates of each row are its nearest neighbours.
    np.testing.assert_array_equal(np.sort(graph // 8, axis=1), np.repeat(np.arange(400)[:, None] // 8, 7, 1))


def test_the_exact_graph_is_brute_force_without_self() -> None:
    x = np.random.default_rng(1).normal(size=(300, 5)).astype(np.float32)
    np.testing.assert_array_equal(knn_graph(x, 10, "exact"), brute_force(x, x, 11)[1][:, 1:])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("method", ["ivf", "hnsw"])
def test_the_approximate_graph_is_close_to_exact(method: str, dtype: type) -> None:
    x = clustered(5000, 24, 3).astype(dtype)
    exact, approximate = knn_graph(x, 10, "exact"), knn_graph(x, 10, method)
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, approximate, strict=True)])
    assert shared > 0.9
    assert graph_recall(x, approximate, sample=5000) == pytest.approx(shared, abs=0.01)  # which counts ties too
    assert graph_recall(x, exact) == 1


@pytest.mark.parametrize("method", ["exact", "ivf", "hnsw"])
def test_a_share_of_the_rows_is_that_of_the_whole_graph(method: str) -> None:
    x = clustered(3000, 16, 5)
    whole, share = knn_graph(x, 7, method), knn_graph(x, 7, method, rows=slice(1000, 2200))
    np.testing.assert_array_equal(share, whole[1000:2200])
    assert graph_recall(x, share, first=1000) > 0.9


def test_rows_with_too_few_in_the_lists_probed_are_searched_exactly() -> None:
    far = [[100.0, 0, 0, 0], [101, 0, 0, 0], [103, 0, 0, 0]]
    x = np.concatenate([np.random.default_rng(0).normal(size=(500, 4)), far]).astype(np.float32)
    graph = knn_graph(x, 20, "ivf", nprobe=1)  # the far list has three rows, and twenty are asked for
    np.testing.assert_array_equal(graph[-3:], brute_force(x[-3:], x, 21)[1][:, 1:])


@pytest.mark.parametrize("k", [0, 4, -1])
def test_k_out_of_range(k: int) -> None:
    x = np.eye(3, dtype=np.float32)
    with pytest.raises(InvalidInput, match=rf"got {k}"):
        knn(x, x, k)
    with pytest.raises(InvalidInput, match=rf"got {k}"):
        knn_graph(x, k)


def test_dimensions_must_agree() -> None:
    with pytest.raises(InvalidInput, match="dimension 3, base vectors 4"):
        knn(np.eye(3, dtype=np.float32), np.eye(4, dtype=np.float32), 1)


def test_an_unknown_method() -> None:
    with pytest.raises(InvalidInput, match="expected auto, exact, ivf or hnsw"):
        knn_graph(np.eye(3, dtype=np.float32), 1, "fast")
