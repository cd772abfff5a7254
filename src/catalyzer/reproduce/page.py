"""The report: every target that was made on one HTML page, which needs nothing but itself."""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO
from itertools import groupby
from math import isfinite
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeGuard

import yaml

from catalyzer.errors import InvalidInput
from catalyzer.files.atomic import write_atomically
from catalyzer.reproduce.lab import RUNS
from catalyzer.reproduce.outcome import Column, Outcome, Row, Table, Value
from catalyzer.reproduce.pareto import Cost, draw_pareto, measured_points, pareto_front

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ORDER = ("table1", "table2", "table3", "figure2", "figure3", "figure4", "figure5", "figure6", "figure7", "large_scale")
"""The paper's tables and figures as the page shows them; what else is found comes after them."""

LARGEST_SVG = 2_000_000
"""Bytes: a drawing of more than that has so many points that a browser shows the PNG sooner, and as well."""


class Part(NamedTuple):
    """A target that was made, the folder it lies in, and its anchor on the page."""

    outcome: Outcome
    folder: Path
    anchor: str


def write_report(root: Path, path: Path) -> Path:
    """Gather the targets in `<root>/<dataset>-<scale>/<target>/` into one HTML page, figures and all.

    Returns:
        `path`.

    Raises:
        InvalidInput: no target has been made, a results.json is damaged, or a figure is missing; nothing is written then.
    """
    folders = [file.parent for file in root.glob("*/*/results.json") if file.parts[-3] != RUNS]
    if not folders:
        raise InvalidInput(f"{root} holds no table and no figure yet; make one, as by python src/reproduce.py {ORDER[0]}")
    parts = [Part(Outcome.load(folder), folder, f"part{i}") for i, folder in enumerate(sorted(folders, key=_place))]
    groups = [list(group) for _, group in groupby(parts, key=lambda part: part.folder.parent)]
    latest = max((part.outcome for part in parts), key=lambda outcome: outcome.ended)
    template = Template(Path(__file__).with_name("report.html").read_text())
    page = template.substitute(
        facts=_facts(latest, parts),
        summary="".join(_summary(group) for group in groups) + _missing(groups),
        body="".join(_group(group, alone=len(groups) == 1) for group in groups),
    )
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def _place(folder: Path) -> tuple[str, int, str]:
    """Where a target's folder stands on the page: by dataset and scale, then as in the paper."""
    return folder.parent.name, ORDER.index(folder.name) if folder.name in ORDER else len(ORDER), folder.name


def _where(outcome: Outcome) -> str:
    """Dataset and scale in words."""
    return ", ".join(word for word in (outcome.dataset, outcome.scale) if word) or "no data needed"


# The head of the page


def _facts(latest: Outcome, parts: Sequence[Part]) -> str:
    outcomes = [part.outcome for part in parts]
    days = sorted({outcome.ended[:10] for outcome in outcomes if outcome.ended})
    facts = {
        "data and scale": "; ".join(dict.fromkeys(_where(outcome) for outcome in outcomes)),
        "measured": " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "",
        **_environment(latest),
    }
    if any(outcome.environment != latest.environment for outcome in outcomes):
        facts["versions differ"] = "these are of the latest target; each target's settings name its own"
    return _definitions(facts)


def _environment(outcome: Outcome) -> dict[str, str]:
    """Versions, commit and the like as words."""
    return {
        name.replace("_", " "): ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        for name, value in outcome.environment.items()
    }


def _definitions(facts: dict[str, str]) -> str:
    return "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items() if v)


def _summary(group: Sequence[Part]) -> str:
    """A line a target, with the number that says most."""
    where = _where(group[0].outcome)
    lines = []
    for outcome, _, anchor in group:
        what, cells = "no number is published", '<td></td><td class="paper"></td><td></td>'
        if (best := _headline(outcome)) is not None:
            table, row, i = best
            what = f"{row_name(table, row)}: {table.columns[i].heading}"
            cells = (
                f'<td>{escape(table.text(row, i))}</td><td class="paper">{escape(table.paper_text(row, i))}</td>'
                f"{_difference(table, row, i)}"
            )
        lines.append(
            f'<tr><th scope="row"><a href="#{anchor}">{escape(_name(outcome.target))}</a> {escape(outcome.title)}'
            f'<span class="about">{escape(what)}</span></th>{cells}</tr>'
        )
    return (
        f"<h3>{escape(where)}</h3>"
        f'<div class="scroll" tabindex="0"><table class="summary" aria-label="Summary: {escape(where)}">'
        '<thead><tr><th scope="col">target and its main number</th><th scope="col">measured</th>'
        '<th scope="col" class="paper">published</th><th scope="col">difference</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


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


def _missing(groups: Sequence[Sequence[Part]]) -> str:
    """What of the paper no dataset has yet; the command is that of a target that was made, with the other's name."""
    made = {part.outcome.target for group in groups for part in group}
    model = max(groups, key=len)[0].outcome
    lines = [
        f"<li>{escape(_name(target))}: <code>{escape(model.command.replace(model.target, target, 1))}</code></li>"
        for target in ORDER
        if target not in made
    ]
    return f'<div class="missing"><h3>Not made yet</h3><ul>{"".join(lines)}</ul></div>' if lines else ""


# The targets


def _group(group: Sequence[Part], *, alone: bool) -> str:
    """All of one dataset and scale."""
    heading = "" if alone else f'<h2 class="group">{escape(_where(group[0].outcome))}</h2>'
    return heading + _trade_offs([part.outcome for part in group]) + "".join(_part(part) for part in group)


def _trade_offs(outcomes: Sequence[Outcome]) -> str:
    """Recall against time and against bits, where there is enough to compare."""
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
        figures.append(_figure(_drawn(draw_pareto(points, xlabel, base)), caption))
    if not figures:
        return ""
    return f'<section><h2>Recall against cost</h2><div class="pair">{"".join(figures)}</div></section>'


def _part(part: Part) -> str:
    """A target: tables, figures, notes, and what it takes to make it again."""
    outcome, folder, anchor = part
    when = f" {outcome.ended[:16].replace('T', ' ')}" if outcome.ended else ""
    took = f" in {_duration(outcome.seconds)}" if outcome.seconds else ""
    settings = yaml.safe_dump(outcome.settings, sort_keys=False, allow_unicode=True) if outcome.settings else ""
    tables = [_table(table) for table in outcome.tables]
    captions = {name: outcome.captions.get(name, outcome.title) for name in outcome.figures}
    figures = [_figure(_embedded(folder, name, outcome), caption) for name, caption in captions.items()]
    return "".join(
        [
            f'<section id="{anchor}"><h2><span class="target">{escape(_name(outcome.target))}</span> ',
            f"{escape(outcome.title)}</h2>",
            f'<p class="made">Made{escape(when)}{took} by <code>{escape(outcome.command)}</code></p>',
            *(tables + figures if outcome.target.startswith("table") else figures + tables),
            *(f'<p class="note">{escape(note)}</p>' for note in outcome.notes),
            f"<details><summary>Settings and versions</summary><pre>{escape(settings)}</pre>"
            f'<dl class="facts">{_definitions(_environment(outcome))}</dl></details></section>',
        ]
    )


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


def _table(table: Table) -> str:
    """A table whose columns stand alone or, where the paper has numbers, as measured, published and difference."""
    compared = _compared(table)
    notes = list(dict.fromkeys(row.note for row in table.rows if row.note))
    below = "".join(f"<li>{escape(note)}</li>" for note in notes)
    rows = "".join(_row(table, row, compared, notes) for row in table.rows)
    return (
        f"<h3>{escape(table.title)}</h3>"
        f'<div class="scroll" tabindex="0"><table class="sortable" aria-label="{escape(table.title)}">'
        f"{_head(table, compared)}<tbody>{rows}</tbody></table></div>"
        + (f'<ol class="notes">{below}</ol>' if notes else "")
        + _commands(table)
    )


def _shown(column: Column, compared: bool) -> list[tuple[str, str]]:
    """The columns that one of the table becomes, each with its class."""
    if not compared:
        return [("", "")]
    return [("measured", "first"), ("published", "paper"), *([("difference", "difference")] if column.better else [])]


def _head(table: Table, compared: Sequence[bool]) -> str:
    """Two lines if there is something to compare: the column, and below it what is measured and what published."""
    deep = 1 + any(compared)
    top = [f'<th scope="col" rowspan="{deep}">{_button("method", 0)}</th>']
    bottom = []
    place = 1
    for column, both in zip(table.columns, compared, strict=True):
        shown = _shown(column, both)
        if not both:
            top.append(f'<th scope="col" rowspan="{deep}">{_button(column.heading, place)}</th>')
        else:
            top.append(f'<th scope="colgroup" colspan="{len(shown)}" class="over">{escape(column.heading)}</th>')
            bottom += [
                f'<th scope="col" class="{kind}">{_button(name, place + k, column.heading)}</th>'
                for k, (name, kind) in enumerate(shown)
            ]
        place += len(shown)
    return "<thead>" + "".join(f"<tr>{''.join(line)}</tr>" for line in (top, bottom) if line) + "</thead>"


def _button(name: str, place: int, over: str = "") -> str:
    """What sorts by the column at `place`."""
    label = f' aria-label="{escape(f"{over}, {name}")}"' if over else ""
    return f'<button type="button" data-column="{place}"{label}>{escape(name)}</button>'


def _row(table: Table, row: Row, compared: Sequence[bool], notes: Sequence[str]) -> str:
    mark = f"<sup>{notes.index(row.note) + 1}</sup>" if row.note else ""
    cells = [f'<th scope="row" data-value="{escape(row.label)}">{escape(row.label)}{mark}</th>']
    for i, (column, both) in enumerate(zip(table.columns, compared, strict=True)):
        kind = ' class="first"' if both else ""
        cells.append(f"<td{kind}{_key(row.values[i])}>{escape(table.text(row, i))}</td>")
        if both:
            published = row.paper[i] if row.paper else None
            cells.append(f'<td class="paper"{_key(published)}>{escape(table.paper_text(row, i))}</td>')
            if column.better:
                cells.append(_difference(table, row, i))
    return f"<tr>{''.join(cells)}</tr>"


def _is_number(value: Value) -> TypeGuard[float]:
    return isinstance(value, int | float) and isfinite(value)


def _key(value: Value) -> str:
    """What a cell is sorted by; a missing one has nothing, and stays last."""
    return f' data-value="{escape(str(value))}"' if isinstance(value, str) or _is_number(value) else ""


def _difference(table: Table, row: Row, i: int) -> str:
    """Measured minus published as a cell: as both are shown, so that the page's numbers add up."""
    column, value, paper = table.columns[i], row.values[i], row.paper[i] if row.paper else None
    if not (table.comparable and column.better and _is_number(value) and _is_number(paper)):
        return '<td class="difference"></td>'
    change = round(round(value, column.digits) - round(paper, column.digits), column.digits)
    kind = title = ""
    if change:
        kind = "better" if (change > 0) == (column.better == "higher") else "worse"
        title = f' title="{kind} than published"'
    text = f"{change:+,.{column.digits}f}".replace("-", "−") if change else f"{0:.{column.digits}f}"
    return f'<td class="difference {kind}"{title}{_key(change)}>{text}</td>'


def _commands(table: Table) -> str:
    """The command of each row; rows that one command makes stand together."""
    lines = "".join(
        "".join(f"<dt>{escape(row_name(table, row))}</dt>" for row in rows) + f"<dd><code>{escape(command)}</code></dd>"
        for command, rows in groupby(table.rows, key=lambda row: row.command)
        if command
    )
    return f'<details><summary>Commands, row by row</summary><dl class="commands">{lines}</dl></details>' if lines else ""


# Figures: as data in img, where the ids of one drawing cannot meet those of another


def _figure(data: str, caption: str) -> str:
    return f'<figure><img src="{data}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'


def _embedded(folder: Path, name: str, outcome: Outcome) -> str:
    try:
        svg = (folder / f"{name}.svg").read_bytes()
        if len(svg) <= LARGEST_SVG:
            return _data("svg+xml", svg)
        return _data("png", (folder / f"{name}.png").read_bytes())
    except FileNotFoundError as error:
        raise InvalidInput(f"{error.filename} is missing; remove {folder} and make it again by {outcome.command}") from None


def _drawn(figure: "Figure") -> str:
    from matplotlib import rc_context

    svg = BytesIO()
    with rc_context({"svg.hashsalt": "catalyzer"}):  # neither chance nor date: the same results make the same page
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return _data("svg+xml", svg.getvalue())


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
