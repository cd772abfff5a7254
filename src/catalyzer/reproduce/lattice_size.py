"""Figure 6: how many atoms and how many points the spheres of 24 dimensions have."""

import csv
from io import StringIO
from math import log2
from pathlib import Path

from catalyzer.cache import write_atomically
from catalyzer.lattice import num_atoms, num_points
from catalyzer.progress import progress
from catalyzer.report import save_figure

DIM, MOST = 24, 120  # up to a little beyond the 79 of 64 bits


def figure6(folder: Path) -> list[Path]:
    """Draw atoms (linear scale) and points (in bits, hence a logarithmic scale) against r², and list them as CSV.

    Args:
        folder: where `figure6.png` and `figure6.csv` go.

    Returns:
        Both paths.
    """
    from matplotlib.figure import Figure

    radii = range(1, MOST + 1)
    with progress("counting", len(radii), "spheres") as advance:
        atoms, points = [], []
        for radius_sq in radii:
            atoms.append(num_atoms(DIM, radius_sq))
            points.append(num_points(DIM, radius_sq))
            advance(1)

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    left.plot(radii, atoms, color="#D55E00", marker=".", ms=3, label="atoms")
    right.plot(radii, [log2(n) for n in points], color="#0072B2", marker=".", ms=3, label="points")
    for radius_sq, offset, side in ((10, (8, -14), "left"), (79, (0, 9), "right")):
        bits = log2(points[radius_sq - 1])
        right.plot(radius_sq, bits, "o", color="#0072B2", ms=6)
        text = f"r² = {radius_sq}: {(points[radius_sq - 1] - 1).bit_length()} bits, {atoms[radius_sq - 1]} atoms"
        right.annotate(text, (radius_sq, bits), xytext=offset, textcoords="offset points", fontsize=8, ha=side)
    left.set(xlabel="squared radius r²", xlim=(0, MOST + 2), ylim=(0, None))
    left.set_ylabel("atoms", color="#D55E00")
    right.set_ylabel("points (log₂: bits of a code)", color="#0072B2")
    right.set_ylim(0, None)
    left.grid(alpha=0.3)
    left.set_title(f"Integer points and atoms of the spheres of {DIM} dimensions", fontsize=10)

    listing = StringIO()
    table = csv.writer(listing, lineterminator="\n")
    table.writerow(("radius_sq", "atoms", "points"))
    table.writerows(zip(radii, atoms, points, strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "figure6.png", folder / "figure6.csv"]
    save_figure(figure, paths[0])
    write_atomically(paths[1], lambda file: file.write(listing.getvalue().encode()))
    return paths
