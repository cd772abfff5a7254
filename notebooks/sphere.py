"""The method on a sphere that can be seen: points of a plane, mapped to three dimensions and coded by a lattice.

    python notebooks/sphere.py docs/images

writes `method.png`, what happens to a vector, and `sphere.gif`, the sphere while the network trains. It takes half a minute.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, ConnectionPatch
from PIL import Image

from catalyzer import Catalyzer, SphericalLattice
from catalyzer.neighbors import knn_graph
from catalyzer.nn import KoLeoLoss, RankLoss
from catalyzer.reproduce.toy import position_colors, toy_points
from catalyzer.runs.figures import save_figure, styled

LATTICE = SphericalLattice(dim=3, radius_sq=26)  # 72 points: (5, 1, 0) and (4, 3, 1) in every order and with every sign
LEARN, SHOWN = 1024, 500
EPOCHS, BATCH, LEARNING_RATE, LAMBDA = 40, 128, 0.01, 0.1
K_POS, K_NEG = 10, 50
PIXELS, EXTENT = 240, (-1.02, 1.02, -1.02, 1.02)  # of the square around a hemisphere
COLORS = 128  # of the GIF

# Rows: the directions to the right, up and towards the viewer.
VIEW = np.linalg.qr(np.array([[0.5, 0.35, 0.8], [0.85, -0.2, -0.45], [0.1, 0.9, -0.4]]).T)[0].T[[1, 2, 0]]


def train(points: np.ndarray, epochs: int) -> Iterator[Catalyzer]:
    """Train a catalyzer from the plane to the sphere by equation 4; yields it before the first epoch and after each."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    network = Catalyzer(d_in=2, d_out=3, hidden=128)
    network.adapt(points)
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    rank, koleo = RankLoss(), KoLeoLoss()
    x, neighbours = torch.from_numpy(points), knn_graph(points, K_POS, "exact")
    yield network
    for _ in range(epochs):
        negatives = knn_graph(mapped(network, points), K_NEG, "exact")[:, -1]
        positives = neighbours[np.arange(len(points)), random.integers(K_POS, size=len(points))]
        network.train()
        for batch in random.permutation(len(points)).reshape(-1, BATCH):
            anchor, positive, negative = network(x[np.concatenate([batch, positives[batch], negatives[batch]])]).chunk(3)
            loss = rank(anchor, positive, negative) + LAMBDA * koleo(anchor)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        yield network


def mapped(network: Catalyzer, points: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network.eval()(torch.from_numpy(points)).numpy()


def codes(latent: np.ndarray) -> np.ndarray:
    """The codes of points on the sphere, `(n,)` integers."""
    return LATTICE.encode(latent.astype(np.float32))[:, 0].astype(int)


class Sphere:
    """Both hemispheres as pixels, and the cell of the lattice that each pixel is in; -1 outside."""

    def __init__(self) -> None:
        x, y = np.meshgrid(*2 * [np.linspace(-1.02, 1.02, PIXELS)])
        inside = x**2 + y**2 < 1
        depth = np.sqrt((1 - x**2 - y**2).clip(0))
        self.cells = np.full((2, PIXELS, PIXELS), -1)
        for cells, sign in zip(self.cells, (1, -1), strict=True):  # seen from behind, left and right change places
            cells[inside] = codes((np.stack([sign * x, y, sign * depth], -1) @ VIEW)[inside])
        edges = (self.cells != np.roll(self.cells, 1, axis=1)) | (self.cells != np.roll(self.cells, 1, axis=2))
        self.edges = edges & (self.cells >= 0)

    def grey(self, used: np.ndarray) -> np.ndarray:
        """`(2, PIXELS, PIXELS)` grey levels: white cells where `used` has their codes."""
        levels = np.where(np.isin(self.cells, used) | (self.cells < 0), 1, 0.82)
        return np.where(self.edges, 0.6, levels)


def seen(latent: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Where points are in the picture of the front (0) or the back (1), `(n, 2)`, and which are on that side, `(n,)` bool."""
    right, up, depth = (latent @ VIEW.T).T
    return np.stack([-right if side else right, up], 1), (depth < 0) == bool(side)


def draw_plane(axes: Axes, points: np.ndarray, colors: np.ndarray) -> None:
    axes.scatter(*points.T, c=colors, s=5, lw=0)
    middle, half = (points.max(0) + points.min(0)) / 2, 0.55 * float(np.ptp(points, axis=0).max())
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
    axes.set(aspect="equal", xticks=[], yticks=[], title="vectors")
    axes.spines[:].set_visible(True)


def draw_side(axes: Axes, title: str) -> None:
    axes.add_patch(Circle((0, 0), 1, fill=False, ec="#404040", lw=0.8, zorder=4))
    axes.set(xlim=(-1.02, 1.02), ylim=(-1.02, 1.02), aspect="equal", xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)


@styled()
def draw_training(points: np.ndarray, latents: list[np.ndarray], path: Path) -> None:
    """The vectors, and both sides of the sphere after each epoch, as a GIF."""
    colors, sphere = position_colors(points), Sphere()
    figure = Figure(figsize=(6.6, 2.65), dpi=80)
    canvas = FigureCanvasAgg(figure)
    plane, *sides = figure.subplots(1, 3)
    draw_plane(plane, points, colors)
    images, dots = [], []
    for axes, title in zip(sides, ("sphere, front", "sphere, back"), strict=True):
        draw_side(axes, title)
        images.append(axes.imshow(sphere.grey(np.array([]))[0], "gray", vmin=0, vmax=1, origin="lower", extent=EXTENT))
        dots.append(axes.scatter([], [], s=6, lw=0, zorder=3))

    plane.set_xlabel("\n")
    for _ in range(2):  # the layout of squares takes two passes; then nothing moves any more
        canvas.draw()
    figure.set_layout_engine("none")

    frames = []
    for epoch, latent in enumerate(latents):
        used = np.unique(codes(latent))
        for side, grey in enumerate(sphere.grey(used)):
            places, there = seen(latent, side)
            images[side].set_data(grey)
            dots[side].set_offsets(places[there])
            dots[side].set_facecolors(colors[there])
        plane.set_xlabel(f"after {epoch} epochs\n{len(used)} of {LATTICE.num_points} codes in use")
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    both_ends = Image.fromarray(np.concatenate([frames[0], frames[-1]]))
    palette = both_ends.quantize(COLORS)
    palette.putpalette([255 if value > 240 else value for value in palette.getpalette()])  # white, and not nearly so
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    durations = [150] * len(others) + [3000]  # milliseconds
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)


@styled()
def draw_method(points: np.ndarray, latent: np.ndarray, path: Path) -> None:
    """One vector: in the plane, on the sphere, and as the lattice point whose number is its code."""
    colors, sphere = position_colors(points), Sphere()
    every = LATTICE.decode(np.arange(LATTICE.num_points, dtype=np.uint8)[:, None])
    away = np.linalg.norm(latent - every[codes(latent)], axis=1)
    chosen = int(np.argmin(abs(away - 0.12) - 0.3 * (latent @ VIEW.T)[:, 2]))  # far enough to be seen, and in front
    z, code = LATTICE.quantize(latent[[chosen]])[0], codes(latent[[chosen]])[0]
    figure = Figure(figsize=(6.6, 2.7))
    plane, ball, cell = figure.subplots(1, 3)
    draw_plane(plane, points, colors)
    draw_side(ball, "mapped evenly to the sphere")
    draw_side(cell, "nearest integer point")

    places, there = seen(latent, 0)
    ball.scatter(*places[there].T, c=colors[there], s=5, lw=0)
    shades = np.where(sphere.edges[0], 0.6, 1)[..., None] * np.where(
        (sphere.cells[0] == code)[..., None], [0.62, 0.82, 0.95], 1
    )
    cell.imshow(shades, origin="lower", extent=EXTENT)
    grid, near = seen(every, 0)
    cell.plot(*grid[near].T, ls="", marker="+", ms=3, mew=0.7, color="#606060")
    cell.plot(*grid[code], "o", ms=4, color="#0072B2")

    for axes, place in ((plane, points[chosen]), (ball, places[chosen]), (cell, places[chosen])):
        axes.plot(*place, "o", ms=6, mfc="none", mec="black", mew=1.2, zorder=5)
    for (before, start), (after, end) in (
        ((plane, points[chosen]), (ball, places[chosen])),
        ((ball, places[chosen]), (cell, places[chosen])),
    ):
        arrow = ConnectionPatch(start, end, "data", "data", axesA=before, axesB=after, arrowstyle="->", shrinkA=5, shrinkB=5)
        arrow.set_in_layout(False)
        figure.add_artist(arrow)
    plane.set_xlabel("x, 2 numbers")
    ball.set_xlabel("f(x), 3 numbers of norm 1")
    cell.set_xlabel(f"z = ({', '.join(f'{i}' for i in z)}), code {code}".replace("-", "−"))
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for sphere.gif and method.png")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of the training (default: {EPOCHS})")
    args = parser.parse_args()
    random = np.random.default_rng(0)
    learn, shown = toy_points(LEARN, random), toy_points(SHOWN, random)
    latents = [mapped(network, shown) for network in train(learn, args.epochs)]
    draw_method(shown, latents[-1], args.folder / "method.png")
    draw_training(shown, latents, args.folder / "sphere.gif")


if __name__ == "__main__":
    main()
