"""The figures of a run, and the look of a method in all figures."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalyzer.evaluation import RANKS, Result
from catalyzer.files.atomic import write_atomically
from catalyzer.neighbors import knn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPHERE_SAMPLE = 10_000
"""Points that `draw_sphere` looks at."""

# Colour and marker of a quantizer (mostly Okabe and Ito's colours, told apart by the colour-blind). On raw vectors its line is
# dashed and its marker hollow, behind PCA and a linear map of other patterns and half full, so that it reads in grey too.
STYLES = {
    "lattice": ("#0072B2", "o"),
    "sign": ("#009E73", "s"),
    "OPQ": ("#D55E00", "^"),
    "PQ": ("#E69F00", "v"),
    "RQ": ("#CC79A7", "D"),
    "LSQ": ("#000000", "d"),
    "LSH": ("#999999", "<"),
    "ITQ": ("#56B4E9", ">"),
    "RaBitQ": ("#999933", "P"),
    "SQ": ("#882255", "h"),
    "EDEN": ("#332288", "p"),
}
FITTED: dict[str, dict[str, Any]] = {  # how lines look behind maps that nothing trains
    "PCA": {"ls": ":", "fillstyle": "left"},
    "linear": {"ls": (0, (6, 1.5, 1, 1.5, 1, 1.5)), "fillstyle": "bottom"},
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save figures in one style, that of figures.mplstyle; also a decorator. Other figures keep theirs."""
    from matplotlib import style

    with style.context("catalyzer.runs.figures"):
        yield


def line_style(method: str) -> dict[str, Any]:
    """The look of a method's line in all figures, as arguments of `Axes.plot`.

    `method` is the name of a row, as "catalyzer + OPQ". Of a remark in brackets only reranking shows, as a line of dashes and
    dots. A quantizer without its own colour is grey.

    >>> line_style("catalyzer + lattice (end-to-end)") == line_style("catalyzer + lattice")
    True
    >>> line_style("catalyzer + lattice (rerank 500)")["ls"]
    '-.'
    >>> line_style("linear + lattice")["fillstyle"]
    'bottom'
    """
    method, _, note = method.partition(" (")
    transform, plus, quantizer = method.rpartition(" + ")
    color, marker = STYLES.get(quantizer, ("#666666", "X"))
    if not plus:
        return {"color": color, "marker": marker, "ls": "--", "mfc": "white"}
    look = {"color": color, "marker": marker, "ls": "-", **FITTED.get(transform, {})}
    return {**look, "ls": "-."} if note.startswith("rerank") else look


@styled()
def draw_recall(results: Sequence[Result], title: str, path: Path) -> None:
    """Recall@k against k, one line per method."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    figure = Figure(figsize=(5.2, 3.6))
    axes = figure.subplots()
    for r in results:
        ks = [k for k in RANKS if k in r.recall]
        recalls = [100 * r.recall[k] for k in ks]
        axes.plot(ks, recalls, label=f"{r.method}, {r.bits} bits", **line_style(r.method))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(RANKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(RANKS, [str(k) for k in RANKS])
    axes.yaxis.set_major_formatter(PercentFormatter())
    axes.set(xlabel="k (vectors returned)", ylabel="recall@k", ylim=(0, 102))
    axes.set_title(title)
    axes.legend(loc="lower right")
    save_figure(figure, path)


@styled()
def draw_sphere(points: np.ndarray, path: Path) -> None:
    """How evenly points are spread over the sphere: angles and nearest distances, compared with uniform points.

    Args:
        points: `(n, d)` float32 of norm 1; at most `SPHERE_SAMPLE` of them are taken.
        path: path of the PNG.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    random = np.random.default_rng(0)
    points = points[random.permutation(len(points))[:SPHERE_SAMPLE]]
    uniform = random.normal(size=points.shape).astype(np.float32)
    uniform /= np.linalg.norm(uniform, axis=1, keepdims=True)

    figure = Figure(figsize=(6.6, 2.8))
    angles, distances = figure.subplots(1, 2)
    for x, label, style in (
        (points, "mapped vectors", {"alpha": 0.5}),
        (uniform, "uniform", {"histtype": "step", "color": "k"}),
    ):
        pairs = (x[: len(x) // 2] * x[-(len(x) // 2) :]).sum(1).clip(-1, 1)  # of different points
        weights = np.full(len(pairs), 1 / len(pairs))
        angles.hist(np.degrees(np.arccos(pairs)), np.linspace(0, 180, 46), weights=weights, label=label, **style)
        nearest = np.sqrt(knn(x, x, 2)[0][:, 1].clip(0))
        weights = np.full(len(nearest), 1 / len(nearest))
        distances.hist(nearest, np.linspace(0, 1.5, 46), weights=weights, label=label, **style)
    angles.set(xlabel="angle between two of them (degrees)", ylabel="share of pairs", xlim=(0, 180))
    distances.set(xlabel="distance to the nearest other", ylabel="share of points", xlim=(0, 1.5))
    for axes in (angles, distances):
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylim(top=1.3 * axes.get_ylim()[1])  # room for the legend
        axes.legend(ncols=2, loc="upper center")
    save_figure(figure, path)


@styled()
def draw_training(metrics: Path, path: Path) -> None:
    """Loss and validation recall by epoch, from a run's metrics.csv."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))

    def series(column: str, factor: float = 1.0) -> tuple[list[float], list[float]]:
        points = [(float(r["epoch"]) + 1, factor * float(r[column])) for r in rows if r.get(column) and r.get("epoch")]
        return [p[0] for p in points], [p[1] for p in points]

    figure = Figure(figsize=(6.6, 2.8))
    losses, recalls = figure.subplots(1, 2)
    for column, label, line in (
        ("epoch/rank", "rank loss", "-o"),
        ("epoch/loss", "total loss", "--s"),
    ):
        losses.plot(*series(column), line, label=label)
    losses.set(xlabel="epoch", ylabel="training loss")
    for k, line in ((1, "-o"), (10, "--s"), (100, ":^")):
        recalls.plot(*series(f"val/recall_at_{k}", 100), line, label=f"recall@{k}")
    recalls.set(xlabel="epoch", ylabel="validation recall", ylim=(0, 102))
    recalls.yaxis.set_major_formatter(PercentFormatter())
    for axes in (losses, recalls):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
    save_figure(figure, path)


@styled()
def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure in the format of the path's suffix, whole or not at all."""
    image = BytesIO()
    figure.savefig(image, format=path.suffix[1:])
    write_atomically(path, lambda file: file.write(image.getvalue()))
