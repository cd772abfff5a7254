"""Progress of long computations: a live bar on a terminal, elsewhere an occasional line in the log, with rate and time left."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def progress(description: str | None, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show the progress of `description`; yields `advance(n)`, to be called with the number of units just finished.

    Without a description nothing is shown: the computation is a step of another whose progress is shown.

    >>> with progress("encoding", total=3, unit="vectors") as advance:
    ...     for _ in range(3):
    ...         advance(1)
    """
    if description is None:
        yield lambda _: None
        return
    if sys.stderr.isatty():
        with _bar(description, total, unit) as advance:
            yield advance
        return

    start = last_line = time.monotonic()
    done = 0

    def advance_log(n: int) -> None:
        nonlocal done, last_line
        done += n
        now = time.monotonic()
        if now - last_line >= SECONDS_BETWEEN_LINES and done < total:
            last_line = now
            rate = done / (now - start)
            left = (total - done) / rate
            log.info("%s: %s of %s %s, %s/s, %.0f s left", description, f"{done:,}", f"{total:,}", unit, _si(rate), left)

    yield advance_log


@contextmanager
def _bar(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    # Imported here: rich is for people at a terminal, and library users should not pay for it.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}  {{task.fields[rate]}}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        start = time.monotonic()
        task = bars.add_task(description, total=total, rate="-")

        def advance(n: int) -> None:
            bars.advance(task, n)
            done = bars.tasks[0].completed
            bars.update(task, rate=_si(done / max(time.monotonic() - start, 1e-9)))

        yield advance


def _si(rate: float) -> str:
    for bound, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate >= bound:
            return f"{rate / bound:.1f}{letter}"
    return f"{rate:.1f}"
