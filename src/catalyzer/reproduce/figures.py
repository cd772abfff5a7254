"""Figures 2, 3, 4 and 7 as targets, with their networks; other modules compute and draw them."""

from dataclasses import replace

from catalyzer.files.vectors import as_float32
from catalyzer.nn import embed
from catalyzer.reproduce import angles, distances, toy
from catalyzer.reproduce.distances import Space
from catalyzer.reproduce.lab import Lab, Target
from catalyzer.reproduce.outcome import Made, Table
from catalyzer.reproduce.tables import LATTICE

LAMBDAS = (0.0, 0.02, 1.0)  # of Figure 4


def figure2(_: Lab) -> Made:
    """The toy in two dimensions; it needs no dataset."""
    figure, table = toy.figure2()
    caption = (
        "A toy distribution mapped to the disk for three λ. Colour: place in the input. Hexagons: cells of the lattice A2; "
        "grey ones hold no point."
    )
    return Made([table], {"figure2": figure}, {"figure2": caption})


def spaces(lab: Lab) -> tuple[Space, Space]:
    """Queries and base, unchanged and mapped by the catalyzer of the lattice."""
    test = lab.benchmark(lab.common).test
    base, queries = lab.latent(lab.trained(LATTICE))
    return Space(as_float32(test.queries), test.base), Space(queries, base)


def with_paper(lab: Lab, table: Table) -> Table:
    """The table, with published numbers to compare with only where the data are those of Deep1M."""
    return replace(table, comparable=lab.on_paper_base and lab.dataset == "deep1b")


def figure3(lab: Lab) -> Made:
    """Distances to the 1st and the 100th neighbour, before and after."""
    figure, table = distances.figure3(*spaces(lab))
    caption = "Distances of the queries to their 1st and 100th neighbour in the base, in the original space and on the sphere."
    return Made([with_paper(lab, table)], {"figure3": figure}, {"figure3": caption})


def figure7(lab: Lab) -> Made:
    """Search by threshold, before and after."""
    truth = lab.benchmark(lab.common).test.ground_truth[:, 0]
    figure, table = distances.figure7(*spaces(lab), truth)
    caption = (
        "Share of true nearest neighbours within ε of the query against the number of base vectors within ε; ε on the curves."
    )
    return Made([with_paper(lab, table)], {"figure7": figure}, {"figure7": caption})


def figure4_overrides(lambda_: float) -> list[str]:
    """The overrides of a catalyzer to 8 dimensions; its lattice only decides which epoch is best, so 32 bits suffice."""
    return [*LATTICE, "d_out=8", "bits=32", f"lambda={lambda_:g}"]


def figure4(lab: Lab) -> Made:
    """Angles of the training vectors on two random planes, for three values of λ."""
    latents = {}
    for value in LAMBDAS:
        run = lab.trained(figure4_overrides(value))
        latents[value] = embed(run.codec.transform, lab.benchmark(lab.common).train, f"embedding, λ = {value:g}")
    figure, table = angles.figure4(latents)
    caption = (
        "Angular histograms of the training vectors on two random planes, mapped to 8 dimensions; the dashed circle is the "
        "uniform distribution, and areas are shares of the vectors."
    )
    return Made([table], {"figure4": figure}, {"figure4": caption})


FIGURES = {
    "figure2": Target("Figure 2: the method in two dimensions", figure2),
    "figure3": Target("Figure 3: distances to the 1st and 100th neighbour", figure3, lambda _: [LATTICE]),
    "figure4": Target("Figure 4: the output on random planes", figure4, lambda _: [figure4_overrides(v) for v in LAMBDAS]),
    "figure7": Target("Figure 7: search by threshold", figure7, lambda _: [LATTICE]),
}
