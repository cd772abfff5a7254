"""Recall against the bytes of a code, drawn from the tables of docs/results.md.

    python notebooks/recall_by_bytes.py docs/results.md docs/images/recall-by-bytes.png

writes the picture of the README.
"""

import argparse
import re
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from catalyzer.runs.figures import line_style, save_figure, styled

SECTION = "## R@1 by bytes"


def tables(page: str) -> dict[str, dict[str, dict[int, float]]]:
    """R@1 of each method of each table in the section, by bytes."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    sizes: list[int] = []
    for line in page.partition(SECTION)[2].partition("\n## ")[0].splitlines():
        if not line.startswith("| "):
            continue
        name, *cells = (cell.strip(" *") for cell in line.strip("| ").split("|"))
        if name.endswith("bytes"):
            sizes, rows = [int(cell) for cell in cells], found.setdefault(name.removesuffix(", bytes"), {})
        else:
            rows[name] = {size: float(cell) for size, cell in zip(sizes, cells, strict=False) if re.fullmatch(r"[\d.]+", cell)}
    return found


@styled()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="Markdown with the tables")
    parser.add_argument("picture", type=Path, help="PNG to write")
    options = parser.parse_args()

    found = tables(options.page.read_text())
    figure = Figure(figsize=(4 * len(found), 4))
    for axes, (title, rows) in zip(figure.subplots(1, len(found), sharey=True), found.items(), strict=True):
        for method, recalls in rows.items():
            look = line_style(method)
            axes.plot(recalls.keys(), recalls.values(), label=method, **look | ({"ls": ""} if "published" in method else {}))
        sizes = sorted({size for recalls in rows.values() for size in recalls})
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set(title=title, xlabel="bytes a vector", ylim=(0, 85))
    figure.axes[0].set_ylabel("R@1, %")
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=5)
    save_figure(figure, options.picture)


if __name__ == "__main__":
    main()
