"""The report: every target that was made on one HTML page, which needs nothing but itself."""

import base64
from collections.abc import Sequence
from io import BytesIO
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeGuard

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from catalyzer.errors import InvalidInput
from catalyzer.files.atomic import write_atomically
from catalyzer.reproduce.lab import RUNS
from catalyzer.reproduce.outcome import Column, Outcome, Row, Table, Value
from catalyzer.reproduce.pareto import Cost, draw_pareto, measured_points, pareto_front
from catalyzer.runs.figures import styled
from catalyzer.runs.targets import PAPER_TARGETS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_SVG = 2_000_000
"""Bytes: a drawing of more than that has so many points that a browser shows the PNG sooner, and as well."""


class Part(NamedTuple):
    """A target that was made, the folder it lies in, and its anchor on the page."""

    outcome: Outcome
    folder: Path
    anchor: str


class PlacedColumn(NamedTuple):
    """A column of a table with what it becomes on the page.

    Attributes:
        column: column of the table.
        compared: whether the paper has numbers for it.
        cell: place of its first cell in a row.
        cells: number of cells: measured, then published and difference if it is compared.
    """

    column: Column
    compared: bool
    cell: int
    cells: int


class Difference(NamedTuple):
    """Measured minus published, as a number and as the page shows it."""

    value: float
    text: str
    kind: str  # "better", "worse", or empty where both are equal


def write_report(root: Path, path: Path) -> Path:
    """Gather the targets in `<root>/<dataset>-<scale>/<target>/` into one HTML page, figures and all.

    Returns:
        `path`.

    Raises:
        InvalidInput: no target has been made, a results.json is damaged, or a figure is missing; nothing is written then.
    """
    folders = [file.parent for file in root.glob("*/*/results.json") if file.parts[-3] != RUNS]
    if not folders:
        raise InvalidInput(f"{root} holds no table and no figure yet; make one, as by python src/reproduce.py table1")
    parts = [Part(Outcome.load(folder), folder, f"part{i}") for i, folder in enumerate(sorted(folders, key=_place))]
    groups = [list(group) for _, group in groupby(parts, key=lambda part: part.folder.parent)]
    latest = max((part.outcome for part in parts), key=lambda outcome: outcome.ended)
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.tests["sortable"] = lambda value: isinstance(value, str) or _is_number(value)
    page = templates.get_template("report.html.jinja").render(
        facts=_facts(latest, parts),
        groups=groups,
        missing=_missing(groups),
        where_measured=_where,
        paper_name=_name,
        headline=_headline,
        row_name=row_name,
        difference=_difference,
        placed_columns=_placed_columns,
        commands=_commands,
        trade_offs=_trade_offs,
        embedded=_embedded,
        duration=_duration,
        environment=_environment,
        settings=_settings,
    )
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def _place(folder: Path) -> tuple[str, int, str]:
    """Where a target's folder stands on the page: by dataset and scale, then as in the paper."""
    place = PAPER_TARGETS.index(folder.name) if folder.name in PAPER_TARGETS else len(PAPER_TARGETS)
    return folder.parent.name, place, folder.name


def _where(outcome: Outcome) -> str:
    """Dataset and scale in words."""
    return ", ".join(word for word in (outcome.dataset, outcome.scale) if word) or "no data needed"


def _facts(latest: Outcome, parts: Sequence[Part]) -> dict[str, str]:
    """What the head of the page says."""
    outcomes = [part.outcome for part in parts]
    days = sorted({outcome.ended[:10] for outcome in outcomes if outcome.ended})
    differ = any(outcome.environment != latest.environment for outcome in outcomes)
    return {
        "data and scale": "; ".join(dict.fromkeys(_where(outcome) for outcome in outcomes)),
        "measured": " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "",
        **_environment(latest),
        "versions differ": "these are of the latest target; each target's settings name its own" if differ else "",
    }


def _environment(outcome: Outcome) -> dict[str, str]:
    """Versions, commit and the like as words."""
    return {
        name.replace("_", " "): ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        for name, value in outcome.environment.items()
    }


def _settings(outcome: Outcome) -> str:
    return yaml.safe_dump(outcome.settings, sort_keys=False, allow_unicode=True) if outcome.settings else ""


def _name(target: str) -> str:
    """ "table1" as the paper writes it: "Table 1"."""
    word = target.rstrip("0123456789")
    return f"{word} {target[len(word) :]}".strip().replace("_", " ").capitalize()


def _headline(outcome: Outcome) -> tuple[Table, Row, int] | None:
    """The cell with a published number that the paper is most about: the catalyzer's recall@10 with the lattice, at 64 bits."""

    def weight(cell: tuple[Table, Row, int]) -> tuple[bool, ...]:
        table, row, i = cell
        at_64_bits = all(row.values[j] == 64 for j, column in enumerate(table.columns) if column.name == "bits")
        return (
            table.columns[i].better is not None,
            "catalyzer" in row.label,
            "lattice" in row.label,
            table.columns[i].name == "R@10",
            at_64_bits,
        )

    cells = [
        (table, row, i)
        for table in outcome.tables
        for row in table.rows
        for i in range(len(table.columns))
        if row.paper is not None and _is_number(row.paper[i]) and _is_number(row.values[i])
    ]
    return max(cells, key=weight, default=None)


def _missing(groups: Sequence[Sequence[Part]]) -> list[tuple[str, str]]:
    """What of the paper no dataset has yet, with the command of a target that was made, whose name is replaced."""
    made = {part.outcome.target for group in groups for part in group}
    model = max(groups, key=len)[0].outcome
    return [(target, model.command.replace(model.target, target, 1)) for target in PAPER_TARGETS if target not in made]


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def row_name(table: Table, row: Row) -> str:
    """A row's label with what tells it from others of that label: values that are neither good nor bad, nor compared.

    >>> table = Table("t", [Column("bits", digits=0), Column("R@10", "%", "higher")], [Row("sign", [64, 28.3])])
    >>> row_name(table, table.rows[0])
    'sign, 64 bits'
    """
    compared = _compared(table)
    words = [row.label]
    for i, column in enumerate(table.columns):
        if column.better is None and not compared[i] and row.values[i] is not None:
            text = table.text(row, i)
            words.append(f"{text} bits" if column.name == "bits" else f"{column.heading} {text}")
    return ", ".join(words)


def _compared(table: Table) -> list[bool]:
    """Of which columns the paper has a number."""
    return [any(table.paper_text(row, i) for row in table.rows) for i in range(len(table.columns))]


def _placed_columns(table: Table) -> list[PlacedColumn]:
    placed, cell = [], 1
    for column, compared in zip(table.columns, _compared(table), strict=True):
        cells = 2 + bool(column.better) if compared else 1
        placed.append(PlacedColumn(column, compared, cell, cells))
        cell += cells
    return placed


def _is_number(value: Value) -> TypeGuard[float]:
    return isinstance(value, int | float) and isfinite(value)


def _difference(table: Table, row: Row, i: int) -> Difference | None:
    """Measured minus published, of both as they are shown, so that the page's numbers add up."""
    column, value, paper = table.columns[i], row.values[i], row.paper[i] if row.paper else None
    if not (table.comparable and column.better and _is_number(value) and _is_number(paper)):
        return None
    change = round(round(value, column.digits) - round(paper, column.digits), column.digits)
    if not change:
        return Difference(0, f"{0:.{column.digits}f}", "")
    kind = "better" if (change > 0) == (column.better == "higher") else "worse"
    return Difference(change, f"{change:+,.{column.digits}f}".replace("-", "−"), kind)


def _commands(table: Table) -> list[tuple[list[str], str]]:
    """The command of each row; rows that one command makes stand together."""
    by_command = groupby(table.rows, key=lambda row: row.command)
    return [([row_name(table, row) for row in rows], command) for command, rows in by_command if command]


# Figures: as data in img, where the ids of one drawing cannot meet those of another


def _trade_offs(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """Recall against time and against bits, each with its caption, where there is enough to compare."""
    units = {c.unit for o in outcomes for table in o.tables for c in table.columns if c.name == "encoding" and c.unit}
    costs: tuple[tuple[Cost, Literal[2, 10], str, str], ...] = (
        ("encoding", 10, f"encoding time ({' or '.join(sorted(units)) or 's'})", "time to encode, at 64 bits a vector"),
        ("bits", 2, "size of a code (bits)", "size of a code"),
    )
    figures = []
    for cost, base, xlabel, words in costs:
        points = measured_points(outcomes, cost)
        if len(points) < 2:
            continue
        front = ", ".join(dict.fromkeys(point.label for point in pareto_front(points)))
        caption = f"Recall@10 against {words}; all measured. In grey the Pareto front, from cheap to accurate: {front}."
        figures.append((_drawn(draw_pareto(points, xlabel, base)), caption))
    return figures


def _embedded(part: Part) -> list[tuple[str, str]]:
    """A target's figures, each with its caption."""
    outcome, folder, _ = part
    figures = []
    for name in outcome.figures:
        try:
            kind, content = "svg+xml", (folder / f"{name}.svg").read_bytes()
            if len(content) > LARGEST_SVG:
                kind, content = "png", (folder / f"{name}.png").read_bytes()
        except FileNotFoundError as error:
            raise InvalidInput(f"{error.filename} is missing; remove {folder} and make it again by {outcome.command}") from None
        figures.append((_data(kind, content), outcome.captions.get(name, outcome.title)))
    return figures


@styled()
def _drawn(figure: "Figure") -> str:
    from matplotlib import rc_context

    svg = BytesIO()
    with rc_context({"svg.hashsalt": "catalyzer"}):  # neither chance nor date: the same results make the same page
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return _data("svg+xml", svg.getvalue())


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
