"""Figure 5 and beyond: recall against the size of a code, from the paper's 16 bits to 64 bytes.

The paper has lattices of growing radius on catalyzers of 16 to 40 dimensions. Products of spheres continue from there, after a
linear map and after trained catalyzers. They are compared with quantizers of the same sizes on the raw vectors.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from catalyzer.codec import Codec
from catalyzer.errors import InvalidInput
from catalyzer.evaluation import Result, measure
from catalyzer.lattice import SphericalLattice
from catalyzer.nn import Identity
from catalyzer.quantizers import LatticeQuantizer, RaBitQuantizer
from catalyzer.reproduce.lab import Lab, Target, dataset_digest, training_digest
from catalyzer.reproduce.outcome import Column, Made, Row, Table
from catalyzer.reproduce.tables import BITS_COLUMN, LATTICE, RAW, RECALLS, base_note, recalls
from catalyzer.runs.checks import check
from catalyzer.runs.figures import line_style, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LATTICE_BITS = (16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128)
DIMENSIONS = (16, 24, 32, 40)
SIZES = (4, 8, 16, 32, 48, 64)  # bytes
FEW = {"LSQ": (4, 8), "RQ": (4, 8, 16)}  # bytes; LSQ learns for more than 20 minutes at 16
TRAINED_SIZES = (16, 32)  # bytes of a product of spheres on a trained catalyzer
TRAINED, TRAINED_LABEL = [*LATTICE, "d_out=auto"], "catalyzer + lattice (product of spheres)"
LINEAR, LINEAR_LABEL = ["catalyzer=linear", *LATTICE, "d_out=auto"], "linear + lattice"

# One hue for all catalyzers, since colour tells the method; markers and lightness tell them apart, in grey too.
SHADES: dict[str, dict[str, Any]] = {
    "catalyzer + lattice (16 dimensions)": {"color": "#9ECAE1", "marker": "v"},
    "catalyzer + lattice (24 dimensions)": {"color": "#4292C6", "marker": "o"},
    "catalyzer + lattice (32 dimensions)": {"color": "#0072B2", "marker": "s"},
    "catalyzer + lattice (40 dimensions)": {"color": "#08519C", "marker": "D"},
    TRAINED_LABEL: {"color": "#08306B", "marker": "*", "ms": 9},
}


def overrides(d_out: int) -> list[str]:
    """The overrides of the network of one dimension; its λ is that of Table 3."""
    return [*LATTICE, f"d_out={d_out}"]


def figure5(lab: Lab) -> Made:
    """Sweep the radius of the lattice on a catalyzer of each dimension, and measure methods with a run for each size."""
    others = methods(lab)  # what is refused shall be so before hours of training
    rows = []
    for d_out in DIMENSIONS:
        for result in lattices(lab, d_out):
            command = lab.command([*LATTICE, f"quantizer.radius_sq={result['radius_sq']}", "bits=128"], overrides(d_out))
            size = [result["bits"], -(-result["bits"] // 8)]
            values = [d_out, str(result["radius_sq"]), *size, *recalls(Result.load(result["result"]))]
            rows.append(Row(f"catalyzer + lattice ({d_out} dimensions)", values, command=command))
    for label, sized in others:
        found, quantizer = lab.result(sized), lab.trained(sized).codec.quantizer
        dim = quantizer.dim if isinstance(quantizer, LatticeQuantizer) else None
        values = [dim, None, found.bits, quantizer.code_size, *recalls(found)]
        rows.append(Row(label, values, command=lab.command(sized)))
    columns = [Column("d_out", digits=0), Column("r²"), BITS_COLUMN, Column("bytes", digits=0), *RECALLS]
    table = Table("Recall by size of a code", columns, rows)
    caption = (
        "Recall@10 against the bytes of a code. Along the lines of 16 to 40 dimensions the radius of one sphere grows, as in "
        "the paper; linear + lattice is a product of spheres beyond 8 bytes. Dashed lines are of the raw vectors."
    )
    return Made([table], {"figure5": draw(table)}, {"figure5": caption}, base_note(lab))


def methods(lab: Lab) -> list[tuple[str, list[str]]]:
    """Label and overrides of the runs that have one size each, in the order of the legend."""
    dim = lab.base_shape[1]
    # Each byte of PQ has as many coordinates. Where a size times these is too much, fewer bytes hold all, and the rest padding.
    divided = sorted({-(-dim // -(-dim // size)) for size in SIZES if size < dim})
    found = [(TRAINED_LABEL, sized) for sized in of_sizes(lab, TRAINED, TRAINED_SIZES)]
    found += [(LINEAR_LABEL, sized) for sized in of_sizes(lab, LINEAR, SIZES)]
    for label, sizes in {"OPQ": divided, "PQ": divided, **FEW}.items():
        found += [(label, [RAW, f"quantizer={label.lower()}", f"bits={8 * size}"]) for size in sizes]
    for bits in (1, 2, 3, 4):
        if RaBitQuantizer(dim, bits_per_dim=bits).code_size <= SIZES[-1]:
            found.append(("RaBitQ", [RAW, "quantizer=rabitq", f"quantizer.bits_per_dim={bits}"]))
    return found


def of_sizes(lab: Lab, given: Sequence[str], sizes: Sequence[int]) -> list[list[str]]:
    """The overrides with each of the sizes, in bytes, of which vectors of so many dimensions have a lattice."""
    found = []
    for size in sizes:
        sized = [*given, f"bits={8 * size}"]
        settings = lab.settings(sized)
        with suppress(InvalidInput):  # too few dimensions
            check(settings, lab.folder, lab.base_shape[1])
            found.append(sized)
    return found


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


@styled()
def draw(table: Table) -> "Figure":
    """R@10 against bytes, a line for each dimension and method."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

    figure = Figure(figsize=(6.6, 5.6))
    axes = figure.subplots()
    for label in dict.fromkeys(row.label for row in table.rows):
        size, recall = np.array([(row.values[3], row.values[5]) for row in table.rows if row.label == label], dtype=float).T
        axes.plot(size, recall, label=label, **{**line_style(label), **SHADES.get(label, {})})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(2))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_major_formatter(PercentFormatter())
    axes.set(xlabel="bytes of a code", ylabel="recall@10", ylim=(-2, 102))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


FIGURE_5 = Target(
    "Figure 5 and beyond: recall against the size of a code",
    figure5,
    lambda lab: [*map(overrides, DIMENSIONS), *of_sizes(lab, TRAINED, TRAINED_SIZES)],
)
