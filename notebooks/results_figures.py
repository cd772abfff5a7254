"""The figures of docs/results.md, drawn from its tables: recall against bytes, and against the time to encode a vector.

    python notebooks/results_figures.py docs/results.md docs/images

writes recall-by-bytes.png and recall-by-time.png.
"""

import argparse
import re
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from catalyzer.runs.figures import line_style, save_figure, styled

PUBLISHED: dict[str, dict[str, Any]] = {"UNQ": {"marker": "X"}, "QINCo": {"marker": "*", "ms": 9}}
BY_BYTES, BY_TIME = "## R@1 by bytes", "## R@1 by encoding time"


def tables(page: str, section: str) -> dict[str, tuple[list[str], dict[str, list[float | None]]]]:
    """Title, headings and rows of the tables in a section; a title is the first heading, and an empty cell is None."""
    found: dict[str, tuple[list[str], dict[str, list[float | None]]]] = {}
    lines = [line for line in page.partition(f"{section}\n")[2].partition("\n## ")[0].splitlines() if line.startswith("|")]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        name, *cells = (cell.strip(" *") for cell in line.strip()[1:-1].split("|"))
        if following.startswith("|---"):
            rows = found.setdefault(name, (cells, {}))[1]
        elif not line.startswith("|---"):
            rows[name] = [float(cell.replace(",", "")) if re.fullmatch(r"[\d.,]+", cell) else None for cell in cells]
    return found


def by_bytes(page: str) -> Figure:
    """R@1 against the bytes of a vector, one panel a data set."""
    found = tables(page, BY_BYTES)
    figure = Figure(figsize=(4 * len(found), 4))
    for axes, (title, (headings, rows)) in zip(figure.subplots(1, len(found), sharey=True), found.items(), strict=True):
        sizes = [int(heading) for heading in headings]
        for method, recalls in rows.items():
            points = [(size, recall) for size, recall in zip(sizes, recalls, strict=True) if recall is not None]
            look = line_style(method)
            axes.plot(*zip(*points, strict=True), label=method, **look | ({"ls": ""} if "published" in method else {}))
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set(title=title.removesuffix(", bytes"), xlabel="bytes a vector", ylim=(0, 85))
    return finished(figure)


def by_time(page: str) -> Figure:
    """R@1 against the time to encode a vector, one panel a code size; rows that differ after a comma are one line."""
    found = tables(page, BY_TIME)
    figure = Figure(figsize=(3.4 * len(found), 3.8))
    for axes, (title, (headings, rows)) in zip(figure.subplots(1, len(found), sharex=True), found.items(), strict=True):
        time, recall = headings.index("µs a vector"), headings.index("R@1")
        methods: dict[str, list[tuple[float | None, float | None]]] = {}
        for name, values in rows.items():
            methods.setdefault(name if "published" in name else name.partition(",")[0], []).append(
                (values[time], values[recall])
            )
        for method, points in methods.items():
            look = line_style(method) | ({} if len(points) > 1 else {"ls": ""}) | PUBLISHED.get(method.partition(" ")[0], {})
            axes.plot(*zip(*points, strict=True), label=method, **look)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.08, y=0.1)
        axes.set(title=title, xlabel="encoding, µs a vector")
    return finished(figure)


def finished(figure: Figure) -> Figure:
    """The figure with one legend of all panels below."""
    figure.axes[0].set_ylabel("R@1, %")
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    figure.legend([*lines.values()], [str(label) for label in lines], loc="outside lower center", ncols=5)
    return figure


@styled()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="Markdown with the tables")
    parser.add_argument("images", type=Path, help="folder to write to")
    options = parser.parse_args()

    page = options.page.read_text(encoding="utf-8")
    save_figure(by_bytes(page), options.images / "recall-by-bytes.png")
    save_figure(by_time(page), options.images / "recall-by-time.png")


if __name__ == "__main__":
    main()
