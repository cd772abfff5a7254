"""Files as ann-benchmarks writes them, read and trained on."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from catalyzer import InvalidInput
from catalyzer.datasets import AnnBenchmarks
from catalyzer.files.array_cache import ArrayCache
from tests.helpers import brute_force, clustered


def ann_file(path: Path, metric: str = "euclidean", n: int = 1200, d: int = 16) -> Path:
    x, q = (clustered(size, d, seed).astype(np.float32) * 3 for size, seed in ((n, 1), (40, 2)))
    shown = [v / np.linalg.norm(v, axis=1, keepdims=True) if metric == "angular" else v for v in (x, q)]
    squared, ids = brute_force(shown[1], shown[0], 100)
    with h5py.File(path, "w") as file:
        file["train"], file["test"], file["neighbors"] = x, q, ids.astype(np.int32)
        file["distances"] = (squared / 2 if metric == "angular" else np.sqrt(squared)).astype(np.float32)
        file.attrs["distance"] = metric
        file.attrs["type"] = "dense"
    return path


@pytest.mark.parametrize("metric", ["euclidean", "angular"])
def test_all_is_taken_from_the_file(tmp_path: Path, metric: str) -> None:
    dataset = AnnBenchmarks(str(ann_file(tmp_path / "x.hdf5", metric)))
    assert dataset.dim == 16
    assert [file.name for file in dataset.files()] == ["x.hdf5"]
    benchmark = dataset.load(ArrayCache())
    assert len(benchmark.test.base) == 1200
    expected = brute_force(benchmark.test.queries, benchmark.test.base[:], 100)[1]
    np.testing.assert_array_equal(benchmark.test.ground_truth, expected)
    if metric == "angular":
        np.testing.assert_allclose(np.linalg.norm(benchmark.train, axis=1), 1, rtol=1e-6)


def test_neighbours_in_a_part_of_the_base_are_computed(tmp_path: Path) -> None:
    benchmark = AnnBenchmarks(str(ann_file(tmp_path / "x.hdf5")), base_size=500).load(ArrayCache())
    np.testing.assert_array_equal(
        benchmark.test.ground_truth, brute_force(benchmark.test.queries, benchmark.test.base[:], 100)[1]
    )


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"x.hdf5: expected an HDF5 file of ann-benchmarks, there is no such file"):
        AnnBenchmarks(str(tmp_path / "x.hdf5")).load(ArrayCache())
    path = ann_file(tmp_path / "x.hdf5")
    with h5py.File(path, "a") as file:
        file["train"][:] = np.roll(file["train"][:], 1, axis=0)
    with pytest.raises(InvalidInput, match="neighbors belongs to another train"):
        AnnBenchmarks(str(path)).load(ArrayCache())
    with h5py.File(path, "a") as file:
        file.attrs["distance"] = "hamming"
    with pytest.raises(InvalidInput, match="its metric is hamming; dataset=annbenchmarks reads euclidean and angular"):
        AnnBenchmarks(str(path)).load(ArrayCache())
    for name, value, message in (
        ("distances", np.ones(40), r"expected distances as numbers of shape \(40, k\), a row for each of test; got \(40,\)"),
        ("neighbors", np.zeros((39, 100), int), r"expected neighbors as numbers of shape \(40, k\), .* got \(39, 100\)"),
        ("test", np.ones((40, 15)), "train has dimension 16, test 15; they must agree"),
    ):
        with h5py.File(path, "a") as file:
            file.attrs["distance"] = np.array([b"euclidean"])
            del file[name]
            file[name] = value
        with pytest.raises(InvalidInput, match=message):
            AnnBenchmarks(str(path)).load(ArrayCache())
    with h5py.File(path, "a") as file:
        del file["test"]
    with pytest.raises(InvalidInput, match=r"x.hdf5:test: there is no 'test'"):
        AnnBenchmarks(str(path)).load(ArrayCache())
