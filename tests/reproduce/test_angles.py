"""Figure 4: planes, angles, and the constant area of the curve."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalyzer.errors import InvalidInput
from catalyzer.reproduce.angles import angular_histogram, bits_below_uniform, figure4, polar_outline, random_planes


@given(dim=st.integers(2, 40), seed=st.integers(0, 100))
def test_planes_are_orthonormal(dim: int, seed: int) -> None:
    planes = random_planes(dim, 3, seed)
    assert planes.shape == (3, 2, dim)
    np.testing.assert_allclose(planes @ planes.swapaxes(1, 2), np.broadcast_to(np.eye(2), (3, 2, 2)), atol=1e-12)


def test_planes_differ_and_are_reproduced_by_their_seed() -> None:
    first, second = random_planes(8, 2, 0)
    assert np.abs(first @ second.T).max() < 0.999
    np.testing.assert_array_equal(random_planes(8, 2, 0)[1], second)
    with pytest.raises(InvalidInput, match="2 dimensions"):
        random_planes(1, 1, 0)


@given(turns=st.lists(st.floats(-1, 1, allow_nan=False), min_size=1, max_size=50), bins=st.integers(2, 40))
def test_every_angle_is_counted_in_its_sector(turns: list[float], bins: int) -> None:
    # In the middle of sectors, where rounding decides nothing.
    sectors = np.floor(np.asarray(turns) * bins).astype(int) % bins
    angles = (sectors + 0.5) / bins * 2 * np.pi
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    np.testing.assert_array_equal(angular_histogram(points, np.eye(2), bins), np.bincount(sectors, minlength=bins))


def test_an_angle_just_below_zero_is_in_the_last_or_first_sector() -> None:
    points = np.array([[1.0, -1e-30], [1.0, -0.0], [1.0, -1e-9]], np.float64)
    histogram = angular_histogram(points, np.eye(2), 12)
    assert histogram[[0, -1]].sum() == 3


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=90).filter(any))
def test_the_area_inside_the_curve_is_that_of_the_unit_disk(counts: list[int]) -> None:
    angle, radius = polar_outline(np.asarray(counts))
    area = np.sum(radius[1:] ** 2 * np.diff(angle)[: len(radius) - 1].clip(min=0)) / 2  # arcs of constant radius
    assert area == pytest.approx(np.pi)
    assert angle[0] == angle[-1] == 0
    assert radius[0] == radius[-1]  # closed


def test_bits_below_uniform(random: np.random.Generator) -> None:
    assert bits_below_uniform(np.full(7, 3)) == pytest.approx(0)
    assert bits_below_uniform(np.eye(1, 16, dtype=int)[0] * 9) == 4
    points = random.normal(size=(50_000, 8))
    assert bits_below_uniform(angular_histogram(points, random_planes(8, 1, 0)[0])) < 0.003


def test_figure4(random: np.random.Generator) -> None:
    even = random.normal(size=(5000, 8)).astype(np.float32)
    figure, table = figure4({0.0: even + 1.5, 0.02: even + 0.3, 1.0: even})
    assert [row.label for row in table.rows] == ["λ = 0", "λ = 0.02", "λ = 1"]
    for plane in (0, 2):
        bits = [row.values[plane] for row in table.rows]
        assert bits == sorted(bits, reverse=True)
    assert len(figure.axes) == 6
    assert len({axes.get_ylim() for axes in figure.axes}) == 1  # areas can be compared
    assert [axes.get_title() for axes in figure.axes[:3]] == ["λ = 0", "λ = 0.02", "λ = 1"]
    assert table.text(table.rows[0], 0) in figure.axes[0].get_xlabel()
