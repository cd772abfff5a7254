"""Nearest point, code and decode: against all points where they can be listed, against faiss where they cannot."""

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catalyzer import InvalidInput, SphericalLattice
from tests.helpers import all_points

SMALL = [(2, 25), (3, 6), (4, 9), (5, 7), (6, 4), (8, 2)]
LARGE = [(24, 79), (32, 36), (40, 24), (16, 200), (24, 10), (24, 3), (128, 2)]


def integers(codes: np.ndarray) -> list[int]:
    return [int.from_bytes(code, "little") for code in codes]


@pytest.mark.parametrize(("dim", "radius_sq"), SMALL)
def test_codes_are_a_bijection(dim: int, radius_sq: int) -> None:
    lattice = SphericalLattice(dim, radius_sq)
    points = all_points(dim, radius_sq)
    codes = lattice.encode(points.astype(np.float32))
    assert codes.dtype == np.uint8
    assert codes.shape == (lattice.num_points, lattice.code_size)
    assert sorted(integers(codes)) == list(range(lattice.num_points))
    np.testing.assert_allclose(lattice.decode(codes), points / radius_sq**0.5, atol=1e-6)


@pytest.mark.parametrize(("dim", "radius_sq"), SMALL)
def test_the_nearest_of_all_points(dim: int, radius_sq: int, random: np.random.Generator) -> None:
    y = random.normal(size=(500, dim)).astype(np.float32)
    nearest = SphericalLattice(dim, radius_sq).quantize(y)
    dots = y.astype(np.float64) @ all_points(dim, radius_sq).T
    np.testing.assert_allclose((y * nearest).sum(1), dots.max(1), rtol=1e-5)
    assert ((nearest.astype(int) ** 2).sum(1) == radius_sq).all()


@pytest.mark.parametrize(("dim", "radius_sq"), SMALL)
def test_the_k_nearest_of_all_points(dim: int, radius_sq: int, random: np.random.Generator) -> None:
    y = random.normal(size=(100, dim)).astype(np.float32)
    lattice, points = SphericalLattice(dim, radius_sq), all_points(dim, radius_sq)
    for k in {1, 2, min(30, lattice.num_points), min(500, lattice.num_points)}:
        found = lattice.nearest(y, k)
        dots = np.einsum("nd,nkd->nk", y.astype(np.float64), found)
        np.testing.assert_allclose(dots, -np.sort(-y.astype(np.float64) @ points.T, axis=1)[:, :k], atol=1e-9)
        assert all(len(np.unique(row, axis=0)) == k for row in found)
        assert ((found.astype(int) ** 2).sum(axis=2) == radius_sq).all()


@pytest.mark.parametrize(("dim", "radius_sq"), LARGE)
def test_the_first_of_the_nearest_is_the_nearest(dim: int, radius_sq: int, random: np.random.Generator) -> None:
    y = random.normal(size=(1000, dim)).astype(np.float32)
    lattice = SphericalLattice(dim, radius_sq)
    found = lattice.nearest(y, 5)
    np.testing.assert_array_equal(found[:, 0], lattice.quantize(y))
    dots = np.einsum("nd,nkd->nk", y.astype(np.float64), found)
    assert (np.diff(dots, axis=1) <= 1e-9).all()


def test_k_and_vectors_of_the_nearest_are_checked() -> None:
    lattice = SphericalLattice(3, 2)
    for k in (0, 13):
        with pytest.raises(InvalidInput, match=f"between 1 and 12, the number of points; got {k}"):
            lattice.nearest(np.ones((2, 3)), k)
    with pytest.raises(InvalidInput, match="row 1 contains NaN or infinity"):
        lattice.nearest(np.array([[1, 2, 3], [1, np.nan, 3]]), 2)


@pytest.mark.parametrize(("dim", "radius_sq"), LARGE[:5])
def test_never_worse_than_faiss(dim: int, radius_sq: int, random: np.random.Generator) -> None:
    n = 20_000
    y = random.normal(size=(n, dim)).astype(np.float32)
    theirs, dots = np.empty((n, dim), np.float32), np.empty(n, np.float32)
    faiss.ZnSphereSearch(dim, radius_sq).search_multi(n, *map(faiss.swig_ptr, (y, theirs, dots)))
    ours = SphericalLattice(dim, radius_sq).quantize(y)
    exact = y.astype(np.float64)
    assert ((exact * ours).sum(1) >= (exact * theirs).sum(1) - 1e-9).all()


@settings(deadline=None, max_examples=60)
@given(case=st.sampled_from(SMALL + LARGE), data=st.data())
def test_round_trip_of_codes(case: tuple[int, int], data: st.DataObject) -> None:
    lattice = SphericalLattice(*case)
    edges = [0, lattice.num_points - 1]
    numbers = edges + data.draw(st.lists(st.integers(0, lattice.num_points - 1), max_size=20))
    codes = np.array([list(n.to_bytes(lattice.code_size, "little")) for n in numbers], np.uint8)
    vectors = lattice.decode(codes)
    np.testing.assert_allclose((vectors**2).sum(1), 1, rtol=1e-5)
    assert integers(lattice.encode(vectors)) == numbers


@settings(deadline=None)
@given(y=st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=24, max_size=24), scale=st.floats(0.01, 100))
def test_points_do_not_depend_on_the_norm(y: list[float], scale: float) -> None:
    lattice = SphericalLattice(24, 79)
    x = np.array([y], np.float64)
    np.testing.assert_array_equal(lattice.quantize(x), lattice.quantize(x * 2.0 ** round(np.log2(scale))))


def test_zeros_and_ties_are_defined() -> None:
    lattice = SphericalLattice(4, 2)
    y = np.array([[0, 0, 0, 0], [-0.0, 0, -0.0, 0], [1, 1, 1, 1], [-1, 0, 0, -0.0]], np.float32)
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [-1, 1, 0, 0]]
    np.testing.assert_array_equal(lattice.quantize(y), expected)


def test_no_vectors_make_no_codes() -> None:
    lattice = SphericalLattice(24, 79)
    assert lattice.encode(np.empty((0, 24), np.float32)).shape == (0, 8)
    assert lattice.decode(np.empty((0, 8), np.uint8)).shape == (0, 24)


def test_torch_in_torch_out(random: np.random.Generator) -> None:
    lattice = SphericalLattice(24, 79)
    y = random.normal(size=(50, 24)).astype(np.float32)
    tensor = torch.from_numpy(y)
    for of_array, of_tensor in (
        (lattice.quantize(y), lattice.quantize(tensor)),
        (lattice.encode(y), lattice.encode(tensor)),
        (lattice.decode(lattice.encode(y)), lattice.decode(lattice.encode(tensor))),
    ):
        assert isinstance(of_tensor, torch.Tensor)
        np.testing.assert_array_equal(of_array, of_tensor.numpy())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_refused_with_its_row(value: float) -> None:
    y = np.ones((5, 24), np.float32)
    y[3, 7] = value
    with pytest.raises(InvalidInput, match="row 3 contains NaN or infinity"):
        SphericalLattice(24, 79).encode(y)


def test_a_code_beyond_the_last_is_refused_with_its_row() -> None:
    lattice = SphericalLattice(24, 10)
    codes = np.zeros((4, 4), np.uint8)
    codes[2] = list(lattice.num_points.to_bytes(4, "little"))
    with pytest.raises(InvalidInput, match="row 2 holds the code 2319457632"):
        lattice.decode(codes)


def test_wrong_shapes_are_refused() -> None:
    lattice = SphericalLattice(24, 79)
    with pytest.raises(InvalidInput, match=r"\(n, 24\), got \(2, 23\)"):
        lattice.encode(np.ones((2, 23), np.float32))
    with pytest.raises(InvalidInput, match=r"\(n, 8\) uint8"):
        lattice.decode(np.ones((2, 7), np.uint8))
    with pytest.raises(InvalidInput, match=r"\(n, 8\) uint8"):
        lattice.decode(np.ones((2, 8), np.int64))
