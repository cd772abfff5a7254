"""Figure 2: the hexagonal lattice, the measures, and the trade-off that the figure shows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from catalyzer.reproduce import toy


@given(seed=st.integers(0, 1000), spacing=st.floats(0.05, 0.8))
def test_the_nearest_point_of_a2_is_the_nearest_of_all(seed: int, spacing: float) -> None:
    points = np.random.default_rng(seed).uniform(-1, 1, (20, 2)) / np.sqrt(2)
    cells = toy.hexagonal_cells(spacing)
    nearest = np.linalg.norm(points[:, None] - cells, axis=2).min(1)
    found = toy.nearest_hexagonal(points, spacing)
    assert np.linalg.norm(points - found, axis=1) == pytest.approx(nearest)
    assert np.linalg.norm(found[:, None] - cells, axis=2).min(1) == pytest.approx(0, abs=1e-9)


def test_the_cells_are_those_that_points_of_the_disk_fall_into(random: np.random.Generator) -> None:
    angle, radius = 2 * np.pi * random.uniform(size=200_000), np.sqrt(random.uniform(size=200_000))
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    cells = toy.hexagonal_cells()
    assert toy.occupancy(toy.nearest_hexagonal(points))[0] == len(cells)
    assert len(np.unique(cells.round(6), axis=0)) == len(cells)


def test_a_cell_reaches_half_way_to_the_next() -> None:
    corners = toy.hexagon(0.2)
    x, y = corners.T
    area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
    assert area == pytest.approx(0.2**2 * np.sqrt(3) / 2)  # of the lattice's fundamental region
    assert np.linalg.norm((corners + np.roll(corners, 1, axis=0)) / 2, axis=1) == pytest.approx(0.1)
    inside = toy.nearest_hexagonal(0.999 * corners, 0.2)
    assert np.abs(inside).max() < 1e-12


def test_tied_recall_shares_places_among_ties() -> None:
    line = np.array([[0.0], [1.0], [1.0], [3.0]])
    # Of row 0, rows 1 and 2 tie for the first place; rows 1 and 2 find each other; of row 3 they tie again.
    assert toy.tied_recall(line, line, np.array([1, 2, 1, 1]), k=1) == pytest.approx((0.5 + 1 + 1 + 0.5) / 4)
    assert toy.tied_recall(line, line, np.array([1, 2, 1, 1]), k=2) == 1
    assert toy.tied_recall(line, line, np.array([3, 3, 3, 0]), k=2) == 0


def test_more_koleo_fills_more_cells_and_keeps_fewer_neighbours(
    monkeypatch: pytest.MonkeyPatch, random: np.random.Generator
) -> None:
    monkeypatch.setattr(toy, "EPOCHS", 15)  # enough for the ends of the trade-off
    learn, shown = toy.toy_points(1024, random), toy.toy_points(500, random)
    state = torch.get_rng_state()
    results = []
    for lambda_ in (0.0, 0.1, 1.0):  # the last one may overshoot to the rim, and then loses neighbours all the more
        network = toy.train_toy(learn, lambda_, seed=0)
        with torch.inference_mode():
            latent = network(torch.from_numpy(shown)).numpy()
        assert np.linalg.norm(latent, axis=1).max() < 1
        results.append(toy.measure_toy(shown, latent, lambda_))
    none, some, much = results
    assert torch.equal(torch.get_rng_state(), state)
    assert some.used > 1.2 * none.used  # on another processor the same seed gives another network
    assert some.entropy > none.entropy + 0.2
    assert much.kept < none.kept - 0.1
    again = toy.train_toy(learn, 1.0, seed=0)(torch.from_numpy(shown)).detach().numpy()
    np.testing.assert_array_equal(again, much.latent)

    table = toy.toy_table(results, random)
    assert [row.label for row in table.rows] == ["λ = 0", "λ = 0.1", "λ = 1", "drawn evenly from the disk"]
    assert table.rows[-1].values[-1] > some.entropy  # type: ignore[operator]
    figure = toy.draw_toy(shown, results)
    assert [axes.get_title() for axes in figure.axes] == ["input", "λ = 0", "λ = 0.1", "λ = 1"]
    assert f"{109 - much.used} of 109 cells empty" in figure.axes[3].get_xlabel()
    empty = figure.axes[3].collections[0].get_facecolor()[:, 0] < 0.9  # grey cells
    assert empty.sum() == 109 - much.used


def test_colours_are_valid_and_continuous(random: np.random.Generator) -> None:
    points = toy.toy_points(500, random)
    colors = toy.position_colors(points)
    assert 0 <= colors.min() <= colors.max() <= 1
    nearest = toy.knn_graph(points, 1)[:, 0]
    typical = np.linalg.norm(colors - colors[random.permutation(500)], axis=1).mean()
    assert np.linalg.norm(colors - colors[nearest], axis=1).mean() < typical / 10
