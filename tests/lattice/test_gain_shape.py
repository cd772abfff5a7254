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
NESTED = GainShapeProduct(ProductLattice([(40, 25), (40, 21), (24, 79)]), norms=[0.8, 0.5, 0.33])


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
@given(spread=st.floats(0, 3), seed=st.integers(0, 100), lattice=st.sampled_from([*PRODUCTS, NESTED]))
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
        of_shape = (dim / lattice.dim) ** 0.5
        levels = np.exp((np.arange(8) - 4) / (2 * dim**0.5))
        if lattice is NESTED:
            levels *= lattice.norms[block] / of_shape
            if block == 0:
                np.testing.assert_allclose(np.linalg.norm(decoded[:, own], axis=1), 0.8, rtol=1e-5)
                continue
        # Between two levels it may be either.
        away = np.abs(np.log(np.maximum(length, 1e-9) / gains[:, block]))
        assert (away <= np.abs(np.log(np.maximum(length, 1e-9)[:, None] / levels)).min(axis=1) + 1e-5).all()


@pytest.mark.parametrize("lattice", [*PRODUCTS, NESTED], ids=repr)
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
        (lambda: PRODUCTS[0].first(2), "are no codes themselves; fit with catalyzer.nested=true"),
        (
            lambda: GainShapeProduct(NESTED.shape, [1, 2]),
            r"norms must be a number from 1e-06 to 1000000 for each of 3 blocks, got \[1, 2\]",
        ),
        (lambda: GainShapeProduct(NESTED.shape, [1, 2, np.nan]), "norms must be a number from"),
        (lambda: GainShapeProduct(NESTED.shape, [1, 2, "a"]), "norms must be a number from"),  # type: ignore[list-item]
        (lambda: GainShapeProduct(NESTED.shape, [1e300] * 3), "norms must be a number from"),
        (lambda: LatticeQuantizer(80, 128, norms=[1, 1]), 'norms are for gain="blocks", and gain is None'),
    ]:
        with pytest.raises(InvalidInput, match=message):
            call()


def test_the_first_of_nested_blocks_are_codes() -> None:
    y = np.random.default_rng(0).normal(size=(30, NESTED.dim)).astype(np.float32) / 10
    codes = NESTED.encode(y)
    for blocks, dim in ((1, 40), (2, 80), (3, 104)):
        first = NESTED.first(blocks)
        own = np.ascontiguousarray(y[:, :dim])
        np.testing.assert_array_equal(first.encode(own), codes[:, : first.code_size])
        if blocks > 1:
            np.testing.assert_allclose(first.decode(first.encode(own)), NESTED.decode(codes)[:, :dim], rtol=1e-5)


def test_a_nested_quantizer_has_no_gain_in_its_first_block() -> None:
    quantizer = LatticeQuantizer(160, bits=256, gain="blocks", norms=[0.8, 0.4, 0.3, 0.2])
    assert quantizer.blocks == [[40, 24], [40, 21], [40, 21], [40, 21]]
    again = LatticeQuantizer(**quantizer.arguments)
    y = (np.repeat(quantizer.arguments["norms"], 40) / 40**0.5 * np.random.default_rng(0).normal(size=(20, 160))).astype(
        np.float32
    )
    np.testing.assert_array_equal(again.encode(y), quantizer.encode(y))
    near = quantizer.nearest(y, 3)
    np.testing.assert_allclose(near[:, 0, :40], quantizer.decode(quantizer.encode(y))[:, :40], rtol=1e-5)
    np.testing.assert_allclose(near[:, 0], quantizer.decode(quantizer.encode(y)), rtol=0.06, atol=1e-6)


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
