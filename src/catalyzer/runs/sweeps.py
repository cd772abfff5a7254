"""The jobs of a sweep as one table, and the choice between them on the validation split."""

import csv
import json
import logging
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Self

import yaml

from catalyzer.errors import CatalyzerError, InvalidInput
from catalyzer.files.atomic import write_atomically
from catalyzer.runs import ERROR_FILE, OVERRIDES_FILE, not_ended
from catalyzer.runs.build import build_baselines, load_dataset, modules_of
from catalyzer.runs.overrides import by_key
from catalyzer.runs.results import print_rows, print_table, short
from catalyzer.runs.settings import Settings
from catalyzer.runs.tracking import log_tables, loggers
from catalyzer.runs.trained_run import TrainedRun, compare, read_results, save_results

log = logging.getLogger(__name__)

SPLITS = ("validation", "test")
RANKS = (1, 10, 100)
"""The k of the recalls in the table."""


def validation_recall(folder: Path) -> dict[int, float]:
    """Recall@k by k on the validation split, in the epoch of a run's training with the best recall@10.

    Empty where nothing was trained, or no epoch has been validated yet.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/recall_at_10")]
    best = max(rows, key=lambda row: float(row["val/recall_at_10"]), default={})
    return {k: float(value) for k in RANKS if (value := best.get(f"val/recall_at_{k}"))}


def save_overrides(overrides: list[str], folder: Path) -> None:
    """Write what a job was given into its folder, which is a job's by that."""
    text = yaml.safe_dump(overrides).encode()
    write_atomically(folder / OVERRIDES_FILE, lambda file: file.write(text))


@dataclass(frozen=True)
class Job:
    """A job of a sweep.

    Attributes:
        folder: `<sweep>/<number>`.
        overrides: value by key, both as Hydra got them.
        split: split of the comparison, "validation" or "test"; None if it failed before that was known.
        recall: recall@k by k, by split; empty if not measured.
        seconds: seconds of its training.
        error: reason why it has not ended, as a sentence; empty if it has.
    """

    folder: Path
    overrides: dict[str, str]
    split: str | None
    recall: dict[str, dict[int, float]]
    seconds: float
    error: str

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What the folder of a job says."""
        overrides, split, seconds, error = dict[str, str](), None, 0.0, ""
        recall: dict[str, dict[int, float]] = {"validation": {}, "test": {}}
        try:
            given = yaml.safe_load((folder / OVERRIDES_FILE).read_text())
            overrides = by_key(given)
            if (folder / ERROR_FILE).exists():
                raise InvalidInput((folder / ERROR_FILE).read_text().strip())
            settings = Settings.load(folder / "config.yaml")
            split = settings.split
            recall["validation"] = validation_recall(folder)
            if (folder / "results.json").exists():
                # Of a run's own rows the second, if there are two, is that of the search as the settings have it.
                own = read_results(folder)[0][1 if settings.rerank else 0]
                recall["test"], seconds = own.recall, own.training
            elif split == "validation" and (folder / "catalyzer.json").exists():
                seconds = json.loads((folder / "catalyzer.json").read_text())["training_seconds"]
            else:
                raise InvalidInput(not_ended(folder))
        except CatalyzerError as reason:
            error = str(reason)
        except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, IndexError) as damage:
            error = f"{folder} is damaged ({type(damage).__name__}); remove it, or run the job again"
        return cls(folder, overrides, split, recall, seconds, error)


@dataclass(frozen=True)
class Sweep:
    """The jobs of a sweep.

    Attributes:
        folder: folder of the sweep.
        jobs: jobs by number, at least one.
    """

    folder: Path
    jobs: list[Job]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The jobs in the folder of a sweep.

        Raises:
            InvalidInput: it holds no job.
        """
        jobs = [Job.load(path.parent) for path in folder.glob(f"*/{OVERRIDES_FILE}")]
        if not jobs:
            raise InvalidInput(f"{folder} is not the folder of a sweep: no folder in it has {OVERRIDES_FILE}")
        # A sweep's folders can be named otherwise, by hydra.sweep.subdir.
        return cls(folder, sorted(jobs, key=lambda job: (len(job.folder.name), job.folder.name)))

    @property
    def split(self) -> str:
        """That the jobs are compared on, "validation" or "test"."""
        return "validation" if any(job.split == "validation" for job in self.jobs) else "test"

    @property
    def keys(self) -> list[str]:
        """Those whose value is not the same in all jobs."""
        given = dict.fromkeys(key for job in self.jobs for key in job.overrides)
        return [key for key in given if len({job.overrides.get(key) for job in self.jobs}) > 1]

    @property
    def ended(self) -> list[Job]:
        """The jobs that have a place in the table, the best recall@10 first; of equal ones, the best recall@1."""
        ended = [job for job in self.jobs if not job.error]
        return sorted(ended, key=lambda job: [-job.recall[self.split].get(k, 0.0) for k in (10, 1)])

    @property
    def failed(self) -> list[Job]:
        """The jobs that have not ended, by number."""
        return [job for job in self.jobs if job.error]

    def name(self, job: Job) -> str:
        """Number and swept values of a job: "3 (lambda=0.01 d_out=24)"."""
        given = " ".join(f"{key}={short(job.overrides[key])}" for key in self.keys if key in job.overrides)
        return f"{job.folder.name} ({given})" if given else job.folder.name

    def table(self) -> tuple[list[str], list[list[str | float | None]]]:
        """Heading and rows for a machine: recalls in percent, seconds of training, None where there is nothing to say."""
        measured = [(split, k) for split in ("validation", "test") for k in RANKS]
        rows: list[list[str | float | None]] = [
            [
                job.folder.name,
                *(job.overrides.get(key) for key in self.keys),
                *(round(100 * r, 2) if (r := job.recall[split].get(k)) is not None else None for split, k in measured),
                None if job.error else round(job.seconds, 2),
                job.error or None,
            ]
            for job in [*self.ended, *self.failed]
        ]
        return ["job", *self.keys, *(f"{split} R@{k}" for split, k in measured), "training s", "error"], rows

    def save(self) -> Path:
        """Write the table as `sweep.csv` into the sweep's folder; returns its path."""
        heading, rows = self.table()
        text = StringIO()
        csv.writer(text, lineterminator="\n").writerows([heading, *rows])
        path = self.folder / "sweep.csv"
        write_atomically(path, lambda file: file.write(text.getvalue().encode()))
        return path

    def print(self) -> None:
        """Print to standard output the jobs that have ended, the best first, and below them why others have not.

        A sweep that is compared on the validation split is also shown as a grid, as in Table 3, where it has two keys in all
        combinations; and its best job with what it has on the test split, once that has been measured.
        """
        from rich.markup import escape

        rows = [
            [
                job.folder.name,
                *(escape(short(job.overrides.get(key, "–"))) for key in self.keys),
                *(self._percent(job, k) for k in RANKS),
                f"{job.seconds:.1f}",
            ]
            for job in self.ended
        ]
        heading = ["job", *map(escape, self.keys), *(f"R@{k}" for k in RANKS), "training s"]
        print_rows(heading, rows, f"{escape(self.folder.name)}: recall on the {self.split} split")
        if self.failed:
            lines = [f"  job {self.name(job)}: {job.error}\n" for job in self.failed]
            sys.stdout.write("".join(["  no results:\n", *lines, "\n"]))
        if self.split == "validation":
            self._print_grid()
            if self.ended and (self.ended[0].folder / "results.json").exists():
                results, title = read_results(self.ended[0].folder)
                print_table(results, f"the best, job {escape(self.name(self.ended[0]))}, on the test split of {title}")

    def _print_grid(self) -> None:
        from rich.markup import escape

        at = {tuple(short(job.overrides.get(key, "–")) for key in self.keys): job for job in self.jobs}
        if len(self.keys) != 2:
            return
        firsts, seconds = (list(dict.fromkeys(pair[i] for pair in at)) for i in range(2))
        if len(firsts) * len(seconds) == len(self.jobs) == len(at):
            heading = [self.keys[0], *(escape(f"{self.keys[1]} = {second}") for second in seconds)]
            rows = [[escape(first), *(self._percent(at[first, second], 10) for second in seconds)] for first in firsts]
            print_rows(heading, rows, "R@10 on the validation split")

    def _percent(self, job: Job, k: int) -> str:
        recall = job.recall[self.split].get(k)
        if job.error or recall is None:
            return "–"
        best = max(other.recall[self.split].get(k, 0.0) for other in self.ended)
        return f"[bold]{100 * recall:.1f}[/]" if recall == best else f"{100 * recall:.1f}"


def end_sweep(folder: Path, complete: bool) -> bool:
    """Print and write the table of a sweep, log it to W&B where its best job does, and say which jobs failed.

    Args:
        folder: folder of the sweep.
        complete: whether all jobs were made; only then, and where they are compared on the validation split, is the best of
            them measured on the test split.

    Returns:
        Whether a job failed. A sweep that Hydra refused has none, and nothing is said about it.
    """
    if not any(folder.glob(f"*/{OVERRIDES_FILE}")):
        return False
    sweep = Sweep.load(folder)
    if complete and sweep.split == "validation" and sweep.ended:
        measure_on_test(sweep.ended[0].folder)
        sweep = Sweep.load(folder)
    sweep.print()
    log.info("the table as CSV: %s", sweep.save())
    if sweep.ended:
        best = sweep.ended[0].folder
        with loggers(Settings.load(best / "config.yaml"), folder) as made:
            log_tables(made, {"sweep": sweep.table()}, {})
    if sweep.failed:
        names = ", ".join(sweep.name(job) for job in sweep.failed)
        sys.stderr.write(f"error: {len(sweep.failed)} of {len(sweep.jobs)} jobs failed: {names}\n")
    return bool(sweep.failed)


def measure_on_test(folder: Path) -> None:
    """Measure a run of this sweep and the baselines on the test split."""
    settings = Settings.load(folder / "config.yaml")
    trained = TrainedRun.load(folder, trust=modules_of(settings))  # they have just been run
    started = datetime.now(UTC).isoformat(timespec="seconds")
    benchmark = load_dataset(settings, trained.metric)
    baselines = build_baselines(settings, benchmark.dim, trained.codec.quantizer.code_size * 8)
    rows = compare(benchmark, trained, baselines)
    save_results(rows, settings, benchmark, folder, started)
