"""Counts against enumeration and faiss; the choice of the radius."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalyzer import InvalidInput, SphericalLattice
from catalyzer.lattice import best_radius_sq, enumerate_atoms, num_atoms, num_points
from tests.helpers import all_points


@settings(deadline=None)
@given(dim=st.integers(2, 5), radius_sq=st.integers(1, 12))
def test_counts_are_those_of_all_points(dim: int, radius_sq: int) -> None:
    points = all_points(dim, radius_sq)
    assert num_points(dim, radius_sq) == len(points)
    atoms = np.unique(-np.sort(-np.abs(points), axis=1), axis=0)[::-1] if len(points) else np.zeros((0, dim))
    np.testing.assert_array_equal(enumerate_atoms(dim, radius_sq), atoms)
    assert num_atoms(dim, radius_sq) == len(atoms)


@pytest.mark.parametrize(("dim", "radius_sq"), [(24, 79), (32, 36), (40, 24), (16, 200)])
def test_counts_are_faiss_s(dim: int, radius_sq: int) -> None:
    assert num_points(dim, radius_sq) == faiss.ZnSphereCodec(dim, radius_sq).nv


@pytest.mark.parametrize(
    ("dim", "bits", "radius_sq"), [(16, 64, 515), (24, 64, 79), (32, 64, 36), (40, 64, 24), (24, 32, 10), (32, 32, 8)]
)
def test_the_papers_radii_are_the_largest_that_fit(dim: int, bits: int, radius_sq: int) -> None:
    assert best_radius_sq(dim, bits) == radius_sq
    assert num_points(dim, radius_sq) <= 1 << bits < num_points(dim, radius_sq + 1)


@settings(deadline=None, max_examples=50)
@given(dim=st.integers(6, 128), bits=st.integers(8, 64))
def test_the_best_radius_fits_and_is_the_last_that_does(dim: int, bits: int) -> None:
    try:
        best = best_radius_sq(dim, bits)
    except InvalidInput:
        assert 2 * dim > 1 << bits or dim < 16
        return
    assert 0 < num_points(dim, best) <= 1 << bits
    assert all(num_points(dim, r) > 1 << bits for r in range(best + 1, best + 20))


@pytest.mark.parametrize(
    ("dim", "radius_sq", "message"),
    [
        (24, -1, "radius_sq must be an integer between 1"),
        (24, 0, "radius_sq must be an integer between 1"),
        (3, 7, "no integer point of 3 dimensions has the squared norm r² = 7"),
        (1, 4, "dim must be an integer between 2"),
        (129, 4, "dim must be an integer between 2"),
        (24, 79.0, "must be an integer"),
        (24, 2000, "869,122,529 atoms"),
        (6, 9000, "needs tables of"),
        (64, 500, "needs codes of 219 bits"),
    ],
)
def test_refusals(dim: int, radius_sq: int, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        SphericalLattice(dim, radius_sq)


@pytest.mark.parametrize(
    ("dim", "bits", "message"),
    [(24, 5, "5 bits are too few for 24 dimensions"), (6, 64, "use more dimensions or fewer bits")],
)
def test_no_radius_fits(dim: int, bits: int, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        best_radius_sq(dim, bits)
