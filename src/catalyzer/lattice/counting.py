"""How many integer points a sphere has, and the atoms they are permutations and sign flips of (Appendix B)."""

from collections.abc import Iterator
from functools import cache
from math import isqrt

import numpy as np

from catalyzer.errors import InvalidInput, integer

MAX_DIM = 128
MAX_RADIUS_SQ = 127**2  # coordinates fit int8; beyond, any dimension worth coding has far more atoms than memory
MAX_ATOMS = 1 << 20
FEW_ATOMS_RADIUS_SQ = 1 << 12  # spheres beyond have more atoms than anybody takes who wants few


def check_sphere(dim: int, radius_sq: int) -> tuple[int, int]:
    """Both as Python integers; raises `InvalidInput` unless they are in the supported range."""
    return integer("the lattice's dim", dim, 2, MAX_DIM), integer("the lattice's radius_sq", radius_sq, 1, MAX_RADIUS_SQ)


def _theta_series(dim: int, radius_sq: int) -> tuple[int, int]:
    # The number of integer points of each squared norm are the coefficients of (1 + 2x + 2x^4 + 2x^9 + ...)^dim. A
    # polynomial is held in one Python integer with `width` bits a coefficient, so that its products are integer ones; in whole
    # bytes, so that taking it apart does not copy all of it for each coefficient.
    width = 8 * (dim * (2 * isqrt(radius_sq) + 1).bit_length() // 8 + 1)
    mask = (1 << width * (radius_sq + 1)) - 1
    factor = 1 + sum(2 << width * i * i for i in range(1, isqrt(radius_sq) + 1))
    product = 1
    for bit in bin(dim)[2:]:
        product = product * product & mask
        if bit == "1":
            product = product * factor & mask
    return product, width


def _counts(dim: int, limit: int) -> Iterator[int]:
    """The numbers of points for r² from 1 to `limit`."""
    series, width = _theta_series(dim, limit)
    size = width // 8
    coefficients = series.to_bytes(size * (limit + 1), "little")
    for radius_sq in range(1, limit + 1):
        yield int.from_bytes(coefficients[size * radius_sq : size * (radius_sq + 1)], "little")


def num_points(dim: int, radius_sq: int) -> int:
    """The exact number of z in Z^dim with |z|² = radius_sq; 0 where there is none.

    >>> num_points(24, 79)
    17319684851070915840
    >>> num_points(3, 7)
    0
    """
    dim, radius_sq = check_sphere(dim, radius_sq)
    series, width = _theta_series(dim, radius_sq)
    return series >> width * radius_sq


def best_radius_sq(dim: int, bits: int, most_atoms: int | None = None) -> int:
    """The largest r² whose sphere's points have codes of at most `bits` bits.

    In fewer than 5 dimensions the number of points does not grow steadily with r²; there it is the r² with the most points.

    Args:
        dim: dimension of the lattice.
        bits: largest number of bits of a code.
        most_atoms: largest number of atoms; None for any. In few dimensions it leaves bits unused.

    Raises:
        InvalidInput: bits that no radius within `MAX_RADIUS_SQ` fills, if the atoms may be any number; too few bits for even
            r² = 1.

    >>> best_radius_sq(24, 64), best_radius_sq(32, 64), best_radius_sq(24, 32), best_radius_sq(2, 4)
    (79, 36, 10, 65)
    >>> best_radius_sq(16, 64), best_radius_sq(16, 64, most_atoms=10_000)
    (515, 316)
    """
    check_sphere(dim, 1)
    if 2 * dim > 1 << bits:
        raise InvalidInput(f"{bits} bits are too few for {dim} dimensions: even r² = 1 has {2 * dim} points; use more bits")
    if most_atoms is not None:
        try:
            radius_sq = best_radius_sq(dim, bits)
        except InvalidInput:
            return _of_few_atoms(dim, bits, most_atoms)
        return radius_sq if num_atoms(dim, radius_sq) <= most_atoms else _of_few_atoms(dim, bits, most_atoms)
    if dim < 5:
        counts = [0, *(count if count <= 1 << bits else 0 for count in _counts(dim, MAX_RADIUS_SQ))]
        return max(range(len(counts)), key=counts.__getitem__)
    limit = 64
    while limit <= MAX_RADIUS_SQ:
        fits = max(radius_sq for radius_sq, count in enumerate(_counts(dim, limit), 1) if 0 < count <= 1 << bits)
        # The counts grow, in few dimensions unsteadily; none that fits for long enough means that none does beyond.
        if fits * (3 if dim < 9 else 1.25) <= limit:
            return fits
        limit *= 2
    raise InvalidInput(
        f"{dim} dimensions need r² above {MAX_RADIUS_SQ:,} to fill {bits} bits; use more dimensions or fewer bits"
    )


@cache
def _of_few_atoms(dim: int, bits: int, most_atoms: int) -> int:
    """The r² of the most points among those of at most `bits` bits and `most_atoms` atoms."""
    limit = FEW_ATOMS_RADIUS_SQ
    atoms = _atom_counts(dim, limit, float)  # exact as far as they matter
    points = dict(enumerate(_counts(dim, limit), 1))
    fits = [radius_sq for radius_sq, count in points.items() if 0 < count <= 1 << bits and atoms[radius_sq] <= most_atoms]
    return max(fits, key=lambda radius_sq: points[radius_sq])


def _atom_counts(dim: int, limit: int, dtype: type) -> np.ndarray:
    """The numbers of atoms for r² from 0 to `limit`, `(limit + 1,)`."""
    ways: np.ndarray = np.zeros((dim + 1, limit + 1), dtype)  # [parts, sum]
    ways[0, 0] = 1
    for value in range(1, isqrt(limit) + 1):
        for parts in range(1, dim + 1):
            ways[parts, value * value :] += ways[parts - 1, : -value * value]
    return ways.sum(axis=0)


def num_atoms(dim: int, radius_sq: int) -> int:
    """The number of atoms: ways to write radius_sq as a sum of at most `dim` squares of positive integers.

    >>> num_atoms(24, 79), num_atoms(8, 10)
    (256, 3)
    """
    dim, radius_sq = check_sphere(dim, radius_sq)
    return int(_atom_counts(dim, radius_sq, object)[radius_sq])  # of Python's integers: there may be more than 2^64


def enumerate_atoms(dim: int, radius_sq: int) -> np.ndarray:
    """All atoms, `(num_atoms, dim)` int16: non-negative, each in decreasing order, in decreasing lexicographic order.

    >>> enumerate_atoms(8, 10).tolist()[:2]
    [[3, 1, 0, 0, 0, 0, 0, 0], [2, 2, 1, 1, 0, 0, 0, 0]]
    """

    def tails(left: int, room: int, most: int) -> Iterator[tuple[int, ...]]:
        if left == 0:
            yield (0,) * room
            return
        for value in range(min(most, isqrt(left)), 0, -1):
            if value * value * room < left:
                break  # even `room` such squares are too few, and smaller values are fewer still
            for tail in tails(left - value * value, room - 1, value):
                yield (value, *tail)

    dim, radius_sq = check_sphere(dim, radius_sq)
    count = num_atoms(dim, radius_sq)
    if count > MAX_ATOMS:
        raise InvalidInput(f"dim {dim}, r² {radius_sq} has {count:,} atoms, more than the {MAX_ATOMS:,} that are supported")
    return np.array(list(tails(radius_sq, dim, isqrt(radius_sq))), dtype=np.int16).reshape(-1, dim)
