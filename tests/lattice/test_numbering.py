"""Format 1 of the codes: against its definition, and against bytes that must never change."""

import hashlib
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catalyzer import ProductLattice, SphericalLattice
from catalyzer.lattice.device import DeviceLattice
from catalyzer.lattice.numbering import leaf_width, number

# SHA-256 of the codes of `vectors(1000, dim)`, and the point of the code num_points // 3: these hold the format.
FORMAT_1 = {
    (24, 79): ("ac4fa5c883c0d4a461aca5d22e1e8ade", [-1, 2, 2, 4, 3, 1, 3, -2, -2, 1, 1, -1, -3, 2, -2, 2, 1, -1, -1]),
    (32, 36): ("0b6631edb2be46888c9af9035faea7f1", [-1, 1, 1, 1, 1, 1, 1, -2, -2, 1, -1, 2, 1, -1, -1, -1, 1, -1, 3]),
    (40, 24): ("9c54dfe7285ede365f10fe1979199ec0", [-1, -1, -1, -2, 1, 1, 1, 1, 1, 1, -1, 1, 1, -1, -1, -1, 1, -1, 1, 1, 1]),
    (24, 10): ("78375e994c9fc04cd4fd1b711e5c02a4", [1, -1, -1, -1, 1, 1, 1, 1, -1, 1]),
    (24, 3): ("b9a72f79282840fc19eaa8c0870ac6f8", [-1, 1, 1]),
    (48, 30): (
        "6c4aae186c4b62a8c6657ee2284e80a0",
        [-1, 1, -1, 2, 1, -1, -1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, 1, 1, 1, -2, -1],
    ),
    (24, 200): (
        "43be817d371a92ded10bd56d9b094870",
        [-1, -2, -3, 3, -4, 4, -1, -5, 2, -2, 1, 4, -5, -4, -3, 3, -2, -1, 4, 1, 2, -3],
    ),
    (32, 79): (
        "580d4650314109499f437500e37b208c",
        [2, -1, 1, -1, -4, 1, 1, 2, -1, 1, 1, 1, -1, -2, -2, 1, -3, 1, -2, -2, -2, 2, -1, 3],
    ),
    (128, 28): (
        "ba705b5f24c18a469966f73447b87941",
        [1, -1, 1, -1, -1, 1, -1, 1, 1, -1, -1, 1, 1, -1, 1, -1, 1, -1, -1, -1, 1, 1, -1, 1, -1, -1, -1, 1],
    ),
    (5, 7): ("32fb23fc5e4c6be880b4671c766148fe", [-1, -2, 1, -1]),
    (2, 25): ("b8bfeefccdbd4ecfe6ba75a623849515", [-3, 4]),
}


def vectors(n: int, dim: int) -> np.ndarray:
    """The same everywhere, without a random number generator whose stream may change."""
    return ((np.arange(n * dim, dtype=np.uint64) * 2654435761 % 2**32) / 2**31 - 1).reshape(n, dim).astype(np.float32)


@cache
def count(dim: int, radius_sq: int) -> int:
    if dim == 0:
        return int(radius_sq == 0)
    most = int(radius_sq**0.5)
    return sum(count(dim - 1, radius_sq - v * v) for v in range(-most, most + 1)) if radius_sq >= 0 else 0


def code_by_definition(z: tuple[int, ...], width: int) -> int:
    """The formula of the module's text, word by word."""
    leaf, rest = z[:width], z[width:]
    norm, left = sum(v * v for v in z), sum(v * v for v in leaf)
    most = int(left**0.5)
    grid = np.stack(np.meshgrid(*[np.arange(-most, most + 1)] * len(leaf), indexing="ij"), -1).reshape(-1, len(leaf))
    rank = [tuple(point) for point in grid[(grid**2).sum(1) == left].tolist()].index(leaf)
    if not rest:
        return rank
    before = sum(count(len(leaf), s) * count(len(rest), norm - s) for s in range(left))
    return before + rank * count(len(rest), norm - left) + code_by_definition(rest, width)


@pytest.mark.parametrize(("dim", "radius_sq"), [(2, 25), (3, 6), (5, 30), (8, 20), (9, 11), (7, 120), (24, 79), (24, 200)])
def test_codes_are_those_of_the_definition(dim: int, radius_sq: int) -> None:
    lattice = SphericalLattice(dim, radius_sq)
    y = vectors(40, dim)
    codes = [int.from_bytes(code, "little") for code in lattice.encode(y)]
    width = leaf_width(dim, radius_sq)
    assert codes == [code_by_definition(tuple(z), width) for z in lattice.quantize(y).tolist()]


@pytest.mark.parametrize(("dim", "radius_sq"), FORMAT_1)
def test_the_bytes_of_format_1_never_change(dim: int, radius_sq: int) -> None:
    lattice = SphericalLattice(dim, radius_sq)
    assert lattice.format == 1
    digest, third = FORMAT_1[dim, radius_sq]
    assert hashlib.sha256(lattice.encode(vectors(1000, dim)).tobytes()).hexdigest()[:32] == digest
    code = np.frombuffer((lattice.num_points // 3).to_bytes(lattice.code_size, "little"), np.uint8)
    point = np.rint(lattice.decode(code[None])[0] * radius_sq**0.5).astype(int)
    assert point[point != 0].tolist() == third


@pytest.mark.parametrize(
    ("dim", "radius_sq", "bits"),
    [
        *[(24, 79, 64), (32, 36, 64), (40, 24, 64), (24, 10, 32), (32, 8, 32), (40, 7, 32), (24, 3, 14), (48, 30, 79)],
        *[(24, 200, 79), (32, 79, 81), (128, 30, 128), (64, 64, 127), (2, 16_000, 4)],
    ],
)
def test_sizes_up_to_128_bits(dim: int, radius_sq: int, bits: int) -> None:
    lattice = SphericalLattice(dim, radius_sq)
    assert lattice.bits == bits
    assert lattice.code_size == -(-bits // 8)
    y = vectors(500, dim)
    codes = lattice.encode(y)
    assert all(int.from_bytes(code, "little") < lattice.num_points for code in codes)
    np.testing.assert_allclose(lattice.decode(codes), lattice.quantize(y) / radius_sq**0.5, atol=1e-6)


CASES = [(24, 79), (24, 200), (48, 30), (32, 79), (128, 30), (5, 7), (9, 300), (16, 200), (2, 16_000)]


@settings(deadline=None, max_examples=100)
@given(case=st.sampled_from(CASES), data=st.data())
def test_decoding_and_encoding_are_inverse(case: tuple[int, int], data: st.DataObject) -> None:
    lattice = cache(SphericalLattice)(*case)
    last = lattice.num_points - 1
    # Counts of two words overflow the first; numbers next to powers of two and to both ends look for that.
    near_powers = st.integers(0, lattice.bits).flatmap(lambda b: st.integers((1 << b) - 2, (1 << b) + 2))
    numbers = [0, last, *data.draw(st.lists(st.one_of(st.integers(0, last), near_powers), max_size=30))]
    numbers = [min(max(n, 0), last) for n in numbers]
    codes = np.array([list(n.to_bytes(lattice.code_size, "little")) for n in numbers], np.uint8)
    decoded = lattice.decode(codes)
    np.testing.assert_array_equal((np.rint(decoded * case[1] ** 0.5).astype(int) ** 2).sum(1), case[1])
    np.testing.assert_array_equal(lattice.encode(decoded), codes)


@pytest.mark.parametrize(("dim", "radius_sq"), CASES)
def test_torch_operations_give_the_same_bytes(dim: int, radius_sq: int) -> None:
    lattice = SphericalLattice(dim, radius_sq)
    device = DeviceLattice(lattice.atoms, lattice.tables, lattice.num_points, torch.device("cpu"))
    y = np.concatenate([vectors(500, dim), np.zeros((1, dim)), np.ones((1, dim)), -np.eye(dim)]).astype(np.float32)
    codes = lattice.encode(y)
    tensor = torch.from_numpy(y)
    np.testing.assert_array_equal(device.quantize(tensor).numpy(), lattice.quantize(y))
    if lattice.bits > 64:  # codes are then made on the CPU
        return
    np.testing.assert_array_equal(device.encode(tensor).numpy(), codes)
    np.testing.assert_array_equal(device.decode(torch.from_numpy(codes)).numpy(), lattice.decode(codes))


def test_the_first_and_the_last_code_in_torch_operations() -> None:
    lattice = SphericalLattice(24, 79)
    device = DeviceLattice(lattice.atoms, lattice.tables, lattice.num_points, torch.device("cpu"))
    numbers = [0, 2**63 - 1, 2**63, lattice.num_points - 1]
    codes = np.array([list(n.to_bytes(8, "little")) for n in numbers], np.uint8)
    np.testing.assert_array_equal(device.decode(torch.from_numpy(codes)).numpy(), lattice.decode(codes))


@pytest.mark.parametrize("lattice", [SphericalLattice(24, 79), ProductLattice([(24, 79), (24, 79), (8, 10)])], ids=repr)
def test_training_on_an_accelerator_waits_for_no_value(lattice: SphericalLattice | ProductLattice) -> None:
    # The device "meta" has no values: whatever looks at one there raises an error.
    vectors = lattice.nearest_vectors(torch.empty(5, lattice.dim, device="meta"))
    assert (vectors.shape, vectors.dtype, vectors.device.type) == ((5, lattice.dim), torch.float32, "meta")


def test_what_has_no_nearest_point_shows_on_an_accelerator() -> None:
    lattice = SphericalLattice(24, 79)
    device = DeviceLattice(lattice.atoms, lattice.tables, lattice.num_points, torch.device("cpu"))
    y = torch.from_numpy(vectors(5, 24).astype(np.float32))
    whole = lattice.vectors(lattice.quantize(y), norm=0.5)
    y[1, 3], y[4, 0] = torch.nan, torch.inf
    found = device.nearest_vectors(y, norm=0.5)
    assert found.isnan().all(dim=1).tolist() == [False, True, False, False, True]
    torch.testing.assert_close(found[[0, 2, 3]], whole[[0, 2, 3]], rtol=0, atol=0)


def test_what_does_not_need_two_words_does_not_take_them() -> None:
    assert number(24, 79).wide == 0
    assert number(24, 200).wide > 0
