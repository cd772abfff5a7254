"""Runs and measurements, stored by their content: nothing is trained or measured twice."""

import hashlib
import json
import logging
import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import catalyzer
from catalyzer.datasets import Benchmark
from catalyzer.evaluation import Result
from catalyzer.files.atomic import write_atomically
from catalyzer.metric import Metric
from catalyzer.nn import embed
from catalyzer.reproduce.outcome import Made
from catalyzer.runs.build import build_dataset, load_dataset, modules_of
from catalyzer.runs.checks import of_training
from catalyzer.runs.experiment import new_codec, train
from catalyzer.runs.settings import Settings
from catalyzer.runs.tracking import loggers
from catalyzer.runs.trained_run import TrainedRun, measure_method, method_name

log = logging.getLogger(__name__)

RUNS = "runs"
"""Folder of the trained transforms, next to the folders of tables and figures."""

PAPER_BASE = 1_000_000
"""Base vectors of BigANN1M and Deep1M, which the paper's tables are of."""


@dataclass
class Lab:
    """Makes the runs of a target, each in its own folder in `folder`, and stores their measurements.

    Args:
        compose: function from overrides of `src/train.py` to its settings.
        overrides: common overrides of all runs, as given by the user.
        folder: `runs/<digest>` are trained transforms, `measured/<name>-<digest>.json` numbers. The digests are of the
            settings and of the dataset's files (path, size, date): other settings or other data make another run.
        seeds: number of seeds in a mean.
        lambdas: values of λ to choose from.
        given: the arguments as the user typed them, for the commands that are shown.
    """

    compose: Callable[[Sequence[str]], Settings]
    overrides: Sequence[str]
    folder: Path
    seeds: int
    lambdas: Sequence[float]
    given: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._benchmark: tuple[str, Benchmark] | None = None
        self._latent: tuple[str, np.ndarray, np.ndarray] | None = None
        self._settings: dict[tuple[str, ...], Settings] = {}

    def settings(self, overrides: Sequence[str]) -> Settings:
        """The settings of a run: what the user gave, then `overrides`; baselines are runs of their own."""
        key = tuple(overrides)
        if key not in self._settings:  # Hydra takes a tenth of a second, and a row of a table asks several times
            self._settings[key] = self.compose([*self.shared(overrides), *overrides, "baselines=[]"])
        return self._settings[key]

    def shared(self, overrides: Sequence[str]) -> list[str]:
        """What the user gave and a run of these overrides has: PCA knows nothing of a network's width, and of its training."""
        another = any(text.startswith("catalyzer=") for text in overrides)
        idle = of_training(self.overrides) if another else []
        kept = [text for text in self.overrides if not (another and text.startswith("catalyzer.")) and text not in idle]
        # The decoder of an experiment is used only in the rows about it; the same holds for the query network.
        decoder, query = self._networks
        if decoder and not any(text.startswith("decoder=") for text in overrides):
            kept.append("decoder=none")
        if query and any(text.startswith(("catalyzer=", "quantizer=")) and text != "quantizer=lattice" for text in overrides):
            kept.append("query=none")
        return kept

    @cached_property
    def _networks(self) -> tuple[bool, bool]:
        common = self.compose(self.overrides)
        return common.decoder["_target_"] is not None, common.query["_target_"] is not None

    @property
    def scale(self) -> str:
        """Name of the preset that all runs share, and the user's other choices except the dataset: "small, bits=32"."""
        return ", ".join([self._preset, *(text for text in self._chosen if not text.startswith("dataset."))])

    @property
    def name(self) -> str:
        """Of the folder that tables and figures go to: `<dataset>-<scale>`, and a digest of what else the user chose."""
        digest = f"-{_digest(sorted(self._chosen))[:6]}" if self._chosen else ""
        return f"{self.dataset}-{self._preset}{digest}"

    @cached_property
    def dataset(self) -> str:
        """What the dataset is called."""
        return build_dataset(self.common).label

    @property
    def _preset(self) -> str:
        return next((text.removeprefix("scale=") for text in self.overrides if text.startswith("scale=")), "own")

    @property
    def _chosen(self) -> list[str]:
        aside = ("scale", "dataset", "dataset.root", "logger", "cache")
        return [text for text in self.overrides if text.split("=")[0] not in aside and not text.startswith("logger.")]

    @cached_property
    def common(self) -> Settings:
        """The settings without a run's own overrides."""
        return self.settings([])

    @property
    def key(self) -> str:
        """Of all that decides what a target makes."""
        common = self.common
        settings = common.model_dump(mode="json", by_alias=True, exclude={"logger", "cache", "split"})
        return _digest([settings, dataset_digest(common), self.seeds, list(self.lambdas), catalyzer.__version__])

    @property
    def base_shape(self) -> tuple[int, int]:
        """`(n, d)` of the base, without reading the dataset a second time."""
        n, d = self.measured("base", (dataset_digest(self.common),), lambda: self.benchmark(self.common).test.base.shape)
        return n, d

    @property
    def queries(self) -> int:
        """How many there are."""
        return self.measured("queries", (dataset_digest(self.common),), lambda: len(self.benchmark(self.common).test.queries))

    @property
    def on_paper_base(self) -> bool:
        """Whether the base is as large as the paper's: recall depends on that."""
        return self.base_shape[0] == PAPER_BASE

    def first(self, n: int) -> list[str]:
        """Overrides that cut the base to its first `n` vectors, and leave ground truth to be computed for these."""
        groundtruth = ["dataset.groundtruth=null"] if "groundtruth" in self.common.dataset else []
        return [f"dataset.base_size={n}", *groundtruth]

    def benchmark(self, settings: Settings, metric: Metric | None = None) -> Benchmark:
        """The dataset of a run, by the metric of one that is trained, or else by that of the settings.

        The latest is kept, since a run's many questions are asked one after the other.
        """
        metric = metric or build_dataset(settings).compared_by(settings.metric)
        key = repr((settings.dataset, metric))
        if self._benchmark is None or self._benchmark[0] != key:
            self._benchmark = key, load_dataset(settings, metric)
        return self._benchmark[1]

    def command(self, overrides: Sequence[str], on: Sequence[str] | None = None) -> str:
        """What a user types to get one result alone; `on` as for `result`."""
        if on is not None:
            drawn = [text for text in self.overrides if text.startswith(("bits=", "seed="))]
            own = [text for text in overrides if not text.startswith("decoder=")]
            return shlex.join(["python", "src/evaluate.py", f"run={self.run_folder(on)}", *drawn, *own])
        return shlex.join(["python", "src/train.py", *self.shared(overrides), *overrides, "baselines=[]"])

    @property
    def threads(self) -> int:
        """Threads that everything is measured with."""
        return torch.get_num_threads()

    def run_folder(self, overrides: Sequence[str]) -> Path:
        """Where the run of these overrides is, or will be."""
        return self.folder / RUNS / training_digest(self.settings(overrides))

    def trained(self, overrides: Sequence[str]) -> TrainedRun:
        """The run of these overrides, trained now if it is missing; an interrupted one resumes."""
        settings, folder = self.settings(overrides), self.run_folder(overrides)
        if (folder / "catalyzer.json").exists():
            found = TrainedRun.load(folder, trust=modules_of(settings))
            if found.settings.differences(settings):  # the same training for another base, which evaluate.py shall find
                settings.save(folder / "config.yaml")
            return replace(found, settings=settings)
        log.info("training %s in %s", " ".join(overrides) or "the defaults", folder)
        benchmark = self.benchmark(settings)
        codec = new_codec(settings, benchmark)
        with ExitStack() as stack:
            made = stack.enter_context(loggers(settings, folder)) if codec.transform.is_trained else []
            run = train(settings, benchmark, codec, folder, made)
        if run is None:
            raise SystemExit  # a process that was spawned for training only
        return run

    def result(self, overrides: Sequence[str], on: Sequence[str] | None = None) -> Result:
        """Recall and time of the quantizer that `overrides` name, on the base that they name.

        Args:
            overrides: overrides of the run.
            on: overrides of another run, on whose transform the quantizer is measured.
        """
        settings = self.settings(overrides)
        run = self.trained(overrides if on is None else on)

        def compute() -> dict[str, Any]:
            benchmark = self.benchmark(settings, run.metric)
            chosen = run.with_settings(settings, benchmark.train)
            codec = chosen.codec
            return asdict(measure_method(method_name(codec), benchmark, codec, (settings.rerank,), chosen.fitting)[0])

        stages = settings.rerank, settings.steps, settings.refine
        key = (training_digest(run.settings), dataset_digest(settings), settings.quantizer, *stages, self.threads)
        result = Result.load(self.measured("result", key, compute))
        result.training += run.seconds
        return result

    def latent(self, run: TrainedRun) -> tuple[np.ndarray, np.ndarray]:
        """Base and queries `(n, d_out)` as `run` maps them; those of the latest run are kept."""
        key = f"{run.folder} {run.settings.dataset!r}"
        if self._latent is None or self._latent[0] != key:
            test = self.benchmark(run.settings, run.metric).test
            base, queries = (embed(run.codec.transform, part, f"embedding {name}") for name, part in
                             (("base", test.base), ("queries", test.queries)))  # fmt: skip
            self._latent = key, base, queries
        return self._latent[1:]

    def measured(self, name: str, key: tuple, compute: Callable[[], Any]) -> Any:
        """What `compute` returns (plain values), kept as JSON under `name` and `key`, which with the version decide it."""
        path = self.folder / "measured" / f"{name}-{_digest([catalyzer.__version__, key])}.json"
        if path.exists():
            try:
                return json.loads(path.read_text())
            except ValueError:  # damaged from outside, since only whole files are renamed into place
                log.warning("%s cannot be read; it is measured again", path)
        value = json.loads(json.dumps(compute()))  # what a second call will see
        write_atomically(path, lambda file: file.write(json.dumps(value).encode()))
        return value


@dataclass(frozen=True)
class Target:
    """A table or a figure of the paper.

    Attributes:
        title: one line for people.
        make: function that trains and measures what is missing, and makes tables and figures.
        jobs: overrides of the trainings that `make` will ask for, which do not depend on each other.
    """

    title: str
    make: Callable[[Lab], Made]
    jobs: Callable[[Lab], list[list[str]]] = lambda _: []


def training_digest(settings: Settings) -> str:
    """Names a training by all that decides it: settings and the files it learns from, not what it is tested on."""
    decisive = settings.model_dump(mode="json", by_alias=True, exclude={"logger", "cache", "baselines", "dataset", "split"})
    dataset = build_dataset(settings)
    if settings.metric == "ip":  # whose largest norm is that of the base, too
        return _digest([decisive, dataset_digest(settings)])
    learned = {key: value for key, value in settings.dataset.items() if key not in dataset.test_arguments}
    return _digest([decisive, learned, _states(dataset.files(learn_only=True))])


def dataset_digest(settings: Settings) -> str:
    """Names a dataset by its settings, its metric and its files."""
    return _digest([settings.dataset, settings.metric, _states(build_dataset(settings).files())])


def _states(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    # Path, size and date: reading gigabytes to see that nothing has changed would be slower than most targets.
    return [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]


def _digest(values: Any) -> str:
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=8).hexdigest()
