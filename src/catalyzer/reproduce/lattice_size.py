"""Figure 6: how many atoms and how many points the spheres of 24 dimensions have."""

from math import log2

from catalyzer.lattice import num_atoms, num_points
from catalyzer.progress import progress
from catalyzer.reproduce.lab import Lab, Target
from catalyzer.reproduce.outcome import Column, Made, Row, Table
from catalyzer.runs.figures import styled

DIM, MOST = 24, 120  # up to a little beyond the 79 of 64 bits


@styled()
def figure6(_: Lab) -> Made:
    """Draw atoms (linear scale) and points (in bits, hence a logarithmic scale) against r², and list them."""
    from matplotlib.figure import Figure

    radii = range(1, MOST + 1)
    with progress("counting", len(radii), "spheres") as advance:
        atoms, points = [], []
        for radius_sq in radii:
            atoms.append(num_atoms(DIM, radius_sq))
            points.append(num_points(DIM, radius_sq))
            advance(1)

    figure = Figure(figsize=(5.2, 3.6))
    left = figure.subplots()
    right = left.twinx()
    left.plot(radii, atoms, color="#D55E00", marker=".", ms=3, label="atoms")
    right.plot(radii, [log2(n) for n in points], color="#0072B2", marker=".", ms=3, label="points")
    for radius_sq, offset, side in ((10, (8, -14), "left"), (79, (0, 9), "right")):
        bits = log2(points[radius_sq - 1])
        right.plot(radius_sq, bits, "o", color="#0072B2", ms=6)
        text = f"r² = {radius_sq}: {(points[radius_sq - 1] - 1).bit_length()} bits, {atoms[radius_sq - 1]} atoms"
        right.annotate(text, (radius_sq, bits), xytext=offset, textcoords="offset points", fontsize=9, ha=side)
    left.set(xlabel="squared radius r²", xlim=(0, MOST + 2), ylim=(0, None))
    left.set_ylabel("atoms", color="#D55E00")
    right.set_ylabel("points (log₂: bits of a code)", color="#0072B2")
    right.set_ylim(0, None)
    right.grid(False)
    right.spines.right.set_visible(True)
    left.set_title(f"Integer points and atoms of the spheres of {DIM} dimensions")

    columns = [Column("atoms", digits=0), Column("points"), Column("points", "bits", digits=2)]
    rows = [
        Row(f"r² = {r}", [a, str(p), log2(p)]) for r, a, p in zip(radii, atoms, points, strict=True) if r % 10 == 0 or r == 79
    ]
    caption = "Atoms and integer points of the spheres of 24 dimensions, by squared radius."
    title = f"Spheres of {DIM} dimensions"
    return Made([Table(title, columns, rows)], {"figure6": figure}, {"figure6": caption})


FIGURE_6 = Target("Figure 6: atoms and points of the spheres", figure6)
