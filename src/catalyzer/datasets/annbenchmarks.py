"""The HDF5 files of ann-benchmarks: vectors, queries, true neighbours and the metric in one file."""

from pathlib import Path
from typing import Any

import numpy as np

from catalyzer.datasets.benchmark import Dataset, DatasetVectors
from catalyzer.errors import InvalidInput
from catalyzer.files.array_cache import ArrayCache
from catalyzer.files.formats import files_of, open_rows
from catalyzer.files.paths import expanded
from catalyzer.files.vectors import VectorFile
from catalyzer.metric import Metric, MetricName

METRICS: dict[str, MetricName] = {"euclidean": "l2", "angular": "cosine"}
CHECKED = 10  # queries whose nearest neighbour is compared with the distance in the file


class AnnBenchmarks(Dataset):
    """A file of https://github.com/erikbern/ann-benchmarks: `train`, `test`, `neighbors`, `distances`, attribute `distance`.

    `train` is both the base and the training set, since these files have no other vectors. The metric is the file's.

    Args:
        path: path of the HDF5 file.
        base_size: number of base vectors, from the first of `train`; with fewer than all, true neighbours are computed.
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

    @property
    def metric(self) -> MetricName | None:  # type: ignore[override]
        """The metric of the file; `read` reports a missing file."""
        return METRICS[_distance(expanded(self.path))] if expanded(self.path).is_file() else None

    def read(self, cache: ArrayCache) -> DatasetVectors:
        """Open the file.

        Raises:
            InvalidInput: a missing file or array, an unsupported metric, or neighbours whose distances differ from those in the
                file.
        """
        path = expanded(self.path)
        if not path.is_file():
            there = "a folder" if path.is_dir() else "no such file"
            raise InvalidInput(f"{path}: expected an HDF5 file of ann-benchmarks, there is {there}")
        train, test = VectorFile(f"{path}:train"), VectorFile(f"{path}:test")
        if test.shape[1] != train.shape[1]:
            raise InvalidInput(f"{path}: train has dimension {train.shape[1]}, test {test.shape[1]}; they must agree")
        truth = None
        if self.base_size in (None, len(train)):
            neighbors, distances = (open_rows(Path(f"{path}:{name}")) for name in ("neighbors", "distances"))
            for name, rows, kinds in (("neighbors", neighbors, "iu"), ("distances", distances, "fiu")):
                if len(rows.shape) != 2 or len(rows) != len(test) or not rows.shape[1] or rows.dtype.kind not in kinds:
                    raise InvalidInput(
                        f"{path}: expected {name} as numbers of shape ({len(test):,}, k), a row for each of test; got "
                        f"{rows.shape} of {rows.dtype}"
                    )
            truth = neighbors.read(0, len(neighbors)).astype(np.int64)
            _check(path, train, test, truth, distances.read(0, min(CHECKED, len(distances))))
        return DatasetVectors(train, train, test, truth)


def _distance(path: Path) -> str:
    import h5py

    with h5py.File(path, "r") as file:
        distance = np.ravel(file.attrs.get("distance", "euclidean"))[0]
    distance = distance.decode() if isinstance(distance, bytes) else str(distance)
    if distance not in METRICS:
        raise InvalidInput(f"{path}: its metric is {distance}; dataset=annbenchmarks reads {' and '.join(METRICS)}")
    return distance


def _check(path: Path, train: VectorFile, test: VectorFile, truth: np.ndarray, distances: np.ndarray) -> None:
    """Raise `InvalidInput` unless the first neighbours are where the file says, so that all is of one base and one metric."""
    distance = _distance(path)
    metric = Metric(METRICS[distance])
    base, queries = metric.stored(train, "train"), metric.searched(test, "test")
    for row, (ids, there) in enumerate(zip(truth, distances, strict=False)):
        if not 0 <= ids[0] < len(base):
            raise InvalidInput(f"{path}: neighbors contains id {ids[0]:,}, but train has only {len(base):,} vectors")
        squared = float(np.square(base[int(ids[0])].astype(np.float64) - queries[row]).sum())
        found = squared / 2 if distance == "angular" else squared**0.5
        if not np.isclose(found, there[0], rtol=1e-3, atol=1e-4):
            raise InvalidInput(
                f"{path}: query {row} is at distance {found:.6g} from its first neighbour, but the file says {there[0]:.6g}; "
                f"neighbors belongs to another train, or to another metric than {distance} (attribute distance)"
            )
