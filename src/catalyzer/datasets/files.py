"""Benchmarks that lie in files: BigANN and Deep1B in their published layouts, photosift in BigANN's, or files of your own."""

import re
from pathlib import Path
from typing import NamedTuple

from catalyzer.files.array_cache import ArrayCache
from catalyzer.datasets.benchmark import Benchmark, make_benchmark
from catalyzer.errors import InvalidInput
from catalyzer.files.vectors import VectorFile

# Of a photosift folder.
MADE = "photosift.json"  # comes last: says that the folder is whole, and what it was made of
UNFINISHED = "unfinished"  # where all is made before it is moved into place


class Layout(NamedTuple):
    """Where the parts of a dataset lie below its folder.

    >>> bigann_layout(1_000_000).groundtruth
    'gnd/idx_1M.ivecs'
    """

    learn: str
    base: str
    queries: str
    groundtruth: str


def bigann_layout(base_size: int) -> Layout:
    """BigANN's files; those of the ground truth count the base in millions, ours of other sizes in vectors."""
    millions, rest = divmod(base_size, 1_000_000)
    truth = f"gnd/idx_{base_size if rest else f'{millions}M'}.ivecs"
    return Layout("bigann_learn.bvecs", "bigann_base.bvecs", "bigann_query.bvecs", truth)


def deep1b_layout(base_size: int) -> Layout:
    """Deep1B's files; those of the ground truth abbreviate the size of the base.

    >>> deep1b_layout(1_000_000).groundtruth
    'deep1M_groundtruth.ivecs'
    """
    return Layout("learn.fvecs", "base.fvecs", "deep1B_queries.fvecs", f"deep{_abbreviated(base_size)}_groundtruth.ivecs")


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
    source = (
        "fetched by: python src/prepare.py dataset=bigann, or from http://corpus-texmex.irisa.fr (ANN_SIFT1B; gunzip the files)"
    )
    return _load("bigann", Path(root), bigann_layout(base_size), base_size, source, cache, sizes)


def load_photosift(root: str | Path, base_size: int, cache: ArrayCache, **sizes: int) -> Benchmark:
    """SIFT descriptors of photographs, as `catalyzer.datasets.photosift` makes them, in BigANN's layout.

    See `load_bigann` for arguments and errors; InvalidInput also where the making was interrupted.
    """
    if (Path(root) / UNFINISHED).exists() and not (Path(root) / MADE).exists():
        raise InvalidInput(f"{root} is not finished; run the command that makes it once more, it goes on where it stopped")
    source = "made by: python src/prepare.py dataset=photosift images=<folder of photographs>"
    return _load("photosift", Path(root), bigann_layout(base_size), base_size, source, cache, sizes)


def load_deep1b(root: str | Path, base_size: int, cache: ArrayCache, **sizes: int) -> Benchmark:
    """Deep1B: `learn.fvecs`, `base.fvecs`, `deep1B_queries.fvecs` and `deep<size>_groundtruth.ivecs` under `root`.

    See `load_bigann` for arguments and errors.
    """
    source = (
        "fetched by: python src/prepare.py dataset=deep1b, "
        "or from https://github.com/arbabenko/GNOIMI (Deep1B; concatenate the parts of base and learn)"
    )
    return _load("deep1b", Path(root), deep1b_layout(base_size), base_size, source, cache, sizes)


def load_files(
    learn: str | Path,
    base: str | Path,
    queries: str | Path,
    groundtruth: str | Path | None,
    base_size: int | None,
    cache: ArrayCache,
    **sizes: int,
) -> Benchmark:
    """Vectors of your own, each file in any format of `catalyzer.files.vectors`; ground truth is computed where none is given.

    See `load_bigann` for the other arguments and the errors.
    """
    truth = None if groundtruth is None else VectorFile(groundtruth)[:]
    return make_benchmark(
        "files", VectorFile(learn), VectorFile(base, base_size), VectorFile(queries), truth, cache=cache, **sizes
    )


def _load(
    name: str, root: Path, layout: Layout, base_size: int, source: str, cache: ArrayCache, sizes: dict[str, int]
) -> Benchmark:
    root = root.expanduser()
    needed = layout[:3]
    missing = [file for file in needed if not (root / file).is_file()]
    if missing:
        raise InvalidInput(
            f"{name}: {root} lacks {', '.join(missing)}; expected there: {', '.join(needed)} and optionally "
            f"{layout.groundtruth}, {source}; set dataset.root, or $CATALYZER_DATA to the folder that holds {name}/"
        )
    base = VectorFile(root / layout.base, base_size)
    if len(base) < base_size:
        raise InvalidInput(
            f"{base.path}: dataset.base_size = {base_size:,} asks for more than its {len(base):,} vectors; "
            f"use dataset.base_size={len(base)} or less"
        )
    truth = root / layout.groundtruth
    shipped = VectorFile(truth)[:] if truth.is_file() else None
    learn, queries = VectorFile(root / layout.learn), VectorFile(root / layout.queries)
    return make_benchmark(name, learn, base, queries, shipped, cache=cache, **sizes)


def _abbreviated(size: int) -> str:
    # 100000 -> 100k, 1000000 -> 1M, 1000000000 -> 1B: how Deep1B's files count.
    digits = str(size)
    zeros = len(digits) - len(re.sub("0+$", "", digits))
    thousands = min(zeros // 3, 3)
    return digits[: len(digits) - 3 * thousands] + ["", "k", "M", "B"][thousands]
