"""Gain-shape lattices: what a byte for the norm keeps of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catalyzer import InvalidInput, LatticeQuantizer, ProductLattice, SphericalLattice
from catalyzer.lattice import GainShapeLattice

LATTICES = [GainShapeLattice(SphericalLattice(24, 79)), GainShapeLattice(ProductLattice([(5, 7), (8, 10)]))]


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


def test_norms_beyond_the_range_are_at_its_ends() -> None:
    y = np.array([[0, 0], [1e-9, 0], [1e9, 0]], np.float32)
    decoded = GainShapeLattice(SphericalLattice(2, 1)).decode(GainShapeLattice(SphericalLattice(2, 1)).encode(y))
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), [2.0**-16, 2.0**-16, 2.0**15.875])


def test_a_quantizer_spends_eight_of_its_bits(random: np.random.Generator) -> None:
    quantizer = LatticeQuantizer(80, bits=256, gain=True)
    assert (quantizer.bits <= 256, quantizer.code_size, sum(quantizer.spheres)) == (True, 32, 80)
    again = LatticeQuantizer(**quantizer.arguments)
    y = 5 * random.normal(size=(20, 80)).astype(np.float32)
    np.testing.assert_array_equal(again.encode(y), quantizer.encode(y))
    near = quantizer.nearest(y, 3)
    assert near.shape == (20, 3, 80)
    np.testing.assert_allclose(near[:, 0], quantizer.decode(quantizer.encode(y)), rtol=0.05, atol=1e-6)
    assert "gain" not in LatticeQuantizer(24).arguments


def test_refusals() -> None:
    lattice = LATTICES[0]
    for call, message in [
        (lambda: lattice.decode(np.zeros((1, 8), np.uint8)), r"codes must be \(n, 9\) uint8, got \(1, 8\)"),
        (lambda: lattice.check_codes(np.full((2, 9), 255, np.uint8), 5), "row 5 holds the code"),
        (lambda: LatticeQuantizer(24, bits=8, gain=True), "bits must be an integer of at least 9"),
        (lambda: LatticeQuantizer(24, gain=True).straight_through(), "use gain=false"),
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
