"""Figures 3 and 7: distances of the nearest neighbours of each query, in the original space and after the catalyzer.

If the nearest neighbour of one query is farther than the hundredth of another, no single threshold on the distance suits both.
Figure 3 shows how often this happens, figure 7 its effect on a search by threshold.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from catalyzer.errors import InvalidInput
from catalyzer.files.vectors import Vectors, float_blocks
from catalyzer.neighbors import knn
from catalyzer.reproduce.outcome import Column, Row, Table, Value
from catalyzer.runs.figures import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANKS = (1, 100)
ORIGINAL, LATENT = "original space", "after the catalyzer"
RECALLS = (0.5, 0.8, 0.9)  # that the table of figure 7 lists
PAPER_OVERLAP = {ORIGINAL: 20.8, LATENT: 5.0}  # %
PAPER_EPSILON = {ORIGINAL: (0.54, 700), LATENT: (0.38, 200)}  # threshold and results at a recall of 80 %
PAPER_NOTE = "the paper's are of Deep1M"
# Line, marker, and the side of the curve on which ε is written, of the two spaces in figure 7.
LOOKS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    ORIGINAL: ({"color": "#D55E00", "ls": "--"}, {"marker": "^", "mfc": "white"}, {"xytext": (6, -8), "ha": "left"}),
    LATENT: ({"color": "#0072B2", "ls": "-"}, {"marker": "o"}, {"xytext": (-6, 2), "ha": "right"}),
}
BLOCK_ROWS, BLOCK_QUERIES = 2048, 512  # 4 MiB of distances, which stay in the processor's cache


class Space(NamedTuple):
    """Queries `(nq, d)` and base `(n, d)` as vectors of one space."""

    queries: np.ndarray
    base: Vectors


def figure3(original: Space, latent: Space) -> tuple["Figure", Table]:
    """Distances to the 1st and the 100th neighbour, for the same queries and base in both spaces, and their overlap.

    Raises:
        InvalidInput: fewer than 100 base vectors.
    """
    distances = {
        name: neighbour_distances(space, f"neighbours, {name}") for name, space in ((ORIGINAL, original), (LATENT, latent))
    }
    return draw_neighbour_distances(distances), overlap_table(distances)


def neighbour_distances(space: Space, description: str = "searching") -> np.ndarray:
    """Distances of each query to its 1st and its 100th nearest base vector, `(nq, 2)` float64, not squared.

    Each duplicate in the base counts, so the distance to the 100th may be 0.

    Raises:
        InvalidInput: fewer than 100 base vectors.
    """
    if len(space.base) < max(RANKS):
        raise InvalidInput(f"the {max(RANKS)}th neighbour needs {max(RANKS)} base vectors; there are {len(space.base)}")
    squared = knn(space.queries, space.base, max(RANKS), description)[0]
    # A squared distance is a difference of large terms, and that of a duplicate may come out a little below 0.
    return np.sqrt(squared[:, [rank - 1 for rank in RANKS]].clip(min=0).astype(np.float64))


def overlap_probability(first: np.ndarray, hundredth: np.ndarray) -> float:
    """Probability that a point's nearest neighbour is farther than another point's 100th (section 3.3).

    Exact, over all ordered pairs of two points; farther is strictly farther, as the paper's "larger" says.

    Args:
        first: `(n,)` distances to the nearest neighbour; n at least 2.
        hundredth: `(n,)` distances to the 100th, of the same points and so none below its `first`.

    Returns:
        A share of 1; one half where the scale of distances is all that matters, 0 in a uniform space.

    >>> overlap_probability(np.array([1.0, 5.0, 2.0]), np.array([2.0, 9.0, 3.0]))  # 5 > 2 and 5 > 3, of 6 pairs
    0.3333333333333333
    """
    n = len(first)
    if n < 2:
        raise InvalidInput("the overlap is one of pairs of queries, and there is only one")
    # A point's own 100th is never nearer than its 1st, so that the pairs of a point with itself count nothing.
    return int(np.searchsorted(np.sort(hundredth), first).sum()) / (n * (n - 1))


def overlap_table(distances: Mapping[str, np.ndarray]) -> Table:
    """The overlap in each space, by its name, and the distances' medians."""
    columns = [Column("overlap", "%", "lower"), *(Column(f"median distance to no. {rank}", digits=2) for rank in RANKS)]
    rows = [
        Row(
            name,
            [100 * overlap_probability(*pair.T), *(float(median) for median in np.median(pair, axis=0))],
            paper=[PAPER_OVERLAP[name], None, None],
            note=PAPER_NOTE,
        )
        for name, pair in distances.items()
    ]
    return Table("Figure 3: probability that a nearest neighbour is farther than another's 100th", columns, rows)


@styled()
def draw_neighbour_distances(distances: Mapping[str, np.ndarray]) -> "Figure":
    """One panel a space: histograms of the distances to the 1st and to the 100th neighbour, in bins of one width."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(6.6, 2.8))
    panels = figure.subplots(1, len(distances), sharey=True, squeeze=False)[0]
    for axes, (name, pair) in zip(panels, distances.items(), strict=True):
        edges = np.linspace(0, float(np.quantile(pair, 0.999)) * 1.02 or 1.0, 61)
        weights = np.full(len(pair), 100 / len(pair))
        first, hundredth = pair.T
        axes.hist(first, edges, weights=weights, histtype="stepfilled", fc="#0072B2", alpha=0.85, label="1st neighbour")
        axes.hist(hundredth, edges, weights=weights, histtype="stepfilled", fc="#E69F00", alpha=0.55, label="100th neighbour")
        axes.hist(hundredth, edges, weights=weights, histtype="step", ec="#8A5F00", lw=1, ls="--")
        axes.set(xlabel="Euclidean distance to the query", xlim=(0, edges[-1]))
        axes.set_title(f"{name}: overlap {100 * overlap_probability(first, hundredth):.1f}%")
    panels[0].set_ylabel("share of the queries")
    panels[0].yaxis.set_major_locator(MaxNLocator(5, integer=True))
    panels[0].yaxis.set_major_formatter(PercentFormatter(decimals=0))
    panels[0].legend(loc="upper left")
    return figure


@dataclass(frozen=True)
class EpsilonSearch:
    """What searches by threshold return: all base vectors within ε of the query.

    Attributes:
        thresholds: `(t,)` ε, ascending.
        recall: `(t,)` share of queries whose nearest neighbour in the original space is among the results.
        results: `(t,)` their number, mean over the queries.
        deviation: `(t,)` standard deviation of the number over the queries.
    """

    thresholds: np.ndarray
    recall: np.ndarray
    results: np.ndarray
    deviation: np.ndarray

    def at(self, recall: float) -> int:
        """Index of the lowest threshold that reaches `recall`, which some threshold must."""
        return int(np.argmax(self.recall >= recall))


def figure7(original: Space, latent: Space, truth: np.ndarray) -> tuple["Figure", Table]:
    """Recall against the number of results of a search by threshold (Appendix C), in both spaces, without quantization.

    Recall is that of section 5.1: the share of queries whose one true nearest neighbour is found.

    Args:
        original, latent: the same queries and base in both spaces. Time grows with queries times base; 10,000 queries in a
            million vectors take a minute a space on one core, about.
        truth: `(nq,)` row of each query's nearest neighbour in the original space.
    """
    searches = {}
    for name, space in ((ORIGINAL, original), (LATENT, latent)):
        distances = true_distances(space, truth)
        searches[name] = epsilon_search(space, distances, recall_thresholds(distances), f"counting results, {name}")
    return draw_epsilon(searches), epsilon_table(searches)


def true_distances(space: Space, truth: np.ndarray) -> np.ndarray:
    """Distance `(nq,)` float64 of each query to row `truth` of the base, in this space."""
    distances = np.empty(len(truth))
    start = 0
    for block in float_blocks(space.base, None):
        here = np.flatnonzero((start <= truth) & (truth < start + len(block)))
        pairs = space.queries[here].astype(np.float64) - block[truth[here] - start]
        distances[here] = np.linalg.norm(pairs, axis=1)
        start += len(block)
    return distances


def recall_thresholds(distances: np.ndarray) -> np.ndarray:
    """The lowest ε for recalls of 1, 2, ..., 99 %, where `distances` are those to the true neighbours."""
    return np.unique(np.quantile(distances, np.arange(1, 100) / 100, method="inverted_cdf"))


def epsilon_search(
    space: Space, distances: np.ndarray, thresholds: np.ndarray, description: str | None = "counting results"
) -> EpsilonSearch:
    """Count, for every query and every threshold, the base vectors that are no farther; on the GPU where torch sees one.

    Nothing but the counts, `(nq, t)`, and one block of distances is held in memory.

    Args:
        space: queries and base.
        distances: `(nq,)`, to the neighbour that each query should find, in this space.
        thresholds: `(t,)`, ascending.
        description: text of the progress display; None shows none.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    queries = torch.as_tensor(space.queries, dtype=torch.float32, device=device)
    parts = queries.split(BLOCK_QUERIES)
    # Squared distances are differences of squared norms; their rounding must not lose the vector that set the threshold.
    rounding = 2**-21 * queries.square().sum(1).max()
    bounds = torch.from_numpy(np.square(thresholds).astype(np.float32)).to(device) + rounding
    bins = len(bounds)
    counts = [torch.zeros(len(part) * bins, dtype=torch.int64, device=device) for part in parts]
    for block in float_blocks(space.base, description, BLOCK_ROWS):
        x = torch.from_numpy(block).to(device)
        norms = x.square().sum(1)
        for part, count in zip(parts, counts, strict=True):
            squared = torch.addmm(norms, part, x.T, alpha=-2).add_(part.square().sum(1, keepdim=True))
            # Few are within the largest threshold, and only those are sorted into bins: the first that includes them.
            rows, columns = torch.nonzero(squared <= bounds[-1], as_tuple=True)
            count += torch.bincount(rows * bins + torch.searchsorted(bounds, squared[rows, columns]), minlength=len(count))
    within = torch.cat(counts).view(-1, bins).cumsum(1).cpu().numpy()
    recall = np.searchsorted(np.sort(distances), thresholds, side="right") / len(distances)
    return EpsilonSearch(thresholds, recall, within.mean(axis=0), within.std(axis=0))


def epsilon_table(searches: Mapping[str, EpsilonSearch]) -> Table:
    """Threshold and number of results for a few recalls, by the name of the space."""
    columns: list[Column] = []
    rows: list[Row] = []
    for recall in RECALLS:
        text = f"for {recall:.0%} recall"
        columns += [Column(f"ε {text}", digits=2), Column(f"results {text}", "", "lower", 0)]
    columns.append(Column("their standard deviation / mean at 80%", "", "lower", 1))
    for name, search in searches.items():
        values: list[Value] = []
        paper: list[Value] = []
        for recall in RECALLS:
            i = search.at(recall)
            values += [float(search.thresholds[i]), float(search.results[i])]
            paper += [*PAPER_EPSILON[name]] if recall == 0.8 else [None, None]
        i = search.at(0.8)
        values.append(float(search.deviation[i] / search.results[i]))
        rows.append(Row(name, values, paper=[*paper, None], note=PAPER_NOTE))
    return Table("Figure 7: search by threshold, results per query", columns, rows)


@styled()
def draw_epsilon(searches: Mapping[str, EpsilonSearch]) -> "Figure":
    """Recall against the mean number of results; points on the curves are marked with their ε."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(5.2, 3.6))
    axes = figure.subplots()
    for name, search in searches.items():
        line, marker, place = LOOKS[name]
        axes.plot(search.results, 100 * search.recall, **line)
        low, high = search.thresholds[[search.at(0.1), search.at(0.95)]]
        marks = [tick for tick in MaxNLocator(6).tick_values(low, high) if low <= tick <= high]
        x, y = (np.interp(marks, search.thresholds, values) for values in (search.results, 100 * search.recall))
        axes.plot(x, y, **{**line, **marker, "ls": ""})
        for mark, *point in zip(marks, x, y, strict=True):
            text = f"ε = {mark:g}" if mark == marks[-1] else f"{mark:g}"
            axes.annotate(text, tuple(point), textcoords="offset points", fontsize=8, color=line["color"], **place)
        axes.plot([], [], **line, **marker, label=name)
    axes.set_xscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter())
    axes.set(xlabel="results per query (mean)", ylabel="recall of the true nearest neighbour", ylim=(0, 102))
    axes.legend(loc="upper left")
    return figure
