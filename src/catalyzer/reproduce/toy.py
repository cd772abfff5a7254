"""Figure 2: the method in two dimensions, from the plane to the disk, for three values of λ.

The lattice is A2, the hexagonal one. Section 3.3 explains it: without KoLeo most cells stay empty, with KoLeo alone neighbours
get lost, and a λ in between is a good trade-off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from catalyzer.neighbors import knn_graph
from catalyzer.nn import KoLeoLoss, RankLoss
from catalyzer.progress import progress
from catalyzer.reproduce.outcome import Column, Row, Table
from catalyzer.runs.figures import styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAMBDAS = (0.0, 0.03, 1.0)
LEARN, SHOWN = 2048, 1000  # points to learn from, and others that are drawn and measured
HIDDEN, EPOCHS, BATCH, LEARNING_RATE = 128, 80, 256, 0.01
K_POS, K_NEG = 10, 50  # section 5.3
SPACING = 0.2  # between neighbouring lattice points, in a disk of radius 1


@dataclass(frozen=True)
class ToyResult:
    """The toy's points mapped by a trained network, and measurements.

    Attributes:
        lambda_: weight of KoLeo in training.
        latent: `(n, 2)` float32, in the unit disk.
        kept: share of points whose nearest neighbour in the plane is also their nearest in the disk.
        recall: share of points whose nearest neighbour in the plane is among the 10 nearest by distance to the centre of its
            cell (asymmetric, as in section 4.2); points of one cell tie and share the remaining places.
        used: number of cells with a point.
        entropy: entropy of the cells, in bits.
    """

    lambda_: float
    latent: np.ndarray
    kept: float
    recall: float
    used: int
    entropy: float


class ToyNetwork(nn.Module):
    """A small network as in section 5.2; its last layer maps to the disk instead of the sphere.

    Shape:
        `(n, 2)` float32 to the same, rows of norm below 1.

    >>> f = ToyNetwork().eval()
    >>> bool((f(torch.randn(5, 2)).norm(dim=1) < 1).all())
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, HIDDEN),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, HIDDEN),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        z = self.layers(x)
        return z / (1 + z.square().sum(1, keepdim=True)).sqrt()


def figure2(seed: int = 0) -> tuple["Figure", Table]:
    """Train the three networks and draw what they do; about 20 seconds on one core.

    Args:
        seed: seed of the points, the weights and the batches.

    Returns:
        The figure, and a table of the cells in use and the neighbours kept.
    """
    random = np.random.default_rng(seed)
    learn, shown = toy_points(LEARN, random), toy_points(SHOWN, random)
    results = []
    for lambda_ in LAMBDAS:
        network = train_toy(learn, lambda_, seed)
        with torch.inference_mode():
            latent = network(torch.from_numpy(shown)).numpy()
        results.append(measure_toy(shown, latent, lambda_))
    return draw_toy(shown, results), toy_table(results, random)


def toy_points(n: int, random: np.random.Generator) -> np.ndarray:
    """`(n, 2)` float32 points of the toy: three clusters of unequal density, an arc, a ring and a bridge."""
    kind = random.choice(6, n, p=[0.3, 0.2, 0.15, 0.15, 0.12, 0.08])[:, None]
    t = random.uniform(size=(n, 1))
    arc, turn = np.pi * (1 + t), 2 * np.pi * t
    blob = np.zeros((n, 1))
    shapes = [  # x, y, width
        (blob - 0.9, blob + 0.6, 0.08),
        (blob + 0.9, blob + 0.9, 0.18),
        (blob + 0.75, blob - 0.75, 0.05),
        (0.8 * np.cos(arc) - 0.3, 0.8 * np.sin(arc) - 0.1, 0.03),
        (0.35 * np.cos(turn) + 0.75, 0.35 * np.sin(turn) - 0.75, 0.02),
        (1.8 * t - 0.9, 0.3 * t + 0.6, 0.03),
    ]
    noise = random.normal(size=(n, 2))
    points = [np.hstack([x, y]) + width * noise for x, y, width in shapes]
    return np.take_along_axis(np.stack(points), kind[None], 0)[0].astype(np.float32)


def train_toy(points: np.ndarray, lambda_: float, seed: int) -> ToyNetwork:
    """Train by equation 4, with the triplets of section 3.2; the negatives are mined in each epoch.

    Args:
        points: `(n, 2)` float32.
        lambda_: weight of KoLeo.
        seed: seed of weights, batches and positives.

    Returns:
        The network, in evaluation mode.
    """
    random = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ToyNetwork()
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    rank_loss, koleo_loss = RankLoss(), KoLeoLoss()
    x, rows = torch.from_numpy(points), np.arange(len(points))
    neighbours = torch.from_numpy(knn_graph(points, K_POS, "exact"))
    with progress(f"training the toy, λ = {lambda_:g}", EPOCHS, "epochs") as advance:
        for _ in range(EPOCHS):
            with torch.no_grad():
                latent = network.eval()(x).numpy()
            negatives = torch.from_numpy(knn_graph(latent, K_NEG, "exact")[:, -1])
            positives = neighbours[rows, random.integers(K_POS, size=len(points))]
            network.train()
            for batch in torch.from_numpy(random.permutation(len(points))).split(BATCH):
                triplets = torch.cat([x[batch], x[positives[batch]], x[negatives[batch]]])
                anchor, positive, negative = network(triplets).chunk(3)
                loss = rank_loss(anchor, positive, negative) + lambda_ * koleo_loss(anchor)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
            advance(1)
    return network.eval()


def nearest_hexagonal(points: np.ndarray, spacing: float = SPACING) -> np.ndarray:
    """The nearest points of A2, a union of two rectangular lattices: the nearer of their nearest points.

    Args:
        points: `(n, 2)`.
        spacing: distance of neighbouring lattice points; one lies at the origin, its nearest to the right at (spacing, 0).

    Returns:
        `(n, 2)` float64.

    >>> nearest_hexagonal(np.array([[0.9, 0.1], [0.4, 0.8]]), spacing=1.0).round(3).tolist()
    [[1.0, 0.0], [0.5, 0.866]]
    """
    sides = np.array([1.0, np.sqrt(3)]) * spacing
    found = [np.round(points / sides - shift) * sides + shift * sides for shift in (0.0, 0.5)]
    first, second = (np.square(points - f).sum(1, keepdims=True) for f in found)
    return np.where(first <= second, *found)


def hexagonal_cells(spacing: float = SPACING) -> np.ndarray:
    """Centres `(m, 2)` of all cells of A2 that share area with the unit disk."""
    reach = int(2 / spacing) + 2
    a, b = (axis.ravel() for axis in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    centres = spacing * np.stack([a + b / 2, np.sqrt(3) / 2 * b], 1)
    # A cell shares area with the disk if its point nearest to the origin, a corner or a foot on an edge, is inside.
    corners = centres[:, None] + hexagon(spacing)
    edges = np.roll(corners, -1, axis=1) - corners
    along = (-(corners * edges).sum(2) / np.square(edges).sum(2)).clip(0, 1)
    nearest = np.linalg.norm(corners + along[..., None] * edges, axis=2).min(1)
    return centres[(nearest < 1 - 1e-9) | (np.linalg.norm(centres, axis=1) < 1)]


def hexagon(spacing: float = SPACING) -> np.ndarray:
    """Corners `(6, 2)` of the cell of A2 around the origin."""
    angles = np.pi / 6 + np.pi / 3 * np.arange(6)
    return spacing / np.sqrt(3) * np.stack([np.cos(angles), np.sin(angles)], 1)


def measure_toy(points: np.ndarray, latent: np.ndarray, lambda_: float) -> ToyResult:
    """Neighbours and cells of `(n, 2)` points and their mapped points."""
    nearest = knn_graph(points, 1, "exact")[:, 0]
    centres = nearest_hexagonal(latent)
    used, entropy = occupancy(centres)
    kept, recall = tied_recall(latent, latent, nearest, k=1), tied_recall(latent, centres, nearest, k=10)
    return ToyResult(lambda_, latent, kept, recall, used, entropy)


def occupancy(centres: np.ndarray) -> tuple[int, float]:
    """The number of cells with points, and the entropy in bits of a point's cell; `centres` `(n, 2)`, one for each point.

    >>> occupancy(np.array([[0.0, 0.0], [0.0, 0.0], [0.2, 0.0], [0.4, 0.0]]))
    (3, 1.5)
    """
    counts = np.unique(centres.round(6), axis=0, return_counts=True)[1]
    share = counts / len(centres)
    return len(counts), float(-(share * np.log2(share)).sum())


def tied_recall(queries: np.ndarray, base: np.ndarray, truth: np.ndarray, k: int) -> float:
    """Expected recall@k with ties in random order; row i of `base` is left out for query i.

    Args:
        queries, base: `(n, d)`.
        truth: `(n,)` row that each query should find.
        k: rows returned.
    """
    distances = np.linalg.norm(queries[:, None].astype(np.float64) - base[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    to_truth = np.take_along_axis(distances, truth[:, None], 1)
    nearer = (distances < to_truth - 1e-9).sum(1)
    tied = (abs(distances - to_truth) <= 1e-9).sum(1)
    return float(((k - nearer) / tied).clip(0, 1).mean())


def toy_table(results: Sequence[ToyResult], random: np.random.Generator) -> Table:
    """The numbers of figure 2, and those of points drawn uniformly from the disk."""
    cells = len(hexagonal_cells())
    columns = [
        Column("nearest neighbour kept", "%", "higher"),
        Column("R@10 by cells", "%", "higher"),
        Column(f"cells in use, of {cells}", "", "higher", 0),
        Column("entropy of cells", "bits", "higher", 2),
    ]
    rows = [Row(f"λ = {r.lambda_:g}", [100 * r.kept, 100 * r.recall, r.used, r.entropy]) for r in results]
    angle, radius = 2 * np.pi * random.uniform(size=SHOWN), np.sqrt(random.uniform(size=SHOWN))
    even = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    rows.append(Row("drawn evenly from the disk", [None, None, *occupancy(nearest_hexagonal(even))]))
    return Table("Figure 2: neighbours kept and cells of A2 used by the toy", columns, rows)


@styled()
def draw_toy(points: np.ndarray, results: Sequence[ToyResult]) -> "Figure":
    """The plane and, for each λ, the disk with the cells of A2, empty ones grey; colour is the position in the plane."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 2.5))
    plane, *disks = figure.subplots(1, 1 + len(results))
    colors = position_colors(points)
    plane.scatter(*points.T, c=colors, s=2.5, lw=0)
    middle, half = (points.max(0) + points.min(0)) / 2, 0.55 * float(np.ptp(points, axis=0).max())
    plane.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half), aspect="equal")
    plane.set(xticks=[], yticks=[])
    plane.spines[:].set_visible(True)
    plane.set_title("input")
    plane.set_xlabel(f"{len(points):,} points")
    cells = hexagonal_cells()
    for axes, result in zip(disks, results, strict=True):
        _draw_disk(axes, result, cells)
        axes.scatter(*result.latent.T, c=colors, s=2.5, lw=0, zorder=3)
        axes.set_title(f"λ = {result.lambda_:g}")
        empty = f"{len(cells) - result.used} of {len(cells)} cells empty"
        axes.set_xlabel(f"{empty}\n{100 * result.kept:.0f}% of neighbours kept", fontsize=9)
    return figure


def _draw_disk(axes: "Axes", result: ToyResult, cells: np.ndarray) -> None:
    from matplotlib.collections import PolyCollection
    from matplotlib.patches import Circle

    full = {tuple(c) for c in nearest_hexagonal(result.latent).round(6) + 0.0}  # + 0.0: no negative zeros
    fills = ["white" if tuple(c) in full else "#D0D0D0" for c in cells.round(6) + 0.0]
    rim = axes.add_patch(Circle((0, 0), 1, fill=False, color="#404040", lw=0.8, zorder=4))
    hexagons = PolyCollection(cells[:, None] + hexagon(), facecolors=fills, edgecolors="#909090", linewidths=0.4)
    axes.add_collection(hexagons)
    inside = cells[np.linalg.norm(cells, axis=1) < 1]
    axes.plot(*inside.T, ls="", marker="+", ms=2, mew=0.4, color="#606060", zorder=2)
    hexagons.set_clip_path(rim)
    axes.set(xlim=(-1.03, 1.03), ylim=(-1.03, 1.03), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def position_colors(points: np.ndarray) -> np.ndarray:
    """`(n, 3)` RGB by position: hue across, lightness up, so that neighbours look alike and heights differ in grey too."""
    corners = np.array([[[0.0, 0.15, 0.5], [0.6, 0.1, 0.0]], [[0.3, 0.72, 0.95], [0.98, 0.8, 0.2]]])  # [upper][right]
    x, y = ((points - points.min(0)) / np.ptp(points, axis=0)).T[..., None]
    lower, upper = ((1 - x) * left + x * right for left, right in corners)
    return (1 - y) * lower + y * upper
