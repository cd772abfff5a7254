"""A finished run: its networks, ready to code and to search, and the table of what they find beside the baselines.

Nothing here trains, so what only uses a run does not wait for Lightning.
"""

import importlib.metadata
import json
import logging
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

import catalyzer
from catalyzer.codec import Codec
from catalyzer.datasets import Benchmark, load_bigann, load_deep1b, load_demo, load_files, load_photosift
from catalyzer.errors import InvalidInput
from catalyzer.evaluation import Result, measure
from catalyzer.files.array_cache import ArrayCache
from catalyzer.files.atomic import write_atomically
from catalyzer.files.vectors import Vectors
from catalyzer.neighbors import engine
from catalyzer.nn import Decoder, Identity, load_module
from catalyzer.quantizers import ProductQuantizer
from catalyzer.runs.figures import draw_recall
from catalyzer.runs.results import print_table
from catalyzer.runs.settings import Evaluation, Settings

log = logging.getLogger(__name__)

LABELS = {
    "mlp": "catalyzer", "pca": "PCA",
    "lattice": "lattice", "sign": "sign", "pq": "PQ", "opq": "OPQ", "rq": "RQ", "lsq": "LSQ",
    "lsh": "LSH", "itq": "ITQ", "rabitq": "RaBitQ",
}  # fmt: skip


@dataclass
class TrainedRun:
    """A finished run, ready to code vectors and to search them.

    Attributes:
        folder: of the run.
        settings: what it was made with.
        transform: the fitted map, in evaluation mode on the CPU.
        decoder: the way back, likewise, or None.
        query: the queries' own network, likewise, or None.
        seconds: that its training took.

    A run's folder is all that is needed:

        run = TrainedRun.load("outputs/my-run")
        codes = run.encode(base)                     # (n, code_size) uint8
        D, I = run.search(queries, codes, k=10)      # squared distances, row numbers
    """

    folder: Path
    settings: Settings
    transform: nn.Module
    decoder: Decoder | None
    query: nn.Module | None
    seconds: float

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a run's folder; nothing in it is unpickled.

        Raises:
            InvalidInput: not a run folder, a run that has not ended, or damaged files.
        """
        folder = Path(folder)
        settings = Settings.load(folder / "config.yaml")
        transform, seconds = load_module(folder, "catalyzer")
        decoder = load_module(folder, "decoder")[0] if settings.decoder.name == "mlp" else None
        query = load_module(folder, "query")[0] if settings.query.name == "mlp" else None
        return cls(folder, settings, transform, decoder, query, seconds)  # type: ignore[arg-type]

    def codec(self, settings: Settings) -> Codec:
        """The run's networks with the quantizer of `settings`, not fitted yet.

        Raises:
            InvalidInput: a quantizer that cannot code the transform's dimension.
        """
        quantizer = settings.quantizer.build(self.transform.d_out)  # type: ignore[arg-type]
        share = settings.decoder.latent_share if settings.decoder.name == "mlp" else 0.0
        query = self.query if settings.quantizer == self.settings.quantizer else None  # it knows these points and no others
        return Codec(self.transform, quantizer, self.decoder, settings.refine, share, query)

    @cached_property
    def own_codec(self) -> Codec:
        """The run's networks and its quantizer, if it is fixed (lattice, sign): one that is learned is not kept in the folder.

        Raises:
            InvalidInput: the quantizer is a learned one.
        """
        if self.settings.quantizer.name not in ("lattice", "sign"):
            raise InvalidInput(
                f"{self.folder}: the codebooks of {self.settings.quantizer.name} are not kept with a run; "
                "train with quantizer=lattice or quantizer=sign, which have none"
            )
        return self.codec(self.settings)

    def encode(self, x: Vectors) -> np.ndarray:
        """Map and code `(n, d_in)` vectors: `(n, code_size)` uint8."""
        return self.own_codec.encode(x)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The vectors, `(n, d_in)` float32 in the original space, that codes stand for; see `Codec.decode`."""
        return self.own_codec.decode(codes)

    def search(self, queries: Vectors, codes: np.ndarray, k: int, rerank: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k codes nearest to each `(nq, d_in)` query: `(nq, k)` squared distances and int64 row numbers.

        `rerank` is by default the run's own; see `Codec.search`.
        """
        return self.own_codec.search(queries, codes, k, self.settings.rerank if rerank is None else rerank)


def evaluate_run(evaluation: Evaluation) -> list[Result]:
    """Another quantizer, rerank or refine on a run's networks, without training them again; prints and returns the table.

    Writes results.json and the figure into `evaluations/<quantizer>-<bits>bits` in the run's folder, with rerank and refine
    in the name where they are given.

    Raises:
        InvalidInput: not a finished run, or a quantizer, rerank or refine that does not go with its networks.
    """
    folder, quantizer = Path(evaluation.run), evaluation.quantizer
    trained = TrainedRun.load(folder)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    given = {key: n for key in ("rerank", "refine") if (n := getattr(evaluation, key)) is not None}
    settings = trained.settings.model_copy(update={"quantizer": quantizer, **given})
    built = trained.codec(settings).quantizer
    benchmark = load_benchmark(settings)
    baselines = build_baselines(settings, benchmark.dim, built.code_size * 8)
    rows = compare(settings, benchmark, trained, baselines)
    name = "-".join([quantizer.name, f"{built.bits}bits", *(f"{key}{n}" for key, n in given.items())])
    target = folder / "evaluations" / name
    title = save_results(rows, settings, benchmark, target, started)
    print_table(rows, title)
    log.info("results and figure: %s", target)
    return rows


def load_benchmark(settings: Settings) -> Benchmark:
    """The dataset that the settings name, checked."""
    load: dict[str, Callable[..., Benchmark]] = {
        "demo": load_demo,
        "bigann": load_bigann,
        "deep1b": load_deep1b,
        "photosift": load_photosift,
        "files": load_files,
    }
    options = settings.dataset.model_dump(exclude={"name"})
    return load[settings.dataset.name](cache=ArrayCache(settings.cache), **options)


def build_baselines(settings: Settings, d_in: int, bits: int) -> dict[str, ProductQuantizer]:
    """The baselines that the settings name, at the size of the chosen quantizer's codes, without what is chosen itself."""
    chosen = settings.quantizer.name if settings.catalyzer.name == "identity" else None
    try:
        return {n: ProductQuantizer(d_in, bits, rotate=n == "opq") for n in settings.baselines if n != chosen}
    except InvalidInput as error:
        raise InvalidInput(f"the baselines cannot be built: {error}; baselines=[] leaves them out") from None


def compare(
    settings: Settings, benchmark: Benchmark, trained: "TrainedRun", baselines: dict[str, ProductQuantizer]
) -> list[Result]:
    """Rows for the settings' quantizer on the trained transform, and for the baselines on the raw vectors."""
    codec = trained.codec(settings)
    name = method_name(settings.catalyzer.name, settings.quantizer.name)
    rows = measure_method(name, benchmark, codec, sorted({0, settings.rerank}))
    for row in rows:
        row.training += trained.seconds
    for name, baseline in baselines.items():
        rows += measure_method(LABELS[name], benchmark, Codec(Identity(benchmark.dim), baseline))
    return rows


def measure_method(method: str, benchmark: Benchmark, codec: Codec, reranks: Sequence[int] = (0,)) -> list[Result]:
    """Fit the quantizer to the transformed training vectors, and measure the codec on the test split."""
    test = benchmark.test
    truth = test.ground_truth  # before the clocks start
    log.info("%s: coding %s vectors, searching %s queries", method, f"{len(test.base):,}", f"{len(test.queries):,}")
    start = time.perf_counter()
    codec.fit(benchmark.train)
    fitting = time.perf_counter() - start
    rows = measure(method, codec, test.base, test.queries, truth, reranks)
    for row in rows:
        row.training = fitting
    return rows


def method_name(transform: str, quantizer: str) -> str:
    """What a composition is called in tables and figures.

    >>> method_name("mlp", "lattice"), method_name("identity", "opq")
    ('catalyzer + lattice', 'OPQ')
    """
    return " + ".join(LABELS[name] for name in (transform, quantizer) if name != "identity")


def save_results(rows: list[Result], settings: Settings, benchmark: Benchmark, folder: Path, started: str) -> str:
    """Write the figure and, last since it says that the run has ended, results.json; returns the table's title."""
    test = benchmark.test
    title = f"{benchmark.name}: {len(test.base):,} base vectors, {len(test.queries):,} queries"
    draw_recall(rows, title, folder / "figures" / "recall.png")
    results = {
        "title": title,
        "rows": [asdict(row) for row in rows],
        "seed": settings.seed,
        "settings": settings.model_dump(mode="json", by_alias=True),
        "fingerprints": {"base": test.key[0], "queries": test.key[1]},
        "started": started,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(),
    }
    write_atomically(folder / "results.json", lambda file: file.write(json.dumps(results, indent=1).encode()))
    return title


def environment() -> dict[str, Any]:
    """What the numbers depend on beside settings and data: versions, threads, git commit."""
    packages = ("torch", "pytorch-lightning", "numpy", "numba", "hydra-core")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions |= {"catalyzer": catalyzer.__version__, "python": platform.python_version()}
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "versions": versions,
        "git_commit": git.stdout.strip() or None,
        "threads": torch.get_num_threads(),
        "neighbours": engine(),
    }


def read_results(folder: Path) -> tuple[list[Result], str]:
    """The rows and the title that `save_results` wrote.

    Raises:
        InvalidInput: the file is missing or is not such a file.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise InvalidInput(f"{folder} holds no finished run: it has no results.json; go on with it by resume={folder}")
    try:
        content = json.loads(path.read_text())
        return [Result.load(row) for row in content["rows"]], content["title"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidInput(f"{path} is damaged; remove it and go on with the run by resume={folder}") from None
