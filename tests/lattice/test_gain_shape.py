"""Gain-shape lattices: what is kept of norms, by a byte for each vector or 3 bits for each block."""

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catalyzer import Codec, InvalidInput, LatticeQuantizer, ProductLattice, SphericalLattice
from catalyzer.lattice import GainShapeLattice, GainShapeProduct
from catalyzer.nn import Identity

LATTICES = [GainShapeLattice(SphericalLattice(24, 79)), GainShapeLattice(ProductLattice([(5, 7), (8, 10)]))]
# Blocks whose gain fits into the last byte of their point's number, and blocks whose gain has a byte of its own.
PRODUCTS = [GainShapeProduct(ProductLattice(each)) for each in ([(28, 42)] * 3, [(24, 79)], [(5, 7), (24, 79), (28, 42)])]


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 100), lattice=st.sampled_from(LATTICES))
def test_the_gain_is_the_length_of_the_projection(scale: float, seed: int, lattice: GainShapeLattice) -> None:
    y = (scale * np.random.default_rng(seed).normal(size=(50, lattice.dim))).astype(np.float32)
    codes = lattice.encode(y)
    shape = lattice.shape.decode(lattice.shape.encode(y))
    decoded = lattice.decode(codes)
    np.testing.assert_array_equal(codes[:, :-1], lattice.shape.encode(y))
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), (y * shape).sum(1), rtol=0.045)
    # So the error is hardly more than that of the projection onto the point.
    projected = shape * (y * shape).sum(1, keepdims=True)
    assert ((decoded - y) ** 2).sum() <= ((projected - y) ** 2).sum() + 0.045**2 * (projected**2).sum()


@pytest.mark.parametrize("lattice", LATTICES, ids=repr)
def test_torch_agrees(lattice: GainShapeLattice, random: np.random.Generator) -> None:
    y = random.normal(size=(500, lattice.dim)).astype(np.float32)
    codes = lattice.encode(y)
    by_torch = lattice.encode(torch.from_numpy(y)).numpy()
    # A projection between two gains may be rounded either way by another order of its sum.
    assert (np.abs(by_torch.astype(int) - codes) <= [0] * (lattice.code_size - 1) + [1]).all()
    np.testing.assert_array_equal(lattice.decode(torch.from_numpy(codes)).numpy(), lattice.decode(codes))


@settings(deadline=None, max_examples=30)
@given(spread=st.floats(0, 3), seed=st.integers(0, 100), lattice=st.sampled_from(PRODUCTS))
def test_the_gain_of_a_block_is_the_nearest_of_eight(spread: float, seed: int, lattice: GainShapeProduct) -> None:
    random = np.random.default_rng(seed)
    dims = [sphere.dim for sphere in lattice.spheres]
    scales = np.exp(spread * random.normal(size=(50, len(dims)))) / lattice.dim**0.5
    y = (np.repeat(scales, dims, axis=1) * random.normal(size=(50, lattice.dim))).astype(np.float32)
    codes = lattice.encode(y)
    assert codes.shape == (50, lattice.code_size)
    lattice.check_codes(codes)
    shapes, gains, decoded = lattice.shapes(codes), lattice.gains(codes), lattice.decode(codes)
    np.testing.assert_array_equal(shapes, lattice.shape.encode(y))
    z, at = lattice.shape.decode(shapes), 0
    for block, dim in enumerate(dims):
        own = slice(at, at + dim)
        at += dim
        np.testing.assert_allclose(decoded[:, own], z[:, own] * gains[:, block, None], rtol=1e-6)
        length = (y[:, own] * z[:, own]).sum(1) / (z[:, own] ** 2).sum(1)
        levels = np.exp((np.arange(8) - 4) / (2 * dim**0.5))
        # Between two levels it may be either.
        away = np.abs(np.log(np.maximum(length, 1e-9) / gains[:, block]))
        assert (away <= np.abs(np.log(np.maximum(length, 1e-9)[:, None] / levels)).min(axis=1) + 1e-5).all()


@pytest.mark.parametrize("lattice", PRODUCTS, ids=repr)
def test_torch_agrees_on_blocks(lattice: GainShapeProduct, random: np.random.Generator) -> None:
    y = (random.normal(size=(500, lattice.dim)) / lattice.dim**0.5).astype(np.float32)
    codes, by_torch = lattice.encode(y), lattice.encode(torch.from_numpy(y)).numpy()
    np.testing.assert_array_equal(lattice.shapes(by_torch), lattice.shapes(codes))
    assert (lattice.gains(by_torch) != lattice.gains(codes)).mean() < 0.01  # another order of sums, between two gains
    np.testing.assert_array_equal(lattice.decode(torch.from_numpy(codes)).numpy(), lattice.decode(codes))


def test_gains_of_blocks_lower_the_error(random: np.random.Generator) -> None:
    y = (random.normal(size=(2000, 224)) / 224**0.5).astype(np.float32)
    quantizers = [LatticeQuantizer(224, bits=512, gain=gain) for gain in ("blocks", True, False)]
    assert {quantizer.code_size for quantizer in quantizers} == {64}
    errors = [float(((quantizer.decode(quantizer.encode(y)) - y) ** 2).sum(1).mean()) for quantizer in quantizers]
    assert errors[0] < 0.9 * min(errors[1:])


def test_norms_beyond_the_range_are_at_its_ends() -> None:
    y = np.array([[0, 0], [1e-9, 0], [1e9, 0]], np.float32)
    decoded = GainShapeLattice(SphericalLattice(2, 1)).decode(GainShapeLattice(SphericalLattice(2, 1)).encode(y))
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), [2.0**-16, 2.0**-16, 2.0**15.875])


@pytest.mark.parametrize("gain", [True, "blocks"])
def test_a_quantizer_spends_some_of_its_bits(gain: bool | Literal["blocks"], random: np.random.Generator) -> None:
    quantizer = LatticeQuantizer(80, bits=256, gain=gain)
    assert (quantizer.bits <= 256, quantizer.code_size, sum(quantizer.spheres)) == (True, 32, 80)
    again = LatticeQuantizer(**quantizer.arguments)
    y = random.normal(size=(20, 80)).astype(np.float32) / 80**0.5
    np.testing.assert_array_equal(again.encode(y), quantizer.encode(y))
    near = quantizer.nearest(y, 3)
    assert near.shape == (20, 3, 80)
    np.testing.assert_allclose(near[:, 0], quantizer.decode(quantizer.encode(y)), rtol=0.06, atol=1e-6)
    assert "gain" not in LatticeQuantizer(24).arguments


def test_refusals() -> None:
    lattice = LATTICES[0]
    for call, message in [
        (lambda: lattice.decode(np.zeros((1, 8), np.uint8)), r"codes must be \(n, 9\) uint8, got \(1, 8\)"),
        (lambda: lattice.check_codes(np.full((2, 9), 255, np.uint8), 5), "row 5 holds the code"),
        (lambda: LatticeQuantizer(24, bits=8, gain=True), "bits must be an integer of at least 9"),
        (lambda: LatticeQuantizer(24, gain=True).straight_through(), "use gain=false"),
        (lambda: LatticeQuantizer(24, gain="blocks").straight_through(), "use gain=false"),
        (lambda: LatticeQuantizer(24, gain="block"), "gain must be True, False or \"blocks\", got 'block'"),  # type: ignore[arg-type]
        (lambda: Codec(Identity(24), LatticeQuantizer(24, gain="blocks")), "norms near those of the lattice; use gain=true"),
        (lambda: PRODUCTS[0].decode(np.zeros((1, 23), np.uint8)), r"codes must be \(n, 24\) uint8, got \(1, 23\)"),
        (lambda: PRODUCTS[0].check_codes(np.full((2, 24), 255, np.uint8), 5), "row 5 holds the code"),
        (lambda: PRODUCTS[1].check_codes(np.ones((2, 9), np.uint8), 5), "row 5 holds no code: bits are set that no code uses"),
        (lambda: PRODUCTS[0].first(2), "are scanned whole; fit with quantizer.gain=false"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            call()


def test_the_first_blocks_are_a_lattice() -> None:
    product = ProductLattice([(5, 7), (8, 10), (8, 10)])
    y = np.random.default_rng(0).normal(size=(30, 21)).astype(np.float32)
    for lattice in (product, GainShapeLattice(product)):
        for blocks in (1, 2):
            first = lattice.first(blocks)
            np.testing.assert_array_equal(first.encode(y[:, : first.dim]), lattice.encode(y)[:, : first.code_size])
        assert lattice.first(3) is lattice
        with pytest.raises(InvalidInput, match="blocks must be an integer between 1 and 3, the number of blocks"):
            lattice.first(4)
