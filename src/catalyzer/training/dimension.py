"""The dimension of the sphere (`d_out=auto`), chosen without training anything."""

import logging

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
from catalyzer.quantizers import MOST_ATOMS, LatticeQuantizer

log = logging.getLogger(__name__)

DIMENSIONS = (8, 10, 12, 14, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 80, 96, 128)  # of a block
LEAST_OF_64_BITS = 20  # of a block of 64 bits, where there are several: fewer dimensions have thousands of atoms
NEIGHBOURS = 10
TOLERANCE = 0.05  # for a network
ENOUGH = 16_000  # vectors to search in; with fewer all dimensions seem good
QUERIES = 2_000


def dimensions(bits: int, d_in: int) -> tuple[int, ...]:
    """The dimensions to try for a number of bits and vectors of d_in dimensions: `DIMENSIONS` in each block of at most 64 bits.

    Raises:
        InvalidInput: vectors of fewer dimensions than the smallest of `DIMENSIONS`.

    >>> dimensions(64, 20), dimensions(256, 100), dimensions(256, 50)
    ((8, 10, 12, 14, 16, 20), (80, 96), (50,))
    """
    if d_in < DIMENSIONS[0]:
        raise InvalidInput(
            f"d_out=auto chooses among {DIMENSIONS[0]} dimensions and more, but the vectors have {d_in}; set d_out to a number"
        )
    blocks = -(-bits // BLOCK_BITS)
    each = (blocks * dim for dim in DIMENSIONS if blocks == 1 or dim >= LEAST_OF_64_BITS)
    return tuple(dim for dim in each if dim <= d_in) or (d_in,)


def choose_dimension(train: Vectors, validation: Split, bits: int, cache: ArrayCache, tolerance: float = TOLERANCE) -> int:
    """The dimension in which a linear map and a lattice of this number of bits, which need no training, find the most.

    With more dimensions less is projected away, but each coordinate has fewer bits. So the share of the 10 nearest neighbours
    that are found rises and then falls. A network needs fewer dimensions than a linear map for the same information, hence the
    smallest dimension that finds nearly as much as the best. The search ends when the share falls; its result is stored in
    `cache`.
    Lattices of more than `MOST_ATOMS` atoms, whose encoding takes longer than everything else, are left out if there are
    others.

    Args:
        train: `(n, d)` training vectors of the linear map.
        validation: split on which the share is measured, with training vectors if it is small; the test split is not used.
        bits: upper limit for the bits of a code.
        cache: stores the choice.
        tolerance: largest share of what the best dimension finds that a smaller one may lose.

    Returns:
        One of `dimensions(bits, d)`.

    Raises:
        InvalidInput: vectors of fewer dimensions than the smallest of `DIMENSIONS`, or than a lattice of so many bits needs.
    """
    smallest = dimensions(bits, train.shape[1])[0]

    def compute() -> np.ndarray:
        log.info("d_out=auto: trying a linear map + lattice in %d dimensions and more", smallest)
        atoms = _atoms(train.shape[1], bits)
        cheap = {dim: n for dim, n in atoms.items() if n <= MOST_ATOMS} or dict([min(atoms.items(), key=lambda item: item[1])])
        split = validation
        if len(split.base) < ENOUGH:  # a linear map has too few parameters to remember vectors by
            everything = np.concatenate([split.queries, split.base[:], train[:ENOUGH]])[:ENOUGH]
            split = Split(everything, everything[:QUERIES])
        axes = Axes.of(train, max(cheap))
        found: dict[int, float] = {}
        for dim in cheap:
            codec = Codec(Linear(train.shape[1], dim).take(axes.first(dim)), LatticeQuantizer(dim, bits))
            found[dim] = float(neighbours_found(codec, split.base, split.queries, split.ground_truth, NEIGHBOURS).mean())
            if found[dim] < max(found.values()):
                break
        chosen = next(dim for dim, value in found.items() if value >= (1 - tolerance) * max(found.values()))
        seen = ", ".join(f"{100 * value:.1f}% in {dim} dimensions ({atoms[dim]:,} atoms)" for dim, value in found.items())
        dear = [str(dim) for dim in atoms if dim not in cheap]
        left_out = (
            f"; left out for more than {MOST_ATOMS:,} atoms, which are slow to code with: {', '.join(dear)}" if dear else ""
        )
        log.info("d_out = %d: of the %d nearest, a linear map + lattice finds %s%s", chosen, NEIGHBOURS, seen, left_out)
        return np.array([chosen])

    key = (fingerprint(train, "checking training vectors"), *validation.key, bits, tolerance, catalyzer.__version__)
    return int(cache.get("dimension", key, compute)[0])


def _atoms(d_in: int, bits: int) -> dict[int, int]:
    """How many atoms the lattices of so many bits have, by dimension: of those that exist, and that fill their bits."""
    atoms: dict[int, int] = {}
    for dim in dimensions(bits, d_in):
        try:
            lattice = LatticeQuantizer(dim, bits).lattice
        except InvalidInput:  # more dimensions than so few bits have points for, or fewer than so many have atoms for
            continue
        if lattice.bits >= FILLED * bits or not atoms:
            atoms[dim] = sum(len(sphere.atoms) for sphere in lattice.spheres)
    if not atoms:
        raise InvalidInput(
            f"d_out=auto found no lattice of {bits} bits in {dimensions(bits, d_in)[0]} to {d_in} dimensions; "
            "use fewer bits, or set d_out to a number"
        )
    return atoms
