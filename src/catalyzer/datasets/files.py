"""Benchmarks in files: BigANN and Deep1B in their published layouts, photosift in BigANN's, or files of your own."""

import json
import re
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from catalyzer.datasets.benchmark import Dataset, DatasetVectors
from catalyzer.errors import InvalidInput
from catalyzer.files.array_cache import ArrayCache
from catalyzer.files.formats import files_of
from catalyzer.files.paths import expanded
from catalyzer.files.vectors import VectorFile

UNFINISHED = "unfinished"  # folder in which src/prepare.py makes a dataset before it is moved into place


class Layout(NamedTuple):
    """Paths of a dataset's parts in its folder.

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


class Published(Dataset):
    """A dataset in a folder of files with fixed names.

    Args:
        root: the folder.
        base_size: number of base vectors, from the first; provided ground truth is for exactly this number.
        sizes: see `Dataset`.
    """

    metric = "l2"  # of the published neighbours
    source: ClassVar[str]
    """Where the files come from, for the message that says what is missing."""

    def __init__(self, root: str, base_size: int = 1_000_000, **sizes: int) -> None:
        super().__init__(base_size, **sizes)
        self.root = root

    @staticmethod
    @abstractmethod
    def layout(base_size: int) -> Layout:
        """Names of the files below the folder."""

    @property
    def dim(self) -> int | None:
        return _dim_of(expanded(self.root) / self.layout(1).learn)

    def files(self, learn_only: bool = False) -> list[Path]:
        every = sorted(path for path in expanded(self.root).rglob("*") if path.is_file())
        return [path for path in every if not learn_only or "learn" in path.name]

    def read(self, cache: ArrayCache) -> DatasetVectors:
        """Open the files.

        Raises:
            InvalidInput: a missing file (the message lists all that are expected), or one that `VectorFile` refuses.
        """
        assert self.base_size is not None
        root, layout = expanded(self.root), self.layout(self.base_size)
        needed = layout[:3]
        missing = [file for file in needed if not (root / file).is_file()]
        if missing:
            raise InvalidInput(
                f"{self.label}: {root} lacks {', '.join(missing)}; expected there: {', '.join(needed)} and optionally "
                f"{layout.groundtruth}, {self.source}; set dataset.root, or $CATALYZER_DATA to the folder that holds "
                f"{self.label}/"
            )
        truth = root / layout.groundtruth
        learn, base, queries = (VectorFile(root / file) for file in needed)
        return DatasetVectors(learn, base, queries, VectorFile(truth)[:] if truth.is_file() else None)


class BigANN(Published):
    """BigANN (SIFT1B): `bigann_{learn,base,query}.bvecs` and `gnd/idx_<n>M.ivecs`. See `Published` for the arguments."""

    label = "bigann"
    source = (
        "fetched by: python src/prepare.py dataset=bigann, or from http://corpus-texmex.irisa.fr (ANN_SIFT1B; gunzip the files)"
    )
    layout = staticmethod(bigann_layout)


class Made(Published):
    """A dataset that `src/prepare.py` makes of a user's files; `<label>.json` in its folder says of what. See `Published`."""

    @classmethod
    def record(cls, root: Path) -> Path:
        """The file that is written last: it says that the folder is complete, and from what it was made."""
        return root / f"{cls.label}.json"

    @classmethod
    def is_made(cls, root: Path, files: Iterable[str], origin: dict[str, Any]) -> bool:
        """Whether `root` already has the result.

        Args:
            root: the folder.
            files: all files that are made in it, except the record.
            origin: description of the sources.

        Raises:
            InvalidInput: the folder has other content.
        """
        record, wanted = cls.record(root), list(files)
        there = [file for file in wanted if (root / file).exists()]
        if not record.exists():
            if there and not (root / UNFINISHED).exists():
                raise InvalidInput(
                    f"{root} contains {there[0]}, which no earlier call has made; choose another folder with dataset.root=DIR"
                )
            return False
        try:
            made = json.loads(record.read_text())
            others = [key for key, value in origin.items() if made[key] != value]
        except (ValueError, KeyError, TypeError):
            raise InvalidInput(f"{record} is damaged; remove {root}, or choose another folder with dataset.root=DIR") from None
        if others:
            raise InvalidInput(
                f"{root} contains {cls.label} with other {', '.join(others)}; choose another folder with dataset.root=DIR, or "
                "remove it"
            )
        return len(there) == len(wanted)

    def read(self, cache: ArrayCache) -> DatasetVectors:
        """See `Published.read`; InvalidInput also if making the dataset was interrupted."""
        root = expanded(self.root)
        if (root / UNFINISHED).exists() and not self.record(root).exists():
            raise InvalidInput(f"{root} is incomplete; repeat the command that makes it to resume")
        return super().read(cache)


class Photosift(Made):
    """SIFT descriptors of photographs in BigANN's layout, made by `make_photosift`. See `Published` for the arguments."""

    label = "photosift"
    source = "made by: python src/prepare.py dataset=photosift images=<folder of photographs>"
    layout = staticmethod(bigann_layout)


class Deep1B(Published):
    """Deep1B: `learn.fvecs`, `base.fvecs`, `deep1B_queries.fvecs` and `deep<size>_groundtruth.ivecs`. See `Published`."""

    label = "deep1b"
    source = (
        "fetched by: python src/prepare.py dataset=deep1b, "
        "or from https://github.com/arbabenko/GNOIMI (Deep1B; concatenate the parts of base and learn)"
    )
    layout = staticmethod(deep1b_layout)


class Files(Dataset):
    """Vectors of your own, each file in any format of `catalyzer.files.vectors`.

    Args:
        learn: file of the training vectors.
        base: file of the vectors to encode and search.
        queries: file of the queries.
        groundtruth: file of the true neighbours' ids; None computes them.
        sizes: see `Dataset`.
    """

    label = "files"
    test_arguments = ("base", "queries", "groundtruth", "base_size")

    def __init__(self, learn: str, base: str, queries: str, groundtruth: str | None = None, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.learn, self.base, self.queries, self.groundtruth = learn, base, queries, groundtruth

    @property
    def dim(self) -> int | None:
        return _dim_of(expanded(self.learn))

    def files(self, learn_only: bool = False) -> list[Path]:
        return files_of(expanded(self.learn)) if learn_only else super().files()

    def read(self, cache: ArrayCache) -> DatasetVectors:
        """Open the files.

        Raises:
            InvalidInput: one that `VectorFile` refuses.
        """
        truth = None if self.groundtruth is None else VectorFile(self.groundtruth)[:]
        return DatasetVectors(VectorFile(self.learn), VectorFile(self.base), VectorFile(self.queries), truth)


def _dim_of(path: Path) -> int | None:
    """The dimension in the header of a vector file; `read` reports a missing file."""
    return VectorFile(path).shape[1] if files_of(path) else None


def _abbreviated(size: int) -> str:
    # 100000 -> 100k, 1000000 -> 1M, 1000000000 -> 1B: how Deep1B's files count.
    digits = str(size)
    zeros = len(digits) - len(re.sub("0+$", "", digits))
    thousands = min(zeros // 3, 3)
    return digits[: len(digits) - 3 * thousands] + ["", "k", "M", "B"][thousands]
