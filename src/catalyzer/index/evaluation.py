"""Recall and time of a user's queries over a grid of settings."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from catalyzer.errors import InvalidInput, finite, integer
from catalyzer.files.atomic import write_atomically
from catalyzer.files.paths import expanded
from catalyzer.files.vectors import BLOCK
from catalyzer.index.contents import Contents
from catalyzer.index.ids import IdSource, distinct_ids
from catalyzer.index.source import VectorSource, name_of, open_queries, open_source, valid_rows
from catalyzer.metric import Metric
from catalyzer.neighbors import knn_of_blocks
from catalyzer.progress import progress
from catalyzer.runs.figures import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

RERANKS = (0, 20, 50, 100, 500)  # candidates
NPROBES = (2, 4, 8, 16, 32, 64, 128)  # lists
ALONE = 100  # queries that are searched one by one
ROUNDS, SECONDS = 3, 1.0  # all queries are searched again, up to so often, while that has taken less time
ERRORS = 2  # standard errors by which a recall must be above what is wanted, so that it holds for other queries

Time = Literal["alone", "together"]
Share = Literal["recall_at_k", "overlap"]


@dataclass(frozen=True)
class Measured:
    """Recall of a search with one setting, as shares from 0 to 1, and its time, in µs per query.

    Attributes:
        rerank: number of candidates that were reranked.
        nprobe: number of lists that were scanned; None for an index without lists.
        blocks: number of blocks of each code that were scanned, from the first; None for all.
        recall_at_1: share of queries whose true nearest neighbour came first.
        recall_at_k: share of queries whose true nearest neighbour was among the first k.
        overlap: share of the k true nearest neighbours that were among the k found ("k-recall@k").
        alone: median time of a query, with one query per call.
        together: time per query, with all queries in one call; the median of three calls if they take less than a second.
    """

    rerank: int
    nprobe: int | None
    blocks: int | None
    recall_at_1: float
    recall_at_k: float
    overlap: float
    alone: float
    together: float

    def __str__(self) -> str:
        others = {"nprobe": self.nprobe, "blocks": self.blocks}
        return f"rerank={self.rerank}" + "".join(f", {name}={value}" for name, value in others.items() if value is not None)


@dataclass(frozen=True)
class Evaluation:
    """An index measured on some queries.

    Attributes:
        k: results per query.
        queries: number of queries.
        vectors: number of vectors that were searched.
        code_size: bytes of a code; the index has 8 more for each id.
        rows: results, one for each setting.
    """

    k: int
    queries: int
    vectors: int
    code_size: int
    rows: list[Measured]

    def cheapest(self, recall: float, what: Time = "alone", share: Share = "recall_at_k") -> Measured:
        """The fastest setting whose recall exceeds a target by two standard errors, so that other queries reach it too.

        Args:
            recall: target, from 0 to 1.
            what: which time is compared.
            share: which recall is compared: R@k, or the overlap with the k true neighbours.

        Raises:
            InvalidInput: no setting reaches it.
        """
        if not 0 < finite("recall", recall) < 1:
            raise InvalidInput(f"recall must be a share between 0 and 1, such as 0.9; got {recall}")
        if what not in get_args(Time):
            raise InvalidInput(f"what must be one of {', '.join(get_args(Time))}; got {what!r}")
        if share not in get_args(Share):
            raise InvalidInput(f"share must be one of {', '.join(get_args(Share))}; got {share!r}")
        found = [(getattr(row, share), row) for row in self.rows]
        enough = [row for value, row in found if value - ERRORS * self._error(value) >= recall]
        if not enough:
            value, best = max(found, key=lambda pair: pair[0])
            raise InvalidInput(
                f"no setting reliably reaches {self.name(share)} {recall:.1%} on {self.queries:,} queries; the best is {best} "
                f"with {value:.1%} ± {ERRORS * self._error(value):.1%}; try other settings, give more queries, or fit an index "
                "of more bits"
            )
        return min(enough, key=lambda row: getattr(row, what))

    def name(self, share: Share) -> str:
        """What tables call a recall, such as "R@10" and "10 of 10"."""
        return f"R@{self.k}" if share == "recall_at_k" else f"{self.k} of {self.k}"

    def _error(self, recall: float) -> float:
        # Of a share, by Agresti and Coull, which is not 0 where all were found. That of an overlap is at most as large.
        n = self.queries + 4
        share = (recall * self.queries + 2) / n
        return (share * (1 - share) / n) ** 0.5

    def as_json(self) -> dict[str, Any]:
        """The evaluation as numbers, lists and dicts."""
        return asdict(self)

    def table(self) -> "Table":
        """The evaluation as a table for a terminal."""
        from rich.table import Table

        title = f"{self.vectors:,} vectors in {self.code_size} bytes each and 8 for an id, {self.queries:,} queries"
        table = Table(title=title, title_justify="left")
        given = [name for name in ("nprobe", "blocks") if any(getattr(row, name) is not None for row in self.rows)]
        settings = ["rerank", *given]
        found = ["R@1", *([self.name("recall_at_k"), self.name("overlap")] if self.k > 1 else [])]
        for name in (*settings, *found, "alone, µs", "at once, µs"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            shares = [f"{100 * share:.1f}" for share in (row.recall_at_1, row.recall_at_k, row.overlap)]
            times = (f"{row.alone:,.0f}", f"{row.together:,.0f}")
            table.add_row(*(str(getattr(row, name)) for name in settings), *shares[: len(found)], *times)
        return table

    @styled()
    def figure(self) -> "Figure":
        """Recall@k against time, one line for each number of candidates and blocks."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        reranks, scans = ([*dict.fromkeys(getattr(row, name) for row in self.rows)] for name in ("rerank", "blocks"))
        columns = 5 if scans == [None] else 3  # labels that name blocks are longer
        figure = Figure(figsize=(6.6, 3.4 + 0.2 * -(-len(reranks) * len(scans) // columns)))
        sides = figure.subplots(1, 2, sharey=True)
        for side, what, title in zip(sides, ("alone", "together"), ("one query at a time", "all queries at once"), strict=True):
            for (i, rerank), (j, blocks) in product(enumerate(reranks), enumerate(scans)):
                rows = [row for row in self.rows if (row.rerank, row.blocks) == (rerank, blocks)]
                points = [(getattr(row, what), 100 * row.recall_at_k) for row in rows]
                look = {"color": f"C{i}", "marker": "os^vD"[j % 5], "label": str(replace(rows[0], nprobe=None))}
                side.plot(*zip(*points, strict=True), **look)
            for row, point in zip(rows, points, strict=True):  # those of the last line, which the others follow
                if row.nprobe is not None:
                    side.annotate(f"{row.nprobe}", point, (5, -4), textcoords="offset points", va="top", fontsize=8)
            side.set(xscale="log", xlabel="µs per query", title=title)
            side.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            side.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            side.xaxis.set_minor_formatter(NullFormatter())
            side.set_ylim(top=min(side.get_ylim()[1], 100.5))
        sides[0].set_ylabel(f"R@{self.k}, %")
        handles, labels = sides[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), columns))
        numbered = "; numbers: nprobe" if any(row.nprobe is not None for row in self.rows) else ""
        figure.suptitle(f"{self.vectors:,} vectors in {self.code_size} bytes each, {self.queries:,} queries{numbered}")
        figure.draw_without_rendering()  # which makes the ticks, in this style
        return figure

    @styled()
    def draw(self, path: str | Path) -> None:
        """Write the figure, in the format that the file's extension names."""
        kind = figure_format(path := expanded(path))
        write_atomically(path, lambda file: self.figure().savefig(file, format=kind))


def figure_format(path: Path) -> str:
    """matplotlib's name of the format that a file's extension names; raises `InvalidInput` for one that it cannot write."""
    if (kind := path.suffix[1:].lower()) not in ("png", "svg", "pdf"):
        raise InvalidInput(f"{path}: expected a name that ends in .png, .svg or .pdf")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InvalidInput(f"{path}: expected a file in an existing folder; give another name")
    return kind


class Setting(NamedTuple):
    """Candidates to rerank, lists to probe, None without lists, and first blocks to scan, None for all."""

    rerank: int
    nprobe: int | None
    blocks: int | None


Search = Callable[[np.ndarray, Setting], np.ndarray]
"""`(nq, d)` queries and a setting to `(nq, k)` ids."""


def evaluate(
    contents: Contents,
    search: Search,
    queries: VectorSource,
    base: VectorSource | None,
    *,
    truth: VectorSource | None,
    ids: IdSource | None,
    k: int,
    rerank: Sequence[int] | None,
    nprobe: Sequence[int] | None,
    blocks: Sequence[int] | None,
) -> Evaluation:
    """See `CatalyzerIndex.evaluate`.

    Args:
        contents: contents of the index.
        search: search in it, for k results.
        queries: queries as given by the user, like the rest.
    """
    source, _ = open_queries(queries, contents.d)
    if (base is None) == (truth is None):
        raise InvalidInput("give either base, the vectors of the index, or truth, the ids of the true neighbours")
    if ids is not None and base is None:
        raise InvalidInput("ids belong to base, but truth was given instead of base; leave out ids")
    if not len(contents.ids):
        raise InvalidInput("the index is empty; add vectors first")
    k = integer("k", k, 1, len(contents.ids), "the number of vectors")
    for name, grid in (("rerank", rerank), ("nprobe", nprobe), ("blocks", blocks)):
        listed = grid.ndim == 1 if isinstance(grid, np.ndarray) else isinstance(grid, Sequence)
        if grid is not None and not (listed and len(grid) and all(number is not None for number in grid)):
            raise InvalidInput(f"{name} must be a list of at least one number, got {grid!r}")
    x, _ = valid_rows(source, 0, len(source), Metric(contents.metric.name), None)
    if not len(x):
        raise InvalidInput("expected at least one query, got none")
    if rerank is None:
        reranks = RERANKS if contents.codec.reranking_pays or blocks is not None else RERANKS[:1]
        rerank = sorted({min(n, len(contents.ids)) for n in reranks})
    if nprobe is None and contents.lists is not None:
        nprobe = [n for n in NPROBES if n <= len(contents.lists)]
    probes: Sequence[int | None] = [None] if nprobe is None else nprobe
    scanned: Sequence[int | None] = [None] if blocks is None else blocks
    settings = [Setting(*each) for each in product(rerank, probes, scanned)]
    for setting in settings:  # what cannot be searched is refused before the exact search
        search(x[:1], setting)
    for setting in {settings[0], settings[-1]}:  # compiled loops are loaded
        search(x, setting)
    return Evaluation(
        k,
        len(x),
        len(contents.ids),
        contents.codec.quantizer.code_size,
        _measured(search, x, _true_neighbours(contents, base, truth, ids, x, k), settings),
    )


def _true_neighbours(
    contents: Contents, base: VectorSource | None, truth: VectorSource | None, ids: IdSource | None, x: np.ndarray, k: int
) -> np.ndarray:
    """`(nq, k)` ids, nearest first: those that are given, or by exact search with the metric of the index."""
    if base is None:
        given = open_source(truth)[:]  # type: ignore[arg-type]
        if len(given) != len(x) or given.shape[1] < k or given.dtype.kind not in "iu":
            raise InvalidInput(
                f"truth must be integers of shape ({len(x):,}, at least {k}), got {given.shape} of {given.dtype}"
            )
        missing = contents.find(given[:, :k].astype(np.int64).ravel()) < 0
        if missing.any():
            raise InvalidInput(
                f"truth has {int(missing.sum()):,} ids that are not in the index, the first of them "
                f"{given[:, :k].ravel()[np.argmax(missing)]:,}; give the true neighbours among its vectors"
            )
        return given[:, :k]
    vectors, metric = open_source(base, contents.d), contents.metric
    names = np.arange(len(vectors)) if ids is None else distinct_ids(len(vectors), ids)
    if len(names) != len(contents.ids) or (contents.find(names) < 0).any():
        raise InvalidInput(
            f"{name_of(vectors)}expected the vectors of the index, {_told(contents.ids)}; got {_told(names)}; "
            "give the file that was added and its ids (--ids), or give truth"
        )

    def blocks() -> Iterator[np.ndarray]:
        with progress("exact search", len(vectors), "vectors") as advance:
            for first in range(0, len(vectors), BLOCK):
                block, _ = valid_rows(vectors, first, BLOCK, metric, None)
                yield metric.base(block)
                advance(len(block))

    return names[knn_of_blocks(metric.queries(x), blocks(), k)[1]]


def _told(ids: np.ndarray) -> str:
    return f"{len(ids):,} with ids from {ids.min():,} to {ids.max():,}" if len(ids) else "none"


def _measured(search: Search, x: np.ndarray, truth: np.ndarray, settings: Sequence[Setting]) -> list[Measured]:
    rows = []
    with progress("measuring", len(settings), "settings") as advance:
        for setting in settings:
            alone: list[float] = []
            together: list[float] = []
            while not together or (len(together) < ROUNDS and sum(together) < SECONDS):
                start = time.perf_counter()
                ids = search(x, setting)
                together.append(time.perf_counter() - start)
            for row in range(min(ALONE, len(x))):
                start = time.perf_counter()
                search(x[row : row + 1], setting)
                alone.append(time.perf_counter() - start)
            nearest = ids == truth[:, :1]
            overlap = np.mean([np.isin(found, true).mean() for found, true in zip(ids, truth, strict=True)])
            recalls = (float(nearest[:, 0].mean()), float(nearest.any(axis=1).mean()), float(overlap))
            nprobe, blocks = (None if number is None else int(number) for number in setting[1:])
            times = (1e6 * float(np.median(alone)), 1e6 * float(np.median(together)) / len(x))
            rows.append(Measured(int(setting.rerank), nprobe, blocks, *recalls, *times))
            advance(1)
    return rows
