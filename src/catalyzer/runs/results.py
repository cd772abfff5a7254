"""The table and the figures of a run."""

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from catalyzer.evaluation import Result

if TYPE_CHECKING:
    pass

SPHERE_SAMPLE = 10_000
"""Points that `draw_sphere` looks at."""

COLUMNS = ("method", "bits", "R@1", "R@10", "R@100", "error", "training s", "encoding s", "search s")


def short(value: str) -> str:
    """A number that a search has drawn, with the digits that a person reads.

    >>> short("0.02504130762999893"), short("0.005"), short("lattice")
    ('0.02504', '0.005', 'lattice')
    """
    try:
        return f"{float(value):.4g}" if len(value) > 8 else value
    except ValueError:
        return value


def table_cells(results: Sequence[Result]) -> list[list[str | float]]:
    """One row a result, under `COLUMNS`: recalls in percent, error as `Result.error`, times in seconds."""
    return [
        [
            r.method,
            r.bits,
            *(round(100 * r.recall[k], 2) if k in r.recall else float("nan") for k in (1, 10, 100)),
            float("nan") if r.error is None else r.error,
            *(round(seconds, 2) for seconds in (r.training, r.encoding, r.search)),
        ]
        for r in results
    ]


def print_table(results: Sequence[Result], title: str) -> None:
    """Print the table to standard output; the best recall of each column is bold."""
    cells = table_cells(results)
    best = [max(row[i] for row in cells) for i in range(len(COLUMNS))]
    rows = []
    for row in cells:
        texts = [str(row[0]), str(row[1])]
        for i, value in enumerate(row[2:], 2):
            text = _cell(COLUMNS[i], float(value))
            texts.append(f"[bold]{text}[/]" if COLUMNS[i].startswith("R@") and value == best[i] else text)
        rows.append(texts)
    print_rows(COLUMNS, rows, title)


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    """Print texts to standard output as a table, in which rich's markup counts; the first column is flush left."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # Piped into a file there is no terminal to fit, and a table of cut names would help nobody.
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(title, style="italic", soft_wrap=True, highlight=False)  # as the table's own it would be cut to its width
    console.print(table)


def _cell(column: str, value: float) -> str:
    if math.isnan(value):
        return "–"
    if column == "error":  # in the data's units, whatever they are
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return f"{value:.1f}"
