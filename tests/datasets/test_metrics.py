"""True neighbours by cosine and by inner product, of vectors of any length, in memory and in files."""

import tracemalloc
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from catalyzer import InvalidInput
from catalyzer.datasets import AnnBenchmarks, Benchmark, BigANN, Dataset, DatasetVectors, Files
from catalyzer.files.array_cache import ArrayCache
from catalyzer.files.vectors import BLOCK
from catalyzer.metric import Metric, MetricName, norms
from tests.datasets.test_annbenchmarks import ann_file
from tests.helpers import write

SIZES = {"train_size": 500, "validation_base_size": 200, "validation_queries_size": 30}
SIMILARITIES = ("cosine", "ip")


def vectors(n: int, seed: int, d: int = 12) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=(n, d)) * random.uniform(0.2, 3, (n, 1)) + 0.3).astype(np.float32)


LEARN, BASE, QUERIES = vectors(800, 0), vectors(600, 1), vectors(40, 2)


class InMemory(Dataset):
    def read(self, cache: ArrayCache) -> DatasetVectors:
        return DatasetVectors(LEARN, BASE, QUERIES)


def best(queries: np.ndarray, base: np.ndarray, name: str, k: int = 100) -> np.ndarray:
    """The k best rows of the base for each query, by brute force in double precision."""
    q, x = queries.astype(np.float64), base.astype(np.float64)
    products = q @ x.T
    return np.argsort(-(products / np.linalg.norm(x, axis=1) if name == "cosine" else products), axis=1, kind="stable")[:, :k]


def files(folder: Path, **parts: np.ndarray) -> Files:
    given = {"learn": LEARN, "base": BASE, "queries": QUERIES} | parts
    return Files(**{name: str(write(folder / f"{name}.npy", x)) for name, x in given.items()}, **SIZES)


@pytest.mark.parametrize("in_files", [False, True])
@pytest.mark.parametrize("name", SIMILARITIES)
def test_ground_truth_is_what_brute_force_finds(name: MetricName, in_files: bool, tmp_path: Path) -> None:
    dataset = files(tmp_path) if in_files else InMemory(**SIZES)
    benchmark = dataset.load(ArrayCache(), Metric(name))
    np.testing.assert_array_equal(benchmark.test.ground_truth, best(QUERIES, BASE, name))
    held_out = LEARN[500:530], LEARN[530:730]
    assert len(benchmark.train) == 500
    np.testing.assert_array_equal(benchmark.validation.ground_truth, best(*held_out, name))
    if name == "ip":
        assert benchmark.metric.max_norm == max(norms(LEARN[:730]).max(), norms(BASE).max())
    assert (benchmark.dim, benchmark.train.shape[1]) == (12 + benchmark.metric.extra,) * 2


def test_integers_are_compared_too(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    learn, base, queries = (random.integers(0, 256, (n, 12)).astype(np.uint8) for n in (800, 600, 40))
    for name in SIMILARITIES:
        loaded = files(tmp_path, learn=learn, base=base, queries=queries).load(ArrayCache(), Metric(name))
        scores = queries.astype(np.float64) @ base.T / (np.linalg.norm(base, axis=1) if name == "cosine" else 1)
        found = np.take_along_axis(scores, loaded.test.ground_truth, 1)
        np.testing.assert_allclose(found, -np.sort(-scores, axis=1)[:, :100], rtol=1e-6)  # products of integers tie


def test_a_cache_keeps_each_metric_apart(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path / "cache")
    found = {}
    for _ in range(2):
        for name in get_args(MetricName):
            found[name] = InMemory(**SIZES).load(cache, Metric(name)).test.ground_truth
    assert len(list((tmp_path / "cache").iterdir())) == 3
    for name in SIMILARITIES:
        np.testing.assert_array_equal(found[name], best(QUERIES, BASE, name))


def test_ground_truth_that_is_given_is_believed(tmp_path: Path) -> None:
    given = np.arange(40)[:, None].repeat(3, axis=1)
    loaded = files(tmp_path, groundtruth=given).load(ArrayCache(), Metric("cosine"))
    np.testing.assert_array_equal(loaded.test.ground_truth, given)


def test_a_base_in_a_file_is_not_held(tmp_path: Path) -> None:
    def peak(name: MetricName, blocks: int) -> int:
        dataset = files(tmp_path, base=np.tile(BASE, (blocks * BLOCK // len(BASE) + 1, 1)))
        tracemalloc.start()
        benchmark = dataset.load(ArrayCache(), Metric(name))
        assert len(benchmark.test.ground_truth) == 40
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    for name in SIMILARITIES:
        peak(name, 1)  # what is loaded once
        assert peak(name, 8) < 1.2 * peak(name, 2)


def test_a_dataset_that_knows_its_metric(tmp_path: Path) -> None:
    angular = AnnBenchmarks(str(ann_file(tmp_path / "angular.hdf5", "angular")))
    assert (angular.metric, angular.load(ArrayCache()).metric) == ("cosine", Metric("cosine"))
    assert angular.load(ArrayCache(), Metric("cosine")).metric.name == "cosine"
    assert AnnBenchmarks(str(tmp_path / "none.hdf5")).metric is None
    for name in ("l2", "ip"):
        message = f"metric={name} contradicts annbenchmarks, which comes with true neighbours for cosine; leave out metric="
        with pytest.raises(InvalidInput, match=message):
            angular.load(ArrayCache(), Metric(name))
    with pytest.raises(InvalidInput, match="metric=cosine contradicts bigann, which comes with true neighbours for l2"):
        BigANN(str(tmp_path)).load(ArrayCache(), Metric("cosine"))


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    def load(metric: Metric, **parts: np.ndarray) -> Benchmark:
        return files(tmp_path, **parts).load(ArrayCache(), metric)

    for part, x, row in (("learn", LEARN, 510), ("base", BASE, 599), ("queries", QUERIES, 7)):
        zeros = x.copy()
        zeros[row] = 0
        message = f"{part}.npy: row {row} contains only zeros, so it has no direction to compare by cosine; remove such rows"
        with pytest.raises(InvalidInput, match=message):
            load(Metric("cosine"), **{part: zeros})
        load(Metric("l2"), **{part: zeros})
        load(Metric("ip"), **{part: zeros})
    longest = BASE.copy()
    longest[300] *= 100 / np.linalg.norm(longest[300])
    with pytest.raises(
        InvalidInput, match=r"base.npy: row 300 has the norm 100, above the run's limit for inner products, 50; train with such"
    ):
        load(Metric("ip", 50.0), base=longest)
    load(Metric("ip", 50.0), queries=longest)
    with pytest.raises(InvalidInput, match="max_norm must be a number above 0"):
        load(Metric("ip"), **{part: np.zeros_like(x) for part, x in (("learn", LEARN), ("base", BASE))})
