"""Benchmarks from files in the published layouts, their splits and their ground truth."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faiss.contrib import vecs_io
from hypothesis import given
from hypothesis import strategies as st

from catalyzer import InvalidInput
from catalyzer.datasets import Benchmark, BigANN, Dataset, DatasetVectors, Deep1B, Demo, Files
from catalyzer.datasets.benchmark import split_sizes
from catalyzer.datasets.files import _abbreviated
from catalyzer.files.array_cache import ArrayCache
from tests.helpers import brute_force, clustered, write

SIZES = {"train_size": 1000, "validation_base_size": 400, "validation_queries_size": 50}


@pytest.fixture
def cache(tmp_path: Path) -> ArrayCache:
    return ArrayCache(tmp_path / "cache")


@pytest.fixture
def bigann(tmp_path: Path) -> Path:
    for seed, (name, n) in enumerate((("learn", 1450), ("base", 600), ("query", 40))):
        write(tmp_path / f"bigann_{name}.bvecs", clustered(n, 16, seed))
    return tmp_path


def test_splits_do_not_overlap_and_validation_is_cut_from_learn(bigann: Path, cache: ArrayCache) -> None:
    benchmark = BigANN(str(bigann), base_size=500, **SIZES).load(cache)
    learn = clustered(1450, 16, 0)
    np.testing.assert_array_equal(benchmark.train, learn[:1000])
    np.testing.assert_array_equal(benchmark.validation.queries, learn[1000:1050])
    np.testing.assert_array_equal(benchmark.validation.base, learn[1050:1450])
    np.testing.assert_array_equal(benchmark.test.base[:], clustered(600, 16, 1)[:500])
    assert benchmark.train.dtype == np.uint8


def test_ground_truth_is_computed_exactly_and_once(bigann: Path, cache: ArrayCache) -> None:
    for _ in range(2):
        benchmark = BigANN(str(bigann), base_size=500, **SIZES).load(cache)
        expected = brute_force(clustered(40, 16, 2), clustered(600, 16, 1)[:500], 100)[1]
        np.testing.assert_array_equal(benchmark.test.ground_truth[:, 0], expected[:, 0])
        assert benchmark.test.ground_truth.shape == (40, 100)
        assert len(list(cache.folder.iterdir())) == 1
    other = BigANN(str(bigann), base_size=400, **SIZES).load(cache)
    assert other.test.ground_truth.max() < 400


def test_shipped_ground_truth_is_used(tmp_path: Path, cache: ArrayCache) -> None:
    for seed, (name, n) in enumerate((("learn", 1450), ("base", 1000), ("deep1B_queries", 40))):
        write(tmp_path / f"{name}.fvecs", clustered(n, 16, seed).astype(np.float32))
    shipped = np.random.default_rng(0).integers(0, 1000, (40, 10)).astype(np.int32)
    vecs_io.ivecs_write(str(tmp_path / "deep1k_groundtruth.ivecs"), shipped)
    benchmark = Deep1B(str(tmp_path), base_size=1000, **SIZES).load(cache)
    np.testing.assert_array_equal(benchmark.test.ground_truth, shipped)
    assert not cache.folder.exists()


@pytest.mark.parametrize(
    ("size", "text"), [(100_000, "100k"), (1_000_000, "1M"), (10_000_000, "10M"), (10**9, "1B"), (1500, "1500"), (1234, "1234")]
)
def test_sizes_are_abbreviated_as_in_deep1b(size: int, text: str) -> None:
    assert _abbreviated(size) == text


def test_missing_files_are_listed_with_where_to_get_them(bigann: Path, cache: ArrayCache) -> None:
    (bigann / "bigann_base.bvecs").unlink()
    with pytest.raises(InvalidInput) as caught:
        BigANN(str(bigann), base_size=1_000_000, **SIZES).load(cache)
    for word in ("lacks bigann_base.bvecs;", "bigann_learn.bvecs", "gnd/idx_1M.ivecs", "corpus-texmex", "CATALYZER_DATA"):
        assert word in str(caught.value)


def test_a_base_smaller_than_asked_for(bigann: Path, cache: ArrayCache) -> None:
    with pytest.raises(InvalidInput, match=r"bigann_base\.bvecs: dataset\.base_size = 601 is more than its 600 base vectors"):
        BigANN(str(bigann), base_size=601, **SIZES).load(cache)


def files(tmp_path: Path, cache: ArrayCache, **replaced: np.ndarray) -> Benchmark:
    parts = {"learn": clustered(1450, 16, 0), "base": clustered(600, 16, 1), "queries": clustered(40, 16, 2), **replaced}
    paths = {name: str(write(tmp_path / f"{name}.npy", x)) for name, x in parts.items()}
    return Files(**paths, **SIZES).load(cache)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"base": np.ones((600, 17), np.float32)}, "learn vectors have dimension 16, base vectors 17"),
        ({"queries": np.ones((40, 15), np.float32)}, "learn vectors have dimension 16, queries vectors 15"),
        ({"learn": np.ones((400, 16), np.float32)}, "the learn set has 400 vectors; at least 500"),
        ({"base": np.full((600, 16), np.nan, np.float32)}, r"base.npy: row 0 contains NaN"),
        ({"groundtruth": np.zeros((39, 5), np.int64)}, "ground truth has 39 rows, the queries 40"),
        ({"groundtruth": np.full((40, 5), 600)}, "ids from 600 to 600, but the base has 600 vectors"),
        ({"groundtruth": np.zeros((40, 5), np.float32)}, "must hold integers"),
    ],
)
def test_parts_that_do_not_fit_together(
    tmp_path: Path, cache: ArrayCache, replaced: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        files(tmp_path, cache, **replaced)


@given(st.integers(500, 10**7), st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 10**5))
def test_every_learn_set_can_be_split(available: int, train: int, base: int, queries: int) -> None:
    sizes = split_sizes("x", available, train, base, queries)
    assert all(0 < size <= wanted for size, wanted in zip(sizes, (train, base, queries), strict=True))
    assert sum(sizes) <= available
    if max(train, base) <= available // 4 and queries <= available // 10:  # then there is room for all
        assert sizes == (train, base, queries)


def test_a_split_that_shrinks_says_so(tmp_path: Path, cache: ArrayCache, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="catalyzer"):
        files(tmp_path, cache, learn=clustered(1200, 16, 0))
    assert "the learn set has 1,200 vectors, fewer than the settings' 1,000 + 400 + 50" in caplog.text
    assert "960 training vectors of 16 dimensions; validation 192 base, 48 queries" in caplog.text


def test_a_size_below_one() -> None:
    with pytest.raises(InvalidInput, match=r"dataset\.train_size must be at least 1, got 0"):
        Demo(train_size=0)


def test_the_files_that_are_learned_from_and_those_that_are_tested_on(bigann: Path) -> None:
    names = {path.name for path in BigANN(str(bigann)).files()}
    assert names == {"bigann_learn.bvecs", "bigann_base.bvecs", "bigann_query.bvecs"}
    assert [path.name for path in BigANN(str(bigann)).files(learn_only=True)] == ["bigann_learn.bvecs"]
    own = Files(*(str(bigann / f"bigann_{part}.bvecs") for part in ("learn", "base", "query")))
    assert {path.name for path in own.files()} == names
    assert [path.name for path in own.files(learn_only=True)] == ["bigann_learn.bvecs"]


def test_the_embedded_dataset_has_true_matches(environment: dict[str, str]) -> None:
    cache = ArrayCache(environment["CATALYZER_CACHE"])
    benchmark = Demo(train_size=60_000, validation_base_size=14_000, validation_queries_size=2_000).load(cache)
    assert len(benchmark.train) >= 40_000
    assert len(benchmark.test.base) >= 20_000
    assert len(benchmark.test.queries) >= 1_000
    assert benchmark.train.dtype == np.uint8
    assert benchmark.train.shape[1] == 128
    # Many queries have their match in the other image of the stereo pair: far nearer than the tenth neighbour.
    nearest = benchmark.test.ground_truth
    base, queries = benchmark.test.base[:].astype(float), benchmark.test.queries.astype(float)
    first, tenth = (np.linalg.norm(queries - base[nearest[:, i]], axis=1) for i in (0, 9))
    assert (first / tenth < 0.6).mean() > 0.3


class Own(Dataset):
    """A dataset of somebody's, which reads what it is given."""

    def __init__(self, vectors: Any) -> None:
        super().__init__(train_size=400, validation_base_size=100, validation_queries_size=20)
        self.vectors = vectors

    def read(self, cache: ArrayCache) -> DatasetVectors:
        return self.vectors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.tolist(), "expected learn vectors as an array (n, d) of numbers, got list"),
        (lambda x: x[0], "got (8,) float32"),
        (lambda x: x.astype(str), "got (600, 8) <U"),
    ],
)
def test_what_a_dataset_reads_is_looked_at(change: Callable[[np.ndarray], Any], words: str) -> None:
    x = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    with pytest.raises(InvalidInput, match=re.escape(words)):
        Own((change(x), x, x[:20])).load(ArrayCache())
    for same in (x.astype(">f4"), np.asfortranarray(x), x[::-1][::-1]):
        benchmark = Own((same, same, same[:20])).load(ArrayCache())
        np.testing.assert_array_equal(benchmark.train, x[:400])
        assert torch.from_numpy(benchmark.train).is_contiguous()
