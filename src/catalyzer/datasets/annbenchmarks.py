"""The HDF5 files of ann-benchmarks: vectors, queries, true neighbours and the metric in one file."""

from pathlib import Path
from typing import Any

import numpy as np

from catalyzer.datasets.benchmark import Dataset, DatasetVectors
from catalyzer.errors import InvalidInput
from catalyzer.files.array_cache import ArrayCache
from catalyzer.files.formats import files_of, open_rows
from catalyzer.files.paths import expanded
from catalyzer.files.vectors import VectorFile, Vectors, float_blocks

METRICS = ("euclidean", "angular")
CHECKED = 10  # queries whose nearest neighbour is compared with the distance in the file


class AnnBenchmarks(Dataset):
    """A file of https://github.com/erikbern/ann-benchmarks: `train`, `test`, `neighbors`, `distances`, attribute `distance`.

    `train` is the base, and what is learned from too, since these files have no other vectors. Where the metric is angular, all
    vectors are normalized and held in memory, and L2 then ranks as angles do.

    Args:
        path: of the HDF5 file.
        base_size: use the first this many vectors of `train` as base; with fewer than all, true neighbours are computed.
        sizes: see `Dataset`.
    """

    label = "annbenchmarks"
    test_arguments = ("path", "base_size")

    def __init__(self, path: str, base_size: int | None = None, **sizes: Any) -> None:
        super().__init__(base_size, **sizes)
        self.path = path

    @property
    def dim(self) -> int | None:
        return VectorFile(f"{expanded(self.path)}:train").shape[1] if files_of(expanded(self.path)) else None

    def read(self, cache: ArrayCache) -> DatasetVectors:
        """Open the file.

        Raises:
            InvalidInput: no such file, arrays that it lacks, another metric, or neighbours that are not at the distances that
                the file gives them.
        """
        path = expanded(self.path)
        if not path.is_file():
            there = "a folder" if path.is_dir() else "no such file"
            raise InvalidInput(f"{path}: expected an HDF5 file of ann-benchmarks, there is {there}")
        train, test = VectorFile(f"{path}:train"), VectorFile(f"{path}:test")
        if test.shape[1] != train.shape[1]:
            raise InvalidInput(f"{path}: train has dimension {train.shape[1]}, test {test.shape[1]}; they must agree")
        metric = _metric(path)
        base, queries = (_normalized(train), _normalized(test)) if metric == "angular" else (train, test)
        truth = None
        if self.base_size in (None, len(train)):
            neighbors, distances = (open_rows(Path(f"{path}:{name}")) for name in ("neighbors", "distances"))
            for name, rows, kinds in (("neighbors", neighbors, "iu"), ("distances", distances, "fiu")):
                if len(rows.shape) != 2 or len(rows) != len(queries) or not rows.shape[1] or rows.dtype.kind not in kinds:
                    raise InvalidInput(
                        f"{path}: expected {name} as numbers of shape ({len(queries):,}, k), a row for each of test; got "
                        f"{rows.shape} of {rows.dtype}"
                    )
            truth = neighbors.read(0, len(neighbors)).astype(np.int64)
            _check(path, metric, base, queries, truth, distances.read(0, min(CHECKED, len(distances))))
        return DatasetVectors(base, base, queries, truth)


def _metric(path: Path) -> str:
    import h5py

    with h5py.File(path, "r") as file:
        metric = np.ravel(file.attrs.get("distance", "euclidean"))[0]
    metric = metric.decode() if isinstance(metric, bytes) else str(metric)
    if metric not in METRICS:
        raise InvalidInput(f"{path}: its metric is {metric}; dataset=annbenchmarks reads {' and '.join(METRICS)}")
    return metric


def _normalized(file: VectorFile) -> np.ndarray:
    x = np.empty(file.shape, np.float32)
    first = 0
    for block in float_blocks(file, f"reading {file.path}"):
        lengths = np.linalg.norm(block.astype(np.float64), axis=1, keepdims=True)
        x[first : first + len(block)] = block / np.where(lengths == 0, 1, lengths)
        first += len(block)
    return x


def _check(path: Path, metric: str, base: Vectors, queries: Vectors, truth: np.ndarray, distances: np.ndarray) -> None:
    """Raise `InvalidInput` unless the first neighbours are where the file says, so that all is of one base and one metric."""
    for row, (ids, there) in enumerate(zip(truth, distances, strict=False)):
        if not 0 <= ids[0] < len(base):
            raise InvalidInput(f"{path}: neighbors names id {ids[0]:,}, and train has {len(base):,} vectors")
        squared = float(np.square(base[int(ids[0])].astype(np.float64) - queries[row]).sum())
        found = squared / 2 if metric == "angular" else squared**0.5
        if not np.isclose(found, there[0], rtol=1e-3, atol=1e-4):
            raise InvalidInput(
                f"{path}: query {row} is at distance {found:.6g} of its first neighbour, and the file says {there[0]:.6g}; "
                f"neighbors and train are of different files, or of another metric than {metric} (attribute distance)"
            )
