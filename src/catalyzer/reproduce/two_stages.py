"""Beyond the paper: gain and cost of a decoder and reranking, compared with other quantizers of the same size."""

from typing import TYPE_CHECKING

from catalyzer.reproduce.lab import Lab, Target
from catalyzer.reproduce.outcome import Column, Made, Row, Table, Value
from catalyzer.reproduce.pareto import Point, draw_pareto
from catalyzer.reproduce.tables import BITS_COLUMN, ENCODING, LATTICE, RAW, RECALLS, published, recalls

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINES = {"PQ": "pq", "OPQ": "opq", "RQ": "rq", "LSQ": "lsq", "ITQ": "itq"}
RERANKED = (0, 100, 500, 1000)
# How codes are chosen by what they decode to, the overrides for it, and what joins the points of the figures.
CHOSEN = {
    "refine 4": (["steps=0", "refine=4"], "refine 4 and 16"),
    "refine 16": (["steps=0", "refine=16"], "refine 4 and 16"),
    "steps 2": (["steps=2"], "steps 2"),
    "steps 2, refine 4": (["steps=2", "refine=4"], "steps 2"),
}
# Morozov and Babenko, ICCV 2019: what they publish, under COLUMNS, for BigANN1M at 64 bits.
UNQ: list[Value] = [64, None, 82.8, 99.0, None, None, None]


COLUMNS = [
    BITS_COLUMN,
    *RECALLS,
    ENCODING,
    Column("search", "ms per query", "lower", digits=2),
    Column("error", "mean |x - x̂|²", "lower", digits=3),
]


def with_decoder(lab: Lab) -> list[str]:
    """The overrides of the training with a decoder: the user's, or else that of experiment=decoder."""
    return [*LATTICE, next((text for text in lab.overrides if text.startswith("decoder=")), "decoder=residual")]


def two_stages(lab: Lab) -> Made:
    """Recall and time of search in one stage and in two, and of codes chosen by their decoded vectors."""
    base, decoder = lab.base_shape[0], with_decoder(lab)
    rows = []
    reranked = f"catalyzer + lattice (rerank {RERANKED[0]} to {RERANKED[-1]})"
    methods: list[tuple[str, list[str], list[str] | None, str]] = [
        *((label, [RAW, f"quantizer={name}"], None, "") for label, name in BASELINES.items()),
        ("catalyzer + lattice", LATTICE, None, ""),
        *((f"catalyzer + lattice (rerank {n})", [*decoder, "steps=0", f"rerank={n}"], decoder, reranked) for n in RERANKED),
        *(
            (f"catalyzer + lattice (rerank 500, {how})", [*decoder, *keys], decoder, f"catalyzer + lattice ({series})")
            for how, (keys, series) in CHOSEN.items()
        ),
    ]
    for label, overrides, on, series in methods:
        if label == "ITQ" and lab.common.bits > lab.base_shape[1]:
            continue
        result = lab.result(overrides, on)
        encoding, search = result.encoding / base * 1e6, result.search / lab.queries * 1e3
        values: list[Value] = [result.bits, *recalls(result), encoding, search, result.error]
        rows.append(Row(label, values, command=lab.command(overrides, on), series=series))
    if published(lab, UNQ, [], bits=64):
        note = "learned codebooks and a decoder, as its authors publish it; not measured here"
        rows.append(Row("UNQ", [None] * len(COLUMNS), UNQ, note=note))
    table = Table(f"Search in one stage and in two, {lab.common.bits} bits", COLUMNS, rows)
    return Made([table], *draw(table))


def draw(table: Table) -> tuple[dict[str, "Figure"], dict[str, str]]:
    """R@1 and R@10 against either time, and the captions."""
    names = [column.name for column in table.columns]
    figures, captions = {}, {}
    for cost, words in (("encoding", "time to encode a vector"), ("search", "time to search, a query")):
        column = table.columns[names.index(cost)]
        for k in (1, 10):
            rows = ((row, row.values[names.index(cost)], row.values[names.index(f"R@{k}")]) for row in table.rows)
            points = [
                Point(row.series or row.label, time, recall)
                for row, time, recall in rows
                if isinstance(time, float) and isinstance(recall, float)
            ]
            figure = f"{cost}_recall{k}"
            figures[figure] = draw_pareto(points, f"{cost} ({column.unit})", 10, f"recall@{k}")
            captions[figure] = f"Recall@{k} against {words}. In grey the Pareto front, from cheap to accurate."
    return figures, captions


TWO_STAGES = Target(
    "Beyond the paper: a decoder and search in two stages", two_stages, lambda lab: [LATTICE, with_decoder(lab)]
)
