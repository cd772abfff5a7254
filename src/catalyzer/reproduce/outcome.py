"""The results of a target: tables with measured and published numbers, and figures."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from catalyzer.errors import InvalidInput
from catalyzer.files.atomic import write_atomically
from catalyzer.runs.figures import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Value = float | str | None

FORMATS = ("png", "svg")
"""Of each figure: one to look at anywhere, one to print."""


@dataclass(frozen=True)
class Column:
    """A column of numbers or words.

    Attributes:
        name: name, the paper's if it has one: "R@10", "bits", "encoding".
        unit: "%", "s", or empty.
        better: which direction is better; None if neither is.
        digits: number of decimals.
    """

    name: str
    unit: str = ""
    better: Literal["higher", "lower"] | None = None
    digits: int = 1

    @property
    def heading(self) -> str:
        """Name and unit: "R@10 (%)"."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class Row:
    """A method with what was measured.

    Attributes:
        label: name of the method, such as "catalyzer + lattice".
        values: one value per column; None without a value.
        paper: published values, one per column; None without a comparable value.
        spread: standard deviations of `values`; None for the value of one run.
        command: command that makes this row's run.
        note: remark about this row.
        aside: whether it was measured on another base than the other rows, so that its recall is not comparable.
        series: name of its line in figures, if the line has several rows; else its label.
    """

    label: str
    values: Sequence[Value]
    paper: Sequence[Value] | None = None
    spread: Sequence[float | None] | None = None
    command: str = ""
    note: str = ""
    aside: bool = False
    series: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under columns; every row has a value for each column, and its label before them.

    Attributes:
        title: title above the table.
        columns: columns of all rows.
        rows: rows in the paper's order.
        comparable: whether the published numbers are of similar data, so that a comparison is meaningful.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    comparable: bool = True

    def __post_init__(self) -> None:
        for row in self.rows:
            for cells in (row.values, row.paper, row.spread):
                assert cells is None or len(cells) == len(self.columns), row

    def text(self, row: Row, index: int) -> str:
        """The text of a measured cell: "75.8", "28.3 ± 0.2", "–".

        >>> table = Table("t", [Column("R@10", "%")], [Row("sign", [28.31], spread=[0.2])])
        >>> table.text(table.rows[0], 0)
        '28.3 ± 0.2'
        """
        text = _format(row.values[index], self.columns[index])
        deviation = row.spread[index] if row.spread else None
        return text if deviation is None else f"{text} ± {_format(deviation, self.columns[index])}"

    def paper_text(self, row: Row, index: int) -> str:
        """The text of a published cell, empty if there is none."""
        return "" if row.paper is None or row.paper[index] is None else _format(row.paper[index], self.columns[index])

    def markdown(self) -> str:
        """The table in Markdown, with published numbers in italics after the measured ones."""
        lines = [
            "| method | " + " | ".join(column.heading for column in self.columns) + " |",
            "|---|" + "---:|" * len(self.columns),
        ]
        for row in self.rows:
            cells = []
            for i in range(len(self.columns)):
                paper = self.paper_text(row, i)
                cells.append(self.text(row, i) + (f" (*{paper}*)" if paper else ""))
            lines.append(f"| {row.label} | " + " | ".join(cells) + " |")
        return "\n".join([f"**{self.title}**", "", *lines, "", *self.notes(), ""])

    def notes(self) -> list[str]:
        """The remarks about the rows, as sentences."""
        notes = [f"{row.label}: {row.note}." for row in self.rows if row.note]
        if any(row.paper for row in self.rows):
            notes.append("In brackets: what the paper publishes.")
        return notes


def print_outcome(table: Table) -> None:
    """Print a table to standard output, published numbers in brackets."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as RichTable

    shown = RichTable(title=table.title, box=SIMPLE_HEAD, title_justify="left")
    shown.add_column("method", no_wrap=True)
    for column in table.columns:
        shown.add_column(column.heading, justify="right")
    for row in table.rows:
        papers = [table.paper_text(row, i) for i in range(len(table.columns))]
        cells = [table.text(row, i) + (f" [dim]({paper})[/]" if paper else "") for i, paper in enumerate(papers)]
        shown.add_row(row.label, *cells)
    # Piped into a file there is no terminal to fit, and a table of cut names would help nobody.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(shown)
    for note in table.notes():
        console.print(note, highlight=False)


@dataclass
class Made:
    """The output of a target's function: tables, figures and captions by name, and notes."""

    tables: list[Table] = field(default_factory=list)
    figures: dict[str, "Figure"] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Outcome:
    """All results of a target in its folder.

    Attributes:
        target: name of the target: "table1".
        title: one line for people.
        dataset: name of the dataset.
        scale: preset, and the user's other choices; empty without a preset.
        command: command that makes it again.
        tables: may be empty.
        figures: names of the figures; each is in `<name>.png` and `<name>.svg` in the same folder.
        captions: captions of the figures, by name.
        notes: remarks, as sentences.
        settings: common settings of the runs.
        environment: versions, threads, git commit, as in a run's results.json.
        key: digest of all that the results depend on; results with the same key need not be made again.
        seconds: duration, without what was trained or measured before.
        ended: date and time of the end, ISO 8601.
    """

    target: str
    title: str
    dataset: str
    scale: str
    command: str
    tables: list[Table] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    captions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    key: str = ""
    seconds: float = 0.0
    ended: str = ""

    def markdown(self) -> str:
        """Tables, figures and notes as a page of Markdown."""
        parts = [f"# {self.title}", f"`{self.command}`", *(table.markdown() for table in self.tables)]
        parts += [f"![{self.captions.get(name, self.title)}]({name}.svg)" for name in self.figures]
        return "\n\n".join([*parts, *self.notes]) + "\n"

    def save(self, folder: Path, figures: dict[str, "Figure"]) -> list[Path]:
        """Write figures, Markdown and, last since it says that the target is made, results.json; returns their paths."""
        self.figures = list(figures)
        for name, figure in figures.items():
            for suffix in FORMATS:
                save_figure(figure, folder / f"{name}.{suffix}")
        pages = {f"{self.target}.md": self.markdown(), "results.json": json.dumps(asdict(self), indent=1)}
        for name, text in pages.items():
            write_atomically(folder / name, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
        return self.paths(folder)

    def paths(self, folder: Path) -> list[Path]:
        """Of all that `save` writes."""
        figures = [folder / f"{name}.{suffix}" for name in self.figures for suffix in FORMATS]
        return [*figures, folder / f"{self.target}.md", folder / "results.json"]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote into `folder`.

        Raises:
            InvalidInput: results.json is missing or is not such a file.
        """
        path = folder / "results.json"
        try:
            content = json.loads(path.read_text())
            tables = [
                Table(t.pop("title"), [Column(**c) for c in t.pop("columns")], [Row(**r) for r in t.pop("rows")], **t)
                for t in content.pop("tables")
            ]
            return cls(tables=tables, **content)
        except FileNotFoundError:
            raise InvalidInput(f"{folder} holds no results.json; make it by python src/reproduce.py {folder.name}") from None
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
            raise InvalidInput(f"{path} is damaged; remove it and make it again") from None


def _format(value: Value, column: Column) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:,.{column.digits}f}"
