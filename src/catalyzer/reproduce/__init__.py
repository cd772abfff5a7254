"""The paper's tables and figures: each target makes the runs that it needs and writes one folder."""

import logging
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from catalyzer.errors import InvalidInput
from catalyzer.reproduce.code_sizes import FIGURE_5
from catalyzer.reproduce.figures import FIGURES
from catalyzer.reproduce.lab import Lab, Target
from catalyzer.reproduce.lattice_size import FIGURE_6
from catalyzer.reproduce.outcome import Outcome, print_outcome
from catalyzer.reproduce.page import write_report
from catalyzer.reproduce.tables import TABLES
from catalyzer.reproduce.two_stages import TWO_STAGES
from catalyzer.runs.targets import TARGET_NAMES
from catalyzer.runs.tracking import log_tables, loggers
from catalyzer.runs.trained_run import environment

log = logging.getLogger(__name__)

_MADE = {**TABLES, **FIGURES, "figure5": FIGURE_5, "figure6": FIGURE_6, "two_stages": TWO_STAGES}
TARGETS: dict[str, Target] = dict(sorted(_MADE.items(), key=lambda item: TARGET_NAMES.index(item[0])))
"""What `python src/reproduce.py` can make, by its name in the paper; two_stages is not in it."""

__all__ = ["TARGETS", "Lab", "Outcome", "Target", "distinct", "jobs", "make_targets"]


def targets(name: str) -> list[str]:
    """The targets of a name.

    Raises:
        InvalidInput: there is no such target.
    """
    if name == "all":
        return list(TARGETS)
    if name not in TARGETS:
        raise InvalidInput(f"there is no target {name}; choose one of {', '.join(TARGETS)}, all or report")
    return [name]


def jobs(name: str, lab: Lab) -> list[list[str]]:
    """The overrides of all trainings that a target, or all of them, need; none depends on another."""
    if name == "report":
        return []
    return [overrides for target in targets(name) for overrides in TARGETS[target].jobs(lab)]


def distinct(trainings: list[list[str]], lab: Lab) -> list[int]:
    """The numbers of trainings from `jobs` that together make each run once."""
    return list({lab.run_folder(overrides): number for number, overrides in enumerate(trainings)}.values())


def make_targets(name: str, lab: Lab) -> None:
    """Make a target, all of them, or the report of what has been made, and print tables and paths."""
    if name == "report":
        sys.stdout.write(f"{write_report(lab.folder, lab.folder / 'report.html')}\n")
        return
    for target in targets(name):
        outcome, paths = make_target(target, lab, lab.folder / lab.name / target)
        for table in outcome.tables:
            print_outcome(table)
        for note in outcome.notes:
            sys.stdout.write(f"{note}\n")
        for path in paths:
            sys.stdout.write(f"{path}\n")


def make_target(name: str, lab: Lab, folder: Path) -> tuple[Outcome, list[Path]]:
    """Train and measure what is missing, write tables and figures into `folder`; returns the paths written.

    Results of the same settings, data and version are not made again.
    """
    outcome, paths = made_before(lab, folder)
    if outcome is None:
        target = TARGETS[name]
        start = time.perf_counter()
        made = target.make(lab)
        outcome = Outcome(
            name,
            target.title,
            lab.dataset,
            lab.scale,
            shlex.join(["python", "src/reproduce.py", name, *lab.given]),
            made.tables,
            captions=made.captions,
            notes=made.notes,
            settings=lab.common.model_dump(mode="json", by_alias=True),
            environment=environment(),
            key=lab.key,
            seconds=time.perf_counter() - start,
            ended=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        paths = outcome.save(folder, made.figures)
    tables = {
        f"{name}/{i}": (["method", *(column.heading for column in t.columns)], [[row.label, *row.values] for row in t.rows])
        for i, t in enumerate(outcome.tables)
    }
    with loggers(lab.common, folder) as made_loggers:
        log_tables(made_loggers, tables, {f"{name}/{figure}": folder / f"{figure}.png" for figure in outcome.figures})
    return outcome, paths


def made_before(lab: Lab, folder: Path) -> tuple[Outcome | None, list[Path]]:
    """The outcome in `folder` and its files, if it is complete and what the lab would make."""
    try:
        outcome = Outcome.load(folder)
    except InvalidInput:  # there is none, or a damaged one
        return None, []
    paths = outcome.paths(folder)
    if outcome.key != lab.key or not all(path.exists() for path in paths):
        return None, []
    log.info("%s was made on %s", folder, outcome.ended)
    return outcome, paths
