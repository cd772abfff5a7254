"""Figures 3 and 7 against brute force."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from catalyzer.errors import InvalidInput
from catalyzer.files.vectors import open_vectors
from catalyzer.reproduce import distances as module
from catalyzer.reproduce.distances import (
    LATENT,
    ORIGINAL,
    Space,
    epsilon_search,
    figure3,
    figure7,
    neighbour_distances,
    overlap_probability,
    recall_thresholds,
    true_distances,
)


def small_space(random: np.random.Generator, n: int = 3000, queries: int = 600, dim: int = 6) -> Space:
    """Clusters of very unequal density, whole numbers so that float32 distances are exact; some base rows are repeated."""
    scale = random.choice([2, 10, 60], size=(n, 1))
    base = (random.normal(size=(n, dim)) * scale).round().astype(np.float32)
    base[-150:] = base[0]
    asked = base[random.integers(n, size=queries)] + random.integers(-2, 3, (queries, dim))
    return Space(asked.astype(np.float32), base)


def all_distances(space: Space) -> np.ndarray:
    return np.linalg.norm(space.queries[:, None].astype(np.float64) - space.base[:][None], axis=2)


whole = st.integers(0, 6).map(float)  # few values, so that there are ties


@given(arrays(np.float64, st.tuples(st.integers(2, 30), st.just(2)), elements=whole))
def test_overlap_is_that_of_all_pairs(pairs: np.ndarray) -> None:
    first, hundredth = np.sort(pairs, axis=1).T
    n = len(first)
    count = sum(first[i] > hundredth[j] for i in range(n) for j in range(n) if i != j)
    assert overlap_probability(first, hundredth) == count / (n * (n - 1))


def test_overlap_at_the_papers_two_extremes(random: np.random.Generator) -> None:
    scale = 4.0 ** random.permutation(140)  # "very imbalanced": each point has a scale of its own
    assert overlap_probability(scale, 2 * scale) == 0.5
    assert overlap_probability(np.full(50, 1.0), np.full(50, 1.5)) == 0
    assert overlap_probability(np.zeros(50), np.zeros(50)) == 0  # a tie is not larger


def test_neighbour_distances(random: np.random.Generator) -> None:
    space = small_space(random)
    expected = np.sort(all_distances(space), axis=1)[:, [0, 99]]
    np.testing.assert_allclose(neighbour_distances(space), expected, rtol=1e-6)
    duplicate = neighbour_distances(Space(np.asarray(space.base[:1]), space.base))
    np.testing.assert_array_equal(duplicate, [[0, 0]])  # 151 of them
    with pytest.raises(InvalidInput, match="100"):
        neighbour_distances(Space(space.queries, space.base[:99]))


def test_figure3(random: np.random.Generator) -> None:
    space = small_space(random)
    even = Space(*(random.uniform(size=(n, 2)).astype(np.float32) for n in (300, 3000)))
    figure, table = figure3(space, even)
    first, hundredth = neighbour_distances(space).T
    original, latent = table.rows
    assert (original.label, latent.label) == (ORIGINAL, LATENT)
    assert original.values[0] == pytest.approx(100 * overlap_probability(first, hundredth))
    assert latent.values[0] < original.values[0]  # type: ignore[operator]
    assert (table.paper_text(original, 0), table.paper_text(latent, 0)) == ("20.8", "5.0")
    assert all("distance" in axes.get_xlabel() for axes in figure.axes)
    assert table.text(original, 0) in figure.axes[0].get_title()
    shares = [patch.get_xy()[:, 1].max() for patch in figure.axes[0].patches]
    assert 0 < max(shares) <= 100


@pytest.mark.parametrize("blocks", [(2048, 512), (100, 7)])
def test_epsilon_search_counts_what_brute_force_counts(
    random: np.random.Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, blocks: tuple[int, int]
) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", blocks[0])
    monkeypatch.setattr(module, "BLOCK_QUERIES", blocks[1])
    space = small_space(random)
    np.save(tmp_path / "base.npy", space.base[:])
    on_disk = Space(space.queries, open_vectors(tmp_path / "base.npy"))
    everything = all_distances(space)
    truth = everything.argmin(1)
    found = true_distances(on_disk, truth)
    np.testing.assert_allclose(found, everything.min(1))

    thresholds = np.sqrt([0.5, 7.5, 40.5, 333.5, 1e5 + 0.5])  # between squared distances, which are whole
    search = epsilon_search(on_disk, found, thresholds)
    within = (everything[:, :, None] <= thresholds).sum(1)
    np.testing.assert_array_equal(search.results, within.mean(0))
    np.testing.assert_allclose(search.deviation, within.std(0))
    np.testing.assert_allclose(search.recall, (everything.min(1)[:, None] <= thresholds).mean(0))


def test_thresholds_are_the_lowest_of_their_recalls(random: np.random.Generator) -> None:
    distances = random.exponential(size=777)
    thresholds = recall_thresholds(distances)
    assert len(thresholds) == 99
    for percent, threshold in enumerate(thresholds, start=1):
        assert (distances <= threshold).mean() >= percent / 100 > (distances < threshold).mean()


def test_figure7(random: np.random.Generator) -> None:
    space = small_space(random)
    truth = all_distances(space).argmin(1)
    halved = Space(space.queries / 2, np.asarray(space.base) / 2)
    figure, table = figure7(space, halved, truth)
    original, latent = table.rows
    epsilon, results = [column.name for column in table.columns].index("ε for 80% recall"), 3
    assert table.columns[results].name == "results for 80% recall"
    # The same space at half the scale: half the threshold, the same results.
    assert latent.values[epsilon] == pytest.approx(original.values[epsilon] / 2)  # type: ignore[operator]
    assert latent.values[results] == pytest.approx(original.values[results], rel=0.01)
    everything = all_distances(space)
    within = (everything <= original.values[epsilon]).sum(1)
    assert original.values[results] == pytest.approx(within.mean())
    assert (everything.min(1) <= original.values[epsilon]).mean() >= 0.8
    assert table.paper_text(original, epsilon) == "0.54"
    assert table.paper_text(latent, results) == "200"

    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    marked = [float(text.get_text().removeprefix("ε = ")) for text in axes.texts]
    assert len(marked) >= 4
    for mark, text in zip(marked, axes.texts, strict=True):  # each ε is written at its recall
        scale = 1 if text.get_color() == "#D55E00" else 2
        exact = 100 * (everything.min(1) <= scale * mark).mean()
        assert text.xy[1] == pytest.approx(exact, abs=8)


def test_figure7_where_every_query_is_in_the_base(random: np.random.Generator) -> None:
    base = random.integers(0, 50, (500, 4)).astype(np.float32)
    space = Space(base[:100], base)
    table = figure7(space, space, np.arange(100))[1]
    assert table.rows[0].values[0] == 0  # ε
    assert table.rows[0].values[1] >= 1  # type: ignore[operator]  # the query itself

    # Vectors whose squared norms are rounded: the query is still within 0 of itself.
    on_sphere = random.normal(size=(500, 24))
    on_sphere = (on_sphere / np.linalg.norm(on_sphere, axis=1, keepdims=True)).astype(np.float32)
    search = epsilon_search(Space(on_sphere, on_sphere), np.zeros(500), np.zeros(1))
    assert (search.recall, search.results, search.deviation) == (1, 1, 0)
