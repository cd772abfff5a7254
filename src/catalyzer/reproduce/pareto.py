"""Recall against its cost, time or bits, of all measured methods."""

from collections.abc import Iterable, Sequence
from itertools import pairwise, product
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from catalyzer.reproduce.outcome import Outcome
from catalyzer.runs.figures import line_style, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Cost = Literal["encoding", "bits"]

SIDES: tuple[tuple[float, float, Literal["left", "center", "right"]], ...] = (
    (1, 0, "left"), (-1, 0, "right"), (0, 1.3, "center"), (0, -1.3, "center"),
    (0.7, 1, "left"), (0.7, -1, "left"), (-0.7, 1, "right"), (-0.7, -1, "right"),
)  # fmt: skip
"""Where a name may stand about its point: right, up, and which of its ends is there."""


class Point(NamedTuple):
    """A row of a table: its series or label, its cost (seconds or bits) and its recall in percent."""

    label: str
    cost: float
    recall: float


def measured_points(outcomes: Iterable[Outcome], cost: Cost) -> list[Point]:
    """All rows with both "R@10" and the column `cost`, each once.

    Times compare at one size only, so "encoding" takes the rows of 8 bytes, which is what a table without "bits" has. Rows
    that were measured on another base are left out.
    """
    found: dict[Point, None] = {}
    for table in (table for outcome in outcomes for table in outcome.tables):
        at = {column.name: i for i, column in enumerate(table.columns)}
        if not {"R@10", cost} <= at.keys():
            continue
        for row in table.rows:
            paid, recall = row.values[at[cost]], row.values[at["R@10"]]
            bits = row.values[at["bits"]] if "bits" in at else None
            if row.aside or (cost == "encoding" and not (bits is None or 56 < float(bits) <= 64)):
                continue
            if isinstance(paid, int | float) and isinstance(recall, int | float) and paid > 0:
                found[Point(row.series or row.label, paid, recall)] = None
    return list(found)


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other point beats in both cost and recall, by increasing cost and recall.

    >>> front = pareto_front([Point("slow", 9, 60), Point("fast", 1, 50), Point("best", 5, 70), Point("same cost", 5, 65)])
    >>> [point.label for point in front]
    ['fast', 'best']
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.recall)):
        if not front or point.recall > front[-1].recall:
            front.append(point)
    return front


@styled()
def draw_pareto(points: Sequence[Point], xlabel: str, base: Literal[2, 10], ylabel: str = "recall@10") -> "Figure":
    """Recall against cost on a logarithmic scale of `base`: one line per method, and the front as a grey staircase."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

    methods: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda p: p.cost):
        methods.setdefault(point.label, []).append(point)

    figure = Figure(figsize=(5.2, 4))
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.12)
    lines = [np.array([point[1:] for point in series]) for series in methods.values()]
    for method, line in zip(methods, lines, strict=True):
        axes.plot(*line.T, ms=6, zorder=3, **line_style(method))
    axes.autoscale_view()
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(0, bottom), min(102, top))  # recall in percent, with room for a marker at the end
    axes.autoscale(enable=False)  # the front reaches the border and moves it no further

    # From the first point of the front to the right, since whoever pays more can still have what is cheaper.
    front = pareto_front(points)
    right = axes.get_xlim()[1]
    stairs = [(front[0].cost, axes.get_ylim()[0]), (front[0].cost, front[0].recall)]
    for before, after in zip(front, [*front[1:], front[-1]._replace(cost=right)], strict=True):
        stairs += [(after.cost, before.recall), (after.cost, after.recall)]
    axes.plot(*np.array(stairs).T, color="#bbbbbb", lw=5, alpha=0.6, solid_joinstyle="miter", zorder=1)

    axes.xaxis.set_major_locator(LogLocator(base, subs=(1, 2, 5) if base == 10 else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _label(figure, axes, methods, [*lines, np.array(stairs)])
    return figure


def _label(figure: "Figure", axes: "Axes", methods: dict[str, list[Point]], lines: list[np.ndarray]) -> None:
    """Write each method's name next to one of its points, where it overlaps least with points, lines and other names."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the axes stay where the names are placed
    to_pixels = axes.transData.transform
    pixels_per_point = figure.dpi / 72
    inside = np.array([axes.get_window_extent().extents])

    # What is in the way, as boxes (left, bottom, right, top) in pixels: lines as dots, markers, the names so far.
    dots = [np.linspace(start, end, 25) for line in lines for start, end in pairwise(to_pixels(line))]
    markers = to_pixels([point[1:] for series in methods.values() for point in series])
    obstacles = ((np.concatenate(dots), 2), (markers, 6))
    taken = np.concatenate([np.concatenate([centres - size, centres + size], axis=1) for centres, size in obstacles])

    for method, series in methods.items():
        text = axes.annotate(
            method, series[0][1:], (0, 0), textcoords="offset points", fontsize=9, va="center", parse_math=False
        )
        size = np.array(text.get_window_extent().size)
        best: tuple | None = None
        for distance, point, (dx, dy, side) in product((8, 13, 20), reversed(series), SIDES):
            anchor = to_pixels(point[1:]) + distance * pixels_per_point * np.array([dx, dy])
            corner = anchor - size * [{"left": 0, "center": 0.5, "right": 1}[side], 0.5]
            box = np.concatenate([corner - 1, corner + size + 1])
            outside = _overlaps(box, box[None]) - _overlaps(box, inside)
            covered = float(_overlaps(box, taken).sum() + 4 * outside.sum())
            if best is None or covered < best[0]:
                best = covered, point[1:], (distance * dx, distance * dy), side, box
        assert best is not None  # a series has a point
        _, text.xy, text.xyann, side, box = best
        text.set_horizontalalignment(side)
        taken = np.concatenate([taken, box[None]])


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Areas that a box shares with each of `(n, 4)` others."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return sides.clip(0).prod(axis=1)
