"""Tables 1, 2 and 3 of the paper, and its large-scale experiment, as targets."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from catalyzer.evaluation import Result
from catalyzer.reproduce.lab import Lab, Target
from catalyzer.reproduce.outcome import Column, Made, Row, Table, Value
from catalyzer.runs.defaults import TABLE_3
from catalyzer.runs.figures import line_style, styled
from catalyzer.runs.sweeps import validation_recall

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED_FOR = {"bigann": 0, "photosift": 0, "demo": 0, "deep1b": 1}  # BigANN1M for SIFT descriptors, else Deep1M
PAPER_EPOCHS = 300
LSQ_BASE = 100_000  # LSQ codes a few hundred vectors a second and core

RECALLS = [Column(f"R@{k}", "%", "higher") for k in (1, 10, 100)]
BITS_COLUMN = Column("bits", digits=0)
ENCODING = Column("encoding", "s per 1M vectors", "lower")

RAW, PCA = "catalyzer=identity", "catalyzer=pca"
LATTICE = ["quantizer=lattice"]


def recalls(result: Result) -> list[float | None]:
    """R@1, R@10 and R@100 in percent."""
    return [100 * result.recall[k] if k in result.recall else None for k in (1, 10, 100)]


def published(lab: Lab, bigann: Sequence[Value], deep: Sequence[Value], bits: int | None = None) -> Sequence[Value] | None:
    """The paper's numbers for the dataset; None if it has none, also if they are for another number of bits."""
    which = PUBLISHED_FOR.get(lab.dataset)
    return None if which is None or bits not in (None, lab.common.bits) else (bigann, deep)[which]


def base_note(lab: Lab) -> list[str]:
    """The data of the published numbers, and whether the base has the same size, on which recall depends."""
    name, size = lab.dataset, lab.base_shape[0]
    notes = [] if name not in PUBLISHED_FOR else [f"Published numbers are of {'Deep1M' if name == 'deep1b' else 'BigANN1M'}."]
    if not lab.on_paper_base:
        notes.append(f"The base here has {size:,} vectors, theirs a million; the smaller the base, the higher the recall.")
    epochs = lab.common.trainer["max_epochs"]
    if epochs < PAPER_EPOCHS:
        notes.append(f"Networks were trained for {epochs} epochs here, for {PAPER_EPOCHS} in the paper; more epochs find more.")
    return notes


# Table 1: quantizers with and without the catalyzer.

TABLE_1 = {  # label: (overrides, BigANN1M, Deep1M); recall at 1, 10, 100 and seconds to encode 1M vectors with 40 threads
    "OPQ": ([RAW, "quantizer=opq"], (20.8, 63.6, 95.3, 5.5), (15.6, 50.3, 88.1, None)),
    "catalyzer + OPQ": (["quantizer=opq"], (24.9, 71.1, 97.0, 11.4), (21.2, 62.8, 93.4, None)),
    "LSQ": ([RAW, "quantizer=lsq"], (28.4, 76.2, 98.7, 122.1), (20.3, 61.4, 94.3, None)),
    "PCA + lattice": ([PCA, *LATTICE], (19.0, 60.6, 93.5, 5.3), (12.2, 42.5, 81.6, None)),
    "catalyzer + lattice": (LATTICE, (28.4, 75.8, 98.3, 8.5), (22.6, 66.9, 95.2, None)),
    "catalyzer + lattice (end-to-end)": (
        [*LATTICE, "end_to_end=true"], (28.7, 76.2, 98.2, 8.5), (22.8, 67.5, 95.5, None),
    ),
}  # fmt: skip


def table1(lab: Lab) -> Made:
    """OPQ, LSQ, PCA and the catalyzer at 64 bits."""
    base = lab.base_shape[0]
    rows = []
    for label, (overrides, bigann, deep) in TABLE_1.items():
        note, paper = "", published(lab, (None, *bigann), (None, *deep), bits=64)
        d_out = lab.settings(LATTICE).d_out
        if label == "PCA + lattice" and d_out != "auto" and d_out > lab.base_shape[1]:
            rows.append(Row(label, [None] * 5, paper, note="the vectors have fewer dimensions than the lattice"))
            continue
        aside = label == "LSQ" and base > LSQ_BASE
        if aside:
            overrides = [*overrides, *lab.first(LSQ_BASE)]
            note = "it encodes slowly, hence the smaller base, in which recall is higher"
            label = f"LSQ (first {LSQ_BASE:,} base vectors)"
            paper = paper and (None, None, None, None, paper[4])
        on = LATTICE if label == "catalyzer + OPQ" else None
        if on:
            note = "on the network of catalyzer + lattice"
        result = lab.result(overrides, on)
        values = [result.bits, *recalls(result), result.encoding / (LSQ_BASE if aside else base) * 1e6]
        rows.append(Row(label, values, paper, command=lab.command(overrides, on), note=note, aside=aside))
    table = Table("Recall and encoding time", [BITS_COLUMN, *RECALLS, ENCODING], rows, lab.on_paper_base)
    notes = [f"Encoding on {lab.threads} threads here, on 40 in the paper; a catalyzer's includes the network."]
    return Made([table], notes=base_note(lab) + notes)


def table1_jobs(_: Lab) -> list[list[str]]:
    """The trainings of Table 1."""
    return [overrides for label, (overrides, *_) in TABLE_1.items() if label.startswith("catalyzer + lattice")]


# Table 2: binary codes.

BITS = (16, 32, 64, 128)
TABLE_2 = {  # label: (overrides, BigANN1M, Deep1M); recall at 10 for 16, 32, 64, 128 bits
    "LSH": ([RAW, "quantizer=lsh"], (0.3, 2.6, 9.5, 24.4), (0.8, 4.9, 14.6, 32.2)),
    "ITQ": ([RAW, "quantizer=itq"], (1.5, 8.5, 22.8, 41.8), (1.0, 7.3, 21.0, None)),
    "catalyzer + sign": (["quantizer=sign", "d_out=${bits}"], (2.6, 11.1, 28.3, 52.2), (2.7, 11.4, 25.5, 46.8)),
}


def binary_overrides(overrides: Sequence[str], bits: int, seed: int) -> list[str]:
    return [*overrides, f"bits={bits}", f"seed={seed}"]


def table2(lab: Lab) -> Made:
    """LSH, ITQ and the signs of the catalyzer, mean and standard deviation over seeds."""
    short, long = [], []
    for label, (overrides, bigann, deep) in TABLE_2.items():
        means: list[float | None] = []
        deviations: list[float | None] = []
        for i, bits in enumerate(BITS):
            if label == "ITQ" and bits > lab.base_shape[1]:
                means.append(None)
                deviations.append(None)
                continue
            results = [lab.result(binary_overrides(overrides, bits, seed)) for seed in range(lab.seeds)]
            values = np.array([[v if v is not None else np.nan for v in recalls(r)] for r in results])
            # The deviation of the seeds that might have been, hence n - 1; one seed has none.
            spread = values.std(axis=0, ddof=1) if lab.seeds > 1 else np.full(3, np.nan)
            mean, deviation = ([float(v) if np.isfinite(v) else None for v in row] for row in (values.mean(axis=0), spread))
            means.append(mean[1])
            deviations.append(deviation[1])
            command = lab.command(binary_overrides(overrides, bits, 0))
            paper = published(lab, [None, None, bigann[i], None], [None, None, deep[i], None])
            long.append(Row(label, [bits, *mean], paper, [None, *deviation], command))
        command = lab.command([*overrides, "bits=BITS", "seed=SEED"])
        short.append(Row(label, means, published(lab, bigann, deep), deviations, command))
    over = f"mean ± standard deviation over {lab.seeds} seeds" if lab.seeds > 1 else "one seed"
    tables = [
        Table(f"R@10 of binary codes, {over}", [Column(f"{b} bits", "%", "higher") for b in BITS], short, lab.on_paper_base),
        Table(f"All recalls of binary codes, {over}", [BITS_COLUMN, *RECALLS], long, lab.on_paper_base),
    ]
    return Made(tables, notes=base_note(lab))


def table2_jobs(lab: Lab) -> list[list[str]]:
    """The trainings of Table 2."""
    overrides = TABLE_2["catalyzer + sign"][0]
    return [binary_overrides(overrides, bits, seed) for bits in BITS for seed in range(lab.seeds)]


# Table 3: the best λ by dimension.


def table3_overrides(d_out: int, lambda_: float) -> list[str]:
    # Of radius 10, as in the paper; 128 is what that takes in 40 dimensions, and the size decides nothing else.
    return [*LATTICE, f"d_out={d_out}", "quantizer.radius_sq=100", "bits=128", f"lambda={lambda_}"]


def table3(lab: Lab) -> Made:
    """The λ of the best recall@10 on the validation split, for each dimension; the test split is not used."""
    rows = []
    for d_out, paper in TABLE_3.items():
        found = [validation_recall(lab.trained(table3_overrides(d_out, value)).folder)[10] for value in lab.lambdas]
        best = lab.lambdas[int(np.argmax(found))]
        cells: list[Value] = [f"{best:g}", *(100 * recall for recall in found)]
        command = lab.command(table3_overrides(d_out, best))
        rows.append(Row(f"d_out = {d_out}", cells, [f"{paper:g}", *[None] * len(found)], command=command))
    columns = [Column("best λ"), *(Column(f"λ = {value:g}", "%", "higher") for value in lab.lambdas)]
    title = "Best λ, and R@10 on the validation split by λ"
    notes = ["Lattice of squared radius 100; one seed. The paper's λ are for Deep1M."]
    return Made([Table(title, columns, rows)], notes=notes)


def table3_jobs(lab: Lab) -> list[list[str]]:
    """The trainings of Table 3."""
    return [table3_overrides(d_out, value) for d_out in TABLE_3 for value in lab.lambdas]


# The large-scale experiment of section 5.3.

SIZES = [10_000, 30_000, 100_000, 300_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000]
LARGE = {  # label: (overrides, published R@10 for the 1B vectors of BigANN and of Deep1B)
    "OPQ": ([RAW, "quantizer=opq"], 21.3, 26.1),
    "catalyzer + lattice": (LATTICE, 36.5, 37.8),
}


def large_scale(lab: Lab) -> Made:
    """Recall against the size of the base, up to all of it."""
    whole = lab.base_shape[0]
    sizes = [*(size for size in SIZES if size < whole), whole]
    rows = []
    for label, (overrides, bigann, deep) in LARGE.items():
        for size in sizes:
            sized = [*overrides, *(lab.first(size) if size < whole else [])]
            paper = published(lab, [None, None, bigann, None], [None, None, deep, None], 64) if size == SIZES[-1] else None
            rows.append(Row(label, [size, *recalls(lab.result(sized, on=overrides))], paper, command=lab.command(sized)))
    table = Table(f"Recall by size of the base, {lab.common.bits} bits", [Column("base vectors", digits=0), *RECALLS], rows)
    marks = published(lab, [LARGE[label][1] for label in LARGE], [LARGE[label][2] for label in LARGE], 64)
    caption = "Recall@10 against the number of base vectors; stars: published, at a billion."
    return Made([table], {"large_scale": draw_large_scale(table, marks)}, {"large_scale": caption})


@styled()
def draw_large_scale(table: Table, marks: Sequence[Value] | None) -> "Figure":
    """R@10 against base size; `marks` are the published values at a billion, one a method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.6))
    axes = figure.subplots()
    for i, label in enumerate(LARGE):
        sizes, recall = np.array([(row.values[0], row.values[2]) for row in table.rows if row.label == label], dtype=float).T
        style = line_style(label)
        axes.plot(sizes, recall, label=label, **style)
        if marks is not None:
            axes.plot(1e9, float(marks[i]), marker="*", ms=11, color=style["color"], ls="", label=f"{label}, published")  # type: ignore[arg-type]
    axes.set_xscale("log")
    axes.set(xlabel="base vectors", ylabel="recall@10 (%)", ylim=(0, 102))
    axes.legend(loc="lower left")
    return figure


TABLES = {
    "table1": Target("Table 1: the catalyzer with lattice and OPQ", table1, table1_jobs),
    "table2": Target("Table 2: binary codes", table2, table2_jobs),
    "table3": Target("Table 3: the best λ by dimension", table3, table3_jobs),
    "large_scale": Target("Large scale (section 5.3)", large_scale, lambda _: [LATTICE]),
}
