"""Figure 4: the latent points projected on random planes, as histograms of their angles."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from catalyzer.errors import InvalidInput
from catalyzer.reproduce.outcome import Column, Row, Table
from catalyzer.runs.figures import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLANES, BINS = 2, 90  # bins of 4 degrees


def figure4(latents: Mapping[float, np.ndarray], seed: int = 0) -> tuple["Figure", Table]:
    """Angular histograms of the points mapped by catalyzers of several λ.

    Args:
        latents: `(n, d_out)` points by λ; d_out is the same for all.
        seed: seed of the planes, which are the same for all λ.

    Returns:
        The figure, with a column for each λ and a row for each plane, and a table of the distances from uniform.

    Raises:
        InvalidInput: points of fewer than two dimensions.
    """
    planes = random_planes(next(iter(latents.values())).shape[1], PLANES, seed)
    histograms = {lambda_: [angular_histogram(x, plane) for plane in planes] for lambda_, x in latents.items()}
    return draw_angles(histograms), angles_table(histograms)


def random_planes(dim: int, count: int, seed: int) -> np.ndarray:
    """Planes through the origin, uniformly at random: `(count, 2, dim)` float64, two orthonormal rows each.

    Raises:
        InvalidInput: fewer than two dimensions.
    """
    if dim < 2:
        raise InvalidInput(f"a plane needs points of at least 2 dimensions, got {dim}")
    normal = np.random.default_rng(seed).normal(size=(count, dim, 2))
    return np.linalg.qr(normal).Q.swapaxes(1, 2)


def angular_histogram(points: np.ndarray, plane: np.ndarray, bins: int = BINS) -> np.ndarray:
    """How many points, projected on a plane, lie in each of the equal sectors from angle 0 on, counterclockwise.

    Args:
        points: `(n, d)`.
        plane: `(2, d)`, orthonormal rows.
        bins: sectors.

    Returns:
        `(bins,)` int64, of sum n.

    >>> angular_histogram(np.array([[1.0, 0.1], [-1.0, 0.1], [-2.0, 0.1], [0.1, -1.0]]), np.eye(2), bins=4).tolist()
    [1, 2, 0, 1]
    """
    x, y = plane @ points.T
    turns = np.arctan2(y, x) / (2 * np.pi)
    # An angle just below 0 rounds up to a whole turn, hence the second remainder.
    return np.bincount(np.floor(turns % 1 * bins).astype(np.int64) % bins, minlength=bins)


def polar_outline(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angle and radius of the curve around a histogram, a corner on each side of each sector's edges.

    The radius is the root of the density, so that areas are shares of the points and the whole is that of the unit disk,
    which is also the curve of a uniform histogram.
    """
    radius = np.sqrt(histogram / histogram.mean())
    edges = np.linspace(0, 2 * np.pi, len(histogram) + 1)
    return np.concatenate([np.repeat(edges, 2)[1:-1], [0.0]]), np.concatenate([np.repeat(radius, 2), radius[:1]])


def bits_below_uniform(histogram: np.ndarray) -> float:
    """The entropy that a histogram lacks: log2 of the number of bins less its own, 0 where it is uniform.

    >>> bits_below_uniform(np.array([5, 5, 0, 0]))
    1.0
    """
    share = histogram[histogram > 0] / histogram.sum()
    return float(np.log2(len(histogram)) + (share * np.log2(share)).sum())


def angles_table(histograms: Mapping[float, Sequence[np.ndarray]]) -> Table:
    """By λ: how far the histogram of each plane is from uniform, in bits and as its peak over its mean."""
    columns = []
    for plane in range(1, PLANES + 1):
        columns += [
            Column(f"plane {plane}: below uniform", "bits", "lower", 3),
            Column(f"plane {plane}: highest / mean", "", "lower", 2),
        ]
    rows = []
    for lambda_, planes in histograms.items():
        values = []
        for histogram in planes:
            values += [bits_below_uniform(histogram), float(histogram.max() / histogram.mean())]
        rows.append(Row(f"λ = {lambda_:g}", values))
    return Table("Figure 4: how uniform the angles on random planes are", columns, rows)


@styled()
def draw_angles(histograms: Mapping[float, Sequence[np.ndarray]]) -> "Figure":
    """A column for each λ, a row for each plane; the thin circle is the uniform distribution, and all have one scale."""
    from matplotlib.figure import Figure

    outlines = {lambda_: [polar_outline(h) for h in planes] for lambda_, planes in histograms.items()}
    top = 1.2 * max(radius.max() for planes in outlines.values() for _, radius in planes)
    figure = Figure(figsize=(2.1 * len(outlines) + 0.2, 2.35 * PLANES))
    grid = figure.subplots(PLANES, len(outlines), subplot_kw={"projection": "polar"}, squeeze=False)
    circle = np.linspace(0, 2 * np.pi, 181)
    for column, (lambda_, planes) in enumerate(outlines.items()):
        for row, outline in enumerate(planes):
            axes = grid[row, column]
            axes.fill(*outline, fc="#56B4E9", ec="#0072B2", lw=0.9)
            axes.plot(circle, np.ones_like(circle), color="black", lw=0.7, ls="--")
            axes.set_ylim(0, top)
            axes.set_xticks(np.pi / 2 * np.arange(4), [""] * 4)
            axes.set_yticks([])
            for quarter, name in enumerate(("0", "π/2", "π", "3π/2")):
                axes.text(np.pi / 2 * quarter, 0.94 * top, name, fontsize=8, ha="center", va="center", color="#404040")
            axes.tick_params(pad=-8)
            axes.spines["polar"].set_visible(False)
            lacking = bits_below_uniform(histograms[lambda_][row])
            axes.set_xlabel(f"{lacking:.3f} bits below uniform", fontsize=9)
            if row == 0:
                axes.set_title(f"λ = {lambda_:g}")
            if column == 0:
                axes.set_ylabel(f"plane {row + 1}", labelpad=8)
    return figure
