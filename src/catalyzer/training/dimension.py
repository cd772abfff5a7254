"""The dimension of the sphere (`d_out=auto`), chosen without training anything."""

import logging
from contextlib import suppress

import numpy as np

import catalyzer
from catalyzer.codec import Codec
from catalyzer.datasets import Split
from catalyzer.errors import InvalidInput
from catalyzer.evaluation import neighbours_found
from catalyzer.files.array_cache import ArrayCache
from catalyzer.files.vectors import Vectors, fingerprint
from catalyzer.lattice.product import BLOCK_BITS, FILLED
from catalyzer.nn import Axes, Linear
from catalyzer.quantizers import LatticeQuantizer
from catalyzer.scan import Lattice

log = logging.getLogger(__name__)

DIMENSIONS = (8, 10, 12, 14, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 80, 96, 128)  # of a block
LEAST_OF_64_BITS = 20  # of blocks, in proportion to their bits, where there are several: fewer have thousands of atoms
NEIGHBOURS = 10
TOLERANCE = 0.05  # for a network
ENOUGH = 16_000  # vectors to search in; with fewer all dimensions seem good
QUERIES = 2_000


def dimensions(bits: int, d_in: int) -> tuple[int, ...]:
    """The dimensions to try for a number of bits and vectors of d_in dimensions: `DIMENSIONS` in each block of at most 64 bits.

    Vectors of few dimensions are also tried as they are.

    Raises:
        InvalidInput: vectors of fewer dimensions than the smallest of `DIMENSIONS`.

    >>> dimensions(64, 20), dimensions(64, 13), dimensions(96, 40), dimensions(256, 100), dimensions(256, 50)
    ((8, 10, 12, 14, 16, 20), (8, 10, 12, 13), (32, 40), (80, 96), (50,))
    """
    if d_in < DIMENSIONS[0]:
        raise InvalidInput(
            f"d_out=auto chooses among {DIMENSIONS[0]} dimensions and more, but the vectors have {d_in}; give d_out, at least 2"
        )
    blocks = -(-bits // BLOCK_BITS)
    least = LEAST_OF_64_BITS * bits / (blocks * BLOCK_BITS)
    each = {blocks * dim for dim in DIMENSIONS if blocks == 1 or dim >= least}
    few = {d_in} if d_in < LEAST_OF_64_BITS * blocks else set()
    return tuple(sorted({dim for dim in each if dim <= d_in} | few))


def choose_dimension(train: Vectors, validation: Split, bits: int, cache: ArrayCache, tolerance: float = TOLERANCE) -> int:
    """The dimension in which a linear map and a lattice of this number of bits, which need no training, find the most.

    With more dimensions less is projected away, but each coordinate has fewer bits. So the share of the 10 nearest neighbours
    that are found rises and then falls. A network needs fewer dimensions than a linear map for the same information, hence the
    smallest dimension that finds nearly as much as the best. The search ends when the share falls; its result is stored in
    `cache`.

    Args:
        train: `(n, d)` training vectors of the linear map.
        validation: split on which the share is measured, with training vectors if it is small; the test split is not used.
        bits: upper limit for the bits of a code.
        cache: stores the shares and the choice.
        tolerance: largest share of what the best dimension finds that a smaller one may lose.

    Returns:
        One of `dimensions(bits, d)`.

    Raises:
        InvalidInput: vectors of fewer dimensions than the smallest of `DIMENSIONS`, or than a lattice of so many bits needs.
    """
    smallest = dimensions(bits, train.shape[1])[0]

    def tried() -> np.ndarray:
        """Dimension, number of atoms and share, `(m, 3)` float64."""
        log.info("d_out=auto: trying a linear map + lattice in %d dimensions and more", smallest)
        atoms = _atoms(train.shape[1], bits)
        split = validation
        if len(split.base) < ENOUGH:  # a linear map has too few parameters to remember vectors by
            everything = np.concatenate([split.queries, split.base[:], train[:ENOUGH]])[:ENOUGH]
            split = Split(everything, everything[:QUERIES])
        axes = Axes.of(train, max(atoms))
        found: dict[int, float] = {}
        for dim in atoms:
            codec = Codec(Linear(train.shape[1], dim).take(axes.first(dim)), LatticeQuantizer(dim, bits))
            found[dim] = float(neighbours_found(codec, split.base, split.queries, split.ground_truth, NEIGHBOURS).mean())
            if found[dim] < max(found.values()):
                break
        return np.array([(dim, atoms[dim], share) for dim, share in found.items()])

    def chosen() -> np.ndarray:
        found = cache.get("dimensions", key, tried)  # for a network and the linear map that it is compared with
        best = found[found[:, 2] >= (1 - tolerance) * found[:, 2].max()][0, :1].astype(int)
        seen = ", ".join(f"{100 * share:.1f}% in {dim:.0f} dimensions ({atoms:,.0f} atoms)" for dim, atoms, share in found)
        why = f"the smallest with {1 - tolerance:.0%} of the best share" if tolerance else "the best"
        log.info("d_out = %d, %s: of the %d nearest, a linear map + lattice finds %s", best[0], why, NEIGHBOURS, seen)
        return best

    key = (fingerprint(train, "checking training vectors"), *validation.key, DIMENSIONS, bits, catalyzer.__version__)
    return int(cache.get("dimension", (*key, tolerance), chosen)[0])


def _atoms(d_in: int, bits: int) -> dict[int, int]:
    """How many atoms the lattices of so many bits have, by dimension: of those that exist, and that use the bits."""
    lattices: dict[int, Lattice] = {}
    for dim in dimensions(bits, d_in):
        with suppress(InvalidInput):  # more dimensions than so few bits have points for
            lattices[dim] = LatticeQuantizer(dim, bits).lattice
    if not lattices:
        raise InvalidInput(
            f"d_out=auto found no lattice of {bits} bits in {dimensions(bits, d_in)[0]} to {d_in} dimensions; "
            "use more bits, or set d_out to a number"
        )
    least = FILLED * min(bits, max(lattice.bits for lattice in lattices.values()))
    used = {dim: lattice for dim, lattice in lattices.items() if lattice.bits >= least}
    return {dim: sum(len(sphere.atoms) for sphere in lattice.spheres) for dim, lattice in used.items()}
