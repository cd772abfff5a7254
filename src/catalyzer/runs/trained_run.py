"""A finished run: its parts, ready to encode and search, and the table that compares them with the baselines.

Nothing here trains, so code that only uses a run does not wait for Lightning's import.
"""

import importlib.metadata
import json
import logging
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

import catalyzer
from catalyzer.codec import Codec, check_vectors
from catalyzer.datasets import Benchmark
from catalyzer.errors import DamagedFile, InvalidInput
from catalyzer.evaluation import Result, measure
from catalyzer.files.atomic import write_atomically
from catalyzer.files.vectors import VectorFile, Vectors, as_float32
from catalyzer.metric import L2, Metric
from catalyzer.neighbors import engine
from catalyzer.nn import Identity, Linear, Transform, load_part
from catalyzer.parts import Trust, describe
from catalyzer.quantizers import MAX_TRAINING, LatticeQuantizer, Quantizer
from catalyzer.runs.build import build_baselines, build_quantizer, check_trust, class_of, load_dataset
from catalyzer.runs.checks import rehearse
from catalyzer.runs.figures import draw_recall
from catalyzer.runs.results import print_table
from catalyzer.runs.settings import Evaluation, Settings

log = logging.getLogger(__name__)

METRIC = "metric.json"


@dataclass(frozen=True)
class TrainedRun:
    """A finished run, ready to encode and search vectors.

    Attributes:
        folder: folder of the run.
        settings: settings of the run.
        codec: fitted parts in evaluation mode on the CPU, for vectors transformed by the metric.
        seconds: duration of the networks' training.
        fitting: seconds of the quantizer's fit.
        metric: metric of the vectors, with the `max_norm` of the training if it has one.

    A run's folder is all that is needed:

        run = TrainedRun.load("outputs/my-run")
        codes = run.encode(base)                     # (n, code_size) uint8
        D, I = run.search(queries, codes, k=10)      # squared distances or similarities, row numbers
    """

    folder: Path
    settings: Settings
    codec: Codec
    seconds: float
    fitting: float = 0.0
    metric: Metric = L2

    @classmethod
    def load(cls, folder: str | Path, trust: Trust = ()) -> Self:
        """Read a run's folder; nothing in it is unpickled.

        Args:
            folder: folder of the run.
            trust: other modules, such as "my_parts", whose classes the folder may name.

        Raises:
            InvalidInput: not a run folder, or a run that has not ended.
            DamagedFile: damaged files.
            UntrustedPart: a class of a module that is not allowed.
        """
        folder = Path(folder)
        settings = Settings.load(folder / "config.yaml")
        transform, seconds = load_part(folder, "catalyzer", Transform, trust)
        networks: dict[str, Any] = {
            name: load_part(folder, name, Transform, trust)[0] if part.get("_target_") is not None else None
            for name, part in (("decoder", settings.decoder), ("query", settings.query))
        }
        quantizer, fitting = load_part(folder, "quantizer", Quantizer, trust)
        codec = Codec(
            transform,
            quantizer,
            steps=settings.steps,
            refine=settings.refine,
            latent_share=settings.latent_share,
            **networks,
        )
        return cls(folder, settings, codec, seconds, fitting, _load_metric(folder, settings))

    def quantizer_of(self, settings: Settings) -> Quantizer:
        """The quantizer of other settings, behind this run's transform; its own, where they are those of the run.

        What settings leave open, the run has chosen: its lattice, and whether codes have a gain.
        """
        part, transform = settings.quantizer, self.codec.transform
        if part == self.settings.quantizer:
            return self.codec.quantizer
        if isinstance(transform, Linear) and transform.nested and issubclass(class_of("quantizer", part), LatticeQuantizer):
            raise InvalidInput(
                "the blocks of a nested linear map are those of its own lattice; leave the quantizer's settings out, or train "
                "with catalyzer.nested=false"
            )
        if isinstance(transform, Linear) and transform.gain and part.get("gain", False) is None:
            part = part | {"gain": self.codec.quantizer.gain}
        return build_quantizer(part, transform.d_out)

    def with_settings(self, settings: Settings, train: np.ndarray) -> Self:
        """The run with the quantizer and the search of other settings; the quantizer is fitted to the training vectors, as
        a `Benchmark` has them.

        Raises:
            InvalidInput: a quantizer, rerank, steps or refine that does not fit the run's networks.
        """
        quantizer = self.quantizer_of(settings)
        search: dict[str, Any] = {
            "steps": settings.steps,
            "refine": settings.refine,
            "latent_share": settings.latent_share,
        }
        if describe(quantizer) == describe(self.codec.quantizer):
            return replace(self, settings=settings, codec=replace(self.codec, **search))
        # The query network knows the points of its own quantizer alone.
        codec = replace(self.codec, quantizer=quantizer, query=None, **search)
        start = time.perf_counter()
        codec.fit(train)
        return replace(self, settings=settings, codec=codec, fitting=time.perf_counter() - start)

    @property
    def d(self) -> int:
        """Dimension of the vectors, as the user has them."""
        return self.codec.transform.d_in - self.metric.extra

    def stored(self, x: np.ndarray | VectorFile, name: str = "vectors") -> Vectors:
        """`(n, d)` vectors as the codec encodes them; see `Metric.stored`.

        Raises:
            InvalidInput: another shape or type.
        """
        check_vectors(x, self.d)
        return self.metric.stored(x, name)

    def searched(self, queries: np.ndarray | VectorFile, name: str = "queries") -> Vectors:
        """`(nq, d)` queries as the codec searches them; see `Metric.searched`.

        Raises:
            InvalidInput: another shape or type.
        """
        check_vectors(queries, self.d)
        return self.metric.searched(queries, name)

    def scores(self, distances: np.ndarray, queries: np.ndarray, rerank: int) -> np.ndarray:
        """What the codec's `(nq, k)` float32 squared distances mean for `(nq, d)` queries; see `Metric.scores`."""
        on_sphere = not rerank and not isinstance(self.codec.transform, Identity)
        return self.metric.scores(distances, as_float32(queries), on_sphere)

    def encode(self, x: np.ndarray | VectorFile) -> np.ndarray:
        """Map and code `(n, d)` vectors: `(n, code_size)` uint8.

        Raises:
            InvalidInput: another shape or type, NaN, infinity, or a row that the metric does not compare (`Metric.stored`).
        """
        return self.codec.encode(self.stored(x))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decode codes to `(n, d)` float32 vectors, for cosine of norm 1; see `Codec.decode`."""
        return self.metric.restore(self.codec.decode(codes))

    def search(
        self, queries: np.ndarray | VectorFile, codes: np.ndarray, k: int, rerank: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k codes nearest to each `(nq, d)` query, best first.

        `rerank` is by default the run's own; see `Codec.search`.

        Returns:
            `(nq, k)` float32 squared distances, for cosine and inner product similarities, and `(nq, k)` int64 row numbers.

        Raises:
            InvalidInput: as `encode`, but queries of inner products have any length; or as `Codec.search`.
        """
        rerank = self.settings.rerank if rerank is None else rerank
        distances, ids = self.codec.search(self.searched(queries), codes, k, rerank)
        return self.scores(distances, queries[:], rerank), ids


def evaluate_run(evaluation: Evaluation) -> list[Result]:
    """Another quantizer, rerank, steps or refine on a run's networks, without training again; prints and returns the table.

    Writes results.json and the figure into `evaluations/<quantizer>-<bits>bits` in the run's folder, with rerank, steps, refine
    and the validation split in the name where they are given.

    Raises:
        InvalidInput: not a finished run, or a quantizer, rerank, steps or refine that does not fit its networks.
        UntrustedPart: see `TrainedRun.load`.
    """
    folder = Path(evaluation.run)
    trained = TrainedRun.load(folder, evaluation.trust)
    check_trust(trained.settings, evaluation.trust, ["dataset", "quantizer"])
    started = datetime.now(UTC).isoformat(timespec="seconds")
    given = {key: n for key in ("rerank", "steps", "refine") if (n := getattr(evaluation, key)) is not None}
    chosen = {} if evaluation.quantizer is None else {"quantizer": evaluation.quantizer}
    settings = trained.settings.model_copy(update={**chosen, **given})
    quantizer = trained.quantizer_of(settings)
    codec = replace(trained.codec, quantizer=quantizer, steps=settings.steps, refine=settings.refine)
    if settings.rerank and not codec.decodes:
        raise InvalidInput(
            f"rerank = {settings.rerank} needs decoded vectors, and {folder} has no decoder; train with decoder=mlp"
        )
    rehearse(codec)
    benchmark = load_dataset(settings, trained.metric)
    if evaluation.split == "validation":
        benchmark = replace(benchmark, test=benchmark.validation)
    baselines = build_baselines(settings, benchmark.dim, quantizer.code_size * 8)
    rows = compare(benchmark, trained.with_settings(settings, benchmark.train), baselines)
    name = "-".join([quantizer.label.lower(), f"{quantizer.bits}bits", *(f"{key}{n}" for key, n in given.items())])
    name += "-validation" * (evaluation.split == "validation")
    target = folder / "evaluations" / name
    title = save_results(rows, settings, benchmark, target, started)
    print_table(rows, title)
    log.info("results and figure: %s", target)
    return rows


def compare(benchmark: Benchmark, run: TrainedRun, baselines: Sequence[Quantizer]) -> list[Result]:
    """Rows for a run, in one stage and, if it reranks, in two, and for the baselines on the raw vectors."""
    name = method_name(run.codec)
    rows = measure_method(name, benchmark, run.codec, sorted({0, run.settings.rerank}), run.seconds + run.fitting)
    for quantizer in baselines:
        codec = Codec(Identity(benchmark.dim), quantizer)
        if method_name(codec) != name:
            if quantizer.is_learned:
                log.info("%s: learning from %s vectors", method_name(codec), f"{min(len(benchmark.train), MAX_TRAINING):,}")
            start = time.perf_counter()
            codec.fit(benchmark.train)
            rows += measure_method(method_name(codec), benchmark, codec, training=time.perf_counter() - start)
    return rows


def measure_method(
    method: str, benchmark: Benchmark, codec: Codec, reranks: Sequence[int] = (0,), training: float = 0.0
) -> list[Result]:
    """Measure a fitted codec on the test split; `training` is the seconds that it took to train and fit."""
    test = benchmark.test
    truth = test.ground_truth  # before the clocks start
    log.info("%s: coding %s vectors, searching %s queries", method, f"{len(test.base):,}", f"{len(test.queries):,}")
    rows = measure(method, codec, test.base, test.queries, truth, reranks)
    for row in rows:
        row.training = training
    return rows


def method_name(codec: Codec) -> str:
    """The name of a composition in tables and figures.

    >>> from catalyzer.nn import Catalyzer
    >>> from catalyzer.quantizers import LatticeQuantizer
    >>> method_name(Codec(Catalyzer(16, 8), LatticeQuantizer(8, 32)))
    'catalyzer + lattice'
    """
    return " + ".join(label for label in (codec.transform.label, codec.quantizer.label) if label)


def save_results(rows: list[Result], settings: Settings, benchmark: Benchmark, folder: Path, started: str) -> str:
    """Write the figure and, last since it says that the run has ended, results.json; returns the table's title."""
    test = benchmark.test
    by = "" if benchmark.metric.name == "l2" else f", by {benchmark.metric.name}"
    title = f"{benchmark.name}: {len(test.base):,} base vectors, {len(test.queries):,} queries{by}"
    draw_recall(rows, title, folder / "figures" / "recall.png")
    results = {
        "title": title,
        "rows": [asdict(row) for row in rows],
        "metric": asdict(benchmark.metric),
        "seed": settings.seed,
        "settings": settings.model_dump(mode="json", by_alias=True),
        "fingerprints": {"base": test.key[0], "queries": test.key[1]},
        "started": started,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(),
    }
    write_atomically(folder / "results.json", lambda file: file.write(json.dumps(results, indent=1).encode()))
    return title


def save_metric(metric: Metric, folder: Path) -> None:
    """Write the metric of a run into its folder, `metric.json`."""
    write_atomically(folder / METRIC, lambda file: file.write(json.dumps(asdict(metric)).encode()))


def _load_metric(folder: Path, settings: Settings) -> Metric:
    path = folder / METRIC
    if not path.exists() and settings.metric in (None, "l2"):  # of a run from when there was no other
        return L2
    try:
        return Metric(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such file; expected the folder of a finished run") from None
    except (ValueError, TypeError):
        raise DamagedFile(f"{path} cannot be loaded; expected a metric and its max_norm") from None


def environment() -> dict[str, Any]:
    """What results depend on besides settings and data: versions, threads, git commit."""
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
        raise InvalidInput(f"{folder} holds no finished run: it has no results.json; resume it with resume={folder}")
    try:
        content = json.loads(path.read_text())
        return [Result.load(row) for row in content["rows"]], content["title"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedFile(f"{path} is damaged; remove it and resume the run with resume={folder}") from None
