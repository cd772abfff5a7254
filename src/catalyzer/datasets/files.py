"""Benchmarks that lie in files: BigANN and Deep1B in their published layouts, or files of your own."""

import re
from pathlib import Path

import numpy as np

from catalyzer.cache import ArrayCache
from catalyzer.datasets.benchmark import Benchmark, make_benchmark
from catalyzer.errors import InvalidInput
from catalyzer.vectors import VectorFile


def load_bigann(root: str | Path, base_size: int, cache: ArrayCache, **sizes: int) -> Benchmark:
    """BigANN (SIFT1B): `bigann_{learn,base,query}.bvecs` and `gnd/idx_<n>M.ivecs` under `root`.

    Args:
        root: the folder.
        base_size: use the first this many base vectors.
        cache: for ground truth that is not shipped.
        sizes: `train_size`, `validation_base_size`, `validation_queries_size`.

    Raises:
        InvalidInput: a missing file (the message lists all that are expected), or one that `VectorFile` refuses.
    """
    millions = base_size // 1_000_000
    return _load(
        "bigann",
        Path(root),
        learn="bigann_learn.bvecs",
        base="bigann_base.bvecs",
        queries="bigann_query.bvecs",
        truth=f"gnd/idx_{millions}M.ivecs" if base_size == millions * 1_000_000 else None,
        base_size=base_size,
        source="http://corpus-texmex.irisa.fr (ANN_SIFT1B; gunzip the files)",
        cache=cache,
        sizes=sizes,
    )


def load_deep1b(root: str | Path, base_size: int, cache: ArrayCache, **sizes: int) -> Benchmark:
    """Deep1B: `learn.fvecs`, `base.fvecs`, `deep1B_queries.fvecs` and `deep<size>_groundtruth.ivecs` under `root`.

    See `load_bigann` for arguments and errors.
    """
    return _load(
        "deep1b",
        Path(root),
        learn="learn.fvecs",
        base="base.fvecs",
        queries="deep1B_queries.fvecs",
        truth=f"deep{_abbreviated(base_size)}_groundtruth.ivecs",
        base_size=base_size,
        source="https://github.com/arbabenko/GNOIMI (Deep1B; concatenate the parts of base and learn)",
        cache=cache,
        sizes=sizes,
    )


def load_files(
    learn: str | Path,
    base: str | Path,
    queries: str | Path,
    groundtruth: str | Path | None,
    base_size: int | None,
    cache: ArrayCache,
    **sizes: int,
) -> Benchmark:
    """Vectors of your own, each file in any format of `catalyzer.vectors`; ground truth is computed where none is given.

    See `load_bigann` for the other arguments and the errors.
    """
    truth = None if groundtruth is None else VectorFile(groundtruth)[:]
    return make_benchmark(
        "files", VectorFile(learn), VectorFile(base, base_size), VectorFile(queries), truth, cache=cache, **sizes
    )


def _load(
    name: str,
    root: Path,
    *,
    learn: str,
    base: str,
    queries: str,
    truth: str | None,
    base_size: int,
    source: str,
    cache: ArrayCache,
    sizes: dict[str, int],
) -> Benchmark:
    root = root.expanduser()
    missing = [file for file in (learn, base, queries) if not (root / file).is_file()]
    if missing:
        raise InvalidInput(
            f"{name}: {root} lacks {', '.join(missing)}; expected there: {learn}, {base}, {queries} and optionally "
            f"{truth or 'ground truth'}, from {source}; set dataset.root, or $CATALYZER_DATA to the folder that holds {name}/"
        )
    base_file = VectorFile(root / base, base_size)
    if len(base_file) < base_size:
        raise InvalidInput(
            f"{root / base}: dataset.base_size = {base_size:,} asks for more than its {len(base_file):,} vectors; "
            f"use dataset.base_size={len(base_file)} or less"
        )
    shipped: np.ndarray | None = None
    if truth is not None and (root / truth).is_file():
        shipped = VectorFile(root / truth)[:]
    return make_benchmark(name, VectorFile(root / learn), base_file, VectorFile(root / queries), shipped, cache=cache, **sizes)


def _abbreviated(size: int) -> str:
    # 100000 -> 100k, 1000000 -> 1M, 1000000000 -> 1B: how Deep1B's files count.
    digits = str(size)
    zeros = len(digits) - len(re.sub("0+$", "", digits))
    thousands = min(zeros // 3, 3)
    return digits[: len(digits) - 3 * thousands] + ["", "k", "M", "B"][thousands]
