"""Figure 5: recall against bits, lattices of growing radius on catalyzers of four dimensions, beside PQ and OPQ."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from catalyzer.codec import Codec
from catalyzer.errors import InvalidInput
from catalyzer.evaluation import Result, measure
from catalyzer.lattice import SphericalLattice
from catalyzer.nn import Identity
from catalyzer.quantizers import LatticeQuantizer
from catalyzer.reproduce.lab import Lab, Target, dataset_digest, training_digest
from catalyzer.reproduce.outcome import Column, Made, Row, Table
from catalyzer.reproduce.tables import BITS_COLUMN, LATTICE, RAW, RECALLS, base_note, recalls
from catalyzer.runs.figures import line_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LATTICE_BITS = (16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128)
PRODUCT_BITS = (32, 64, 96, 128)  # 4 to 16 bytes
# One hue for all dimensions, since colour tells the method; markers and lightness tell them apart, in grey too.
DIMENSIONS = {16: ("#9ECAE1", "v"), 24: ("#4292C6", "o"), 32: ("#0072B2", "s"), 40: ("#08306B", "D")}


def overrides(d_out: int) -> list[str]:
    """Of the network of one dimension; its λ is that of Table 3."""
    return [*LATTICE, f"d_out={d_out}"]


def figure5(lab: Lab) -> Made:
    """Train a catalyzer for each dimension, sweep the radius of the lattice on it, and measure PQ and OPQ beside."""
    rows = []
    for d_out in DIMENSIONS:
        for result in lattices(lab, d_out):
            command = lab.command([*LATTICE, f"quantizer.radius_sq={result['radius_sq']}", "bits=128"], overrides(d_out))
            values = [d_out, str(result["radius_sq"]), result["bits"], *recalls(Result.load(result["result"]))]
            rows.append(Row(f"catalyzer + lattice ({d_out} dimensions)", values, command=command))
    for name, label in (("pq", "PQ"), ("opq", "OPQ")):
        for bits in PRODUCT_BITS:
            if bits // 8 > lab.base_shape[1]:  # more bytes than dimensions
                continue
            sized = [RAW, f"quantizer={name}", f"bits={bits}"]
            rows.append(Row(label, [None, None, bits, *recalls(lab.result(sized))], command=lab.command(sized)))
    columns = [Column("d_out", digits=0), Column("r²"), BITS_COLUMN, *RECALLS]
    table = Table("Recall by bits of a code", columns, rows)
    caption = "Recall@10 against the bits of a code. The lattice's radius grows along each line; PQ and OPQ have whole bytes."
    return Made([table], {"figure5": draw(table)}, {"figure5": caption}, base_note(lab))


def lattices(lab: Lab, d_out: int) -> list[dict[str, Any]]:
    """Radius, bits and result of the largest lattice of each size, on the catalyzer of this dimension."""
    run = lab.trained(overrides(d_out))
    found, radii = [], set()
    for bits in LATTICE_BITS:
        try:
            radius_sq = SphericalLattice.for_bits(d_out, bits).radius_sq
        except InvalidInput:  # no sphere of so few points, or none that is allowed of so many
            continue
        if radius_sq in radii:
            continue
        radii.add(radius_sq)
        quantizer = LatticeQuantizer(d_out, radius_sq=radius_sq, bits=128)

        def compute(quantizer: LatticeQuantizer = quantizer, radius_sq: int = radius_sq) -> dict[str, Any]:
            base, queries = lab.latent(run)
            truth = lab.benchmark(lab.common).test.ground_truth
            name = f"d_out = {d_out}, r² = {radius_sq}"
            return asdict(measure(name, Codec(Identity(d_out), quantizer), base, queries, truth)[0])

        key = (training_digest(run.settings), dataset_digest(lab.common), radius_sq)
        result = lab.measured("lattice", key, compute)
        found.append({"radius_sq": radius_sq, "bits": quantizer.bits, "result": result})
    return found


def draw(table: Table) -> "Figure":
    """R@10 against bits, a line for each dimension and method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    axes = figure.subplots()

    def line(rows: Sequence[Row], label: str, **style: Any) -> None:
        bits, recall = np.array([(row.values[2], row.values[4]) for row in rows], dtype=float).T
        axes.plot(bits, recall, ms=5, label=label, **style)

    for d_out, (color, marker) in DIMENSIONS.items():
        rows = [row for row in table.rows if row.values[0] == d_out]
        line(rows, f"catalyzer + lattice, {d_out} dimensions", color=color, marker=marker)
    for label in ("PQ", "OPQ"):
        if rows := [row for row in table.rows if row.label == label]:
            line(rows, label, **line_style(label))
    axes.set(xlabel="bits of a code", ylabel="recall@10 (%)", ylim=(0, 102), xticks=range(16, 129, 16))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


FIGURE_5 = Target("Figure 5: recall against bits", figure5, lambda _: [overrides(d_out) for d_out in DIMENSIONS])
