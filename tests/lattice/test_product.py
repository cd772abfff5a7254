"""Products of spheres: block by block what the spheres do, and together what all their points would."""

import pickle
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from catalyzer import InvalidInput, ProductLattice, SphericalLattice, scan
from catalyzer.lattice.product import _radius_or_refusal
from catalyzer.nn import StraightThrough
from tests.helpers import all_points

SMALL = [[(2, 2), (3, 2)], [(2, 1), (2, 1), (3, 3)], [(3, 2), (2, 25), (3, 2)]]
LARGE = [
    [(32, 36)] * 4,
    [(21, 72), (21, 72), (18, 66)],
    [(24, 79), (16, 21), (24, 79)],
    [(128, 1), (40, 24)],
    [(24, 200), (24, 79)],
]


def points_of(blocks: list[tuple[int, int]]) -> np.ndarray:
    """All points of a product, `(num_points, dim)`."""
    return np.array([np.concatenate(each) for each in product(*(all_points(*block) for block in blocks))])


@pytest.mark.parametrize("blocks", SMALL)
def test_codes_are_a_bijection(blocks: list[tuple[int, int]]) -> None:
    lattice, points = ProductLattice(blocks), points_of(blocks)
    codes = lattice.encode(points.astype(np.float32))
    assert codes.shape == (lattice.num_points, lattice.code_size)
    assert len(np.unique(codes, axis=0)) == lattice.num_points
    np.testing.assert_array_equal(lattice.quantize(points.astype(np.float32)), points)
    np.testing.assert_allclose(lattice.decode(codes), lattice.vectors(points), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(lattice.decode(codes), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("blocks", SMALL)
def test_the_nearest_of_all_points(blocks: list[tuple[int, int]], random: np.random.Generator) -> None:
    lattice = ProductLattice(blocks)
    y = random.normal(size=(200, lattice.dim))
    vectors = lattice.vectors(points_of(blocks)).astype(np.float64)
    dots = y @ vectors.T
    np.testing.assert_allclose((y * lattice.vectors(lattice.quantize(y))).sum(1), dots.max(1), rtol=1e-5)
    for k in (1, 2, 7, min(200, lattice.num_points)):
        near = lattice.nearest(y, k)
        found = np.einsum("nd,nkd->nk", y, lattice.vectors(near.reshape(-1, lattice.dim)).reshape(near.shape))
        np.testing.assert_allclose(found, -np.sort(-dots, axis=1)[:, :k], atol=1e-5)
        assert all(len(np.unique(row, axis=0)) == k for row in near)


@pytest.mark.parametrize("blocks", LARGE)
def test_each_block_is_its_sphere_alone(blocks: list[tuple[int, int]], random: np.random.Generator) -> None:
    lattice = ProductLattice(blocks)
    y = random.normal(size=(3000, lattice.dim)).astype(np.float32)
    codes, points = lattice.encode(y), lattice.quantize(y)
    column = byte = 0
    for dim, radius_sq in blocks:
        sphere = SphericalLattice(dim, radius_sq)
        part = y[:, column : column + dim]
        np.testing.assert_array_equal(codes[:, byte : byte + sphere.code_size], sphere.encode(part))
        np.testing.assert_array_equal(points[:, column : column + dim], sphere.quantize(part))
        column, byte = column + dim, byte + sphere.code_size
    assert (column, byte) == (lattice.dim, lattice.code_size)
    np.testing.assert_allclose(lattice.decode(codes), lattice.vectors(points), atol=1e-6)
    np.testing.assert_array_equal(lattice.nearest(y[:50], 4)[:, 0], points[:50])


@pytest.mark.parametrize("blocks", LARGE)
def test_torch_gives_the_same(blocks: list[tuple[int, int]], random: np.random.Generator) -> None:
    lattice = ProductLattice(blocks)
    y = random.normal(size=(100, lattice.dim)).astype(np.float32)
    codes = lattice.encode(torch.from_numpy(y))
    np.testing.assert_array_equal(codes.numpy(), lattice.encode(y))
    np.testing.assert_array_equal(lattice.decode(codes).numpy(), lattice.decode(codes.numpy()))
    x = torch.from_numpy(y).requires_grad_()
    quantized = StraightThrough(lattice)(x)
    np.testing.assert_allclose(quantized.detach(), lattice.decode(codes.numpy()), atol=1e-6)
    quantized.sum().backward()
    assert (x.grad == 1).all()


@settings(deadline=None, max_examples=60)
@given(dim=st.integers(5, 600), bits=st.integers(8, 600))
@example(dim=257, bits=25)
def test_for_bits_keeps_to_the_numbers(dim: int, bits: int) -> None:
    if (
        not dim / 16 + 8 <= bits <= 3 * dim
    ):  # of fewer bits spheres of 128 dimensions have no points, of more there are too many
        return
    lattice = ProductLattice.for_bits(dim, bits)
    assert lattice.dim == dim
    assert lattice.bits <= bits
    assert lattice.code_size <= -(-bits // 8)
    assert max(sphere.code_size for sphere in lattice.spheres) <= 8
    y = np.random.default_rng(0).normal(size=(20, dim)).astype(np.float32)
    np.testing.assert_array_equal(lattice.encode(lattice.decode(lattice.encode(y))), lattice.encode(y))


@pytest.mark.parametrize(("dim", "bits"), [(20, 64), (48, 128), (128, 256), (168, 448), (256, 512), (512, 1024), (2048, 4096)])
def test_for_bits_wastes_few(dim: int, bits: int) -> None:
    assert ProductLattice.for_bits(dim, bits).bits > 0.97 * bits


def test_no_rows() -> None:
    lattice = ProductLattice([(8, 10), (8, 10), (5, 7)])
    none = np.empty((0, 21), np.float32)
    for y in (none, torch.from_numpy(none)):
        assert lattice.encode(y).shape == (0, lattice.code_size)
        assert lattice.quantize(y).shape == lattice.decode(lattice.encode(y)).shape == (0, 21)


def test_the_first_row_that_is_no_code_is_named(random: np.random.Generator) -> None:
    lattice = ProductLattice([(8, 10), (5, 7)])
    codes = lattice.encode(random.normal(size=(9, 13)))
    codes[5, 1], codes[2, -1] = 255, 255
    for call in (
        lattice.check_codes,
        lattice.decode,
        lambda codes: scan.search(lattice, np.ones((9, 13), np.float32), codes, 1),
    ):
        with pytest.raises(InvalidInput, match=r"row 2 holds the code .* in block 1"):
            call(codes)


def test_copies_are_equal() -> None:
    lattice = ProductLattice([(8, 10), (5, 7)])
    assert pickle.loads(pickle.dumps(lattice)).blocks == lattice.blocks


def test_refusals(random: np.random.Generator) -> None:
    lattice = ProductLattice([(8, 10), (8, 10), (5, 7)])
    y = random.normal(size=(10, 21)).astype(np.float32)
    codes = lattice.encode(y)
    codes[7, -1] = 255
    y[4, 20] = np.nan
    for call, message in [
        (lambda: lattice.encode(y), "row 4 contains NaN or infinity"),
        (lambda: lattice.encode(torch.from_numpy(y)), "row 4 contains NaN or infinity"),
        (lambda: lattice.quantize(y), "row 4 contains NaN"),
        (lambda: lattice.nearest(y, 2), "row 4 contains NaN"),
        (lambda: lattice.encode(y[:, :20]), r"expected vectors of shape \(n, 21\), got \(10, 20\)"),
        (lambda: lattice.decode(codes), r"row 7 holds the code \d+ in block 2, but SphericalLattice\(dim=5, radius_sq=7\)"),
        (lambda: lattice.decode(torch.from_numpy(codes)), "row 7 holds the code"),
        (lambda: lattice.decode(codes[:, 1:]), "codes must be"),
        (lambda: ProductLattice([]), "blocks must be pairs of a dimension and a squared radius"),
        (lambda: ProductLattice(5), "blocks must be pairs"),
        (lambda: ProductLattice([(2, 1, 3)]), "blocks must be pairs"),
        (lambda: ProductLattice([(2, 1.0)]), "radius_sq must be an integer"),
        (lambda: ProductLattice.for_bits(2, 65), "65 bits are too many for 2 dimensions"),
        (lambda: ProductLattice.for_bits(200, 9), "9 bits are too few for 200 dimensions"),
        (lambda: ProductLattice([(128, 11)] * 33), "dimensions of a product lattice must be .* got 4,?224"),
        (lambda: ProductLattice.for_bits(100, 4097), "bits of a product lattice must be"),
        (lambda: ProductLattice.for_bits(1000, 40), "40 bits are too few for 1000 dimensions"),
        (lambda: ProductLattice.for_bits(16, 64, blocks=9), "blocks must be .* between 1 and 8, for 16 dimensions and 64 bits"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            call()


def test_what_no_radius_fills_is_found_out_once() -> None:
    lattice = ProductLattice.for_bits(10, 80)  # not two blocks of 5 dimensions and 40 bits
    misses = _radius_or_refusal.cache_info().misses
    assert ProductLattice.for_bits(10, 80).blocks == lattice.blocks
    assert _radius_or_refusal.cache_info().misses == misses
    with pytest.raises(InvalidInput, match="5 dimensions need r² above 16,129 to fill 40 bits"):
        ProductLattice.for_bits(10, 80, blocks=2)
