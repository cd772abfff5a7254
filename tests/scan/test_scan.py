"""The scan of lattice codes against brute force over the decoded vectors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catalyzer import InvalidInput, ProductLattice, SphericalLattice, scan
from catalyzer.lattice import GainShapeLattice, GainShapeProduct
from catalyzer.quantizers import LatticeQuantizer
from catalyzer.scan.searching import _search_torch

Lattice = scan.Lattice

SPHERES = [(24, 79), (24, 10), (5, 7), (2, 25), (24, 200), (128, 20), (16, 200)]
LATTICES: list[Lattice] = [SphericalLattice(*each) for each in SPHERES]
PRODUCTS = [[(32, 36)] * 4, [(5, 7), (8, 10)], [(24, 79), (3, 6), (24, 200)], [(2, 1)] * 20]
LATTICES += [ProductLattice(each) for each in PRODUCTS]
GAINS = [GainShapeLattice(SphericalLattice(24, 79)), GainShapeLattice(ProductLattice([(5, 7), (8, 10)]))]
GAINS += [GainShapeProduct(ProductLattice(each)) for each in ([(5, 7), (8, 10)], [(28, 42)] * 3, [(24, 79)])]
GAINS += [GainShapeProduct(ProductLattice([(40, 25), (40, 21)]), norms=[0.8, 0.6])]


def brute_force(lattice: Lattice, queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(lattice, GainShapeLattice | GainShapeProduct):
        distances = ((queries.astype(float)[:, None] - lattice.decode(codes)) ** 2).sum(axis=2)
        ids = np.argsort(distances.round(5), axis=1, kind="stable")[:, :k]
        return np.take_along_axis(distances, ids, 1), ids
    radii = np.repeat(lattice.radii, [sphere.dim for sphere in lattice.spheres])
    points = np.rint(lattice.decode(codes) * radii)
    dots = queries.astype(float) @ (points / radii).T
    distances = (queries.astype(float) ** 2).sum(1)[:, None] + 1 - 2 * dots
    # Products are summed in another order there; what differs by less than that is a tie.
    ids = np.argsort(distances.round(9), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, ids, 1), ids


def sphere(random: np.random.Generator, n: int, dim: int) -> np.ndarray:
    y = random.normal(size=(n, dim)).astype(np.float32)
    return y / np.linalg.norm(y, axis=1, keepdims=True)


@pytest.mark.parametrize("lattice", LATTICES, ids=repr)
@pytest.mark.parametrize("nq", [1, 2, 3, 40])
def test_the_k_nearest(lattice: Lattice, nq: int, random: np.random.Generator) -> None:
    codes, queries = lattice.encode(sphere(random, 9_000, lattice.dim)), sphere(random, nq, lattice.dim)
    distances, ids = scan.search(lattice, queries, codes, 30)
    expected, expected_ids = brute_force(lattice, queries, codes, 30)
    assert (distances.dtype, ids.dtype) == (np.float32, np.int64)
    np.testing.assert_allclose(distances, expected, atol=1e-6)
    np.testing.assert_array_equal(ids, expected_ids)


@pytest.mark.parametrize("lattice", GAINS, ids=repr)
@pytest.mark.parametrize("nq", [1, 7])
def test_vectors_of_any_norm(lattice: GainShapeLattice | GainShapeProduct, nq: int, random: np.random.Generator) -> None:
    y = sphere(random, 3_000, lattice.dim) * np.exp(2 * random.normal(size=(3_000, 1))).astype(np.float32)
    codes, queries = lattice.encode(y), 2 * sphere(random, nq, lattice.dim)
    distances, ids = scan.search(lattice, queries, codes, 30)
    np.testing.assert_allclose(distances, brute_force(lattice, queries, codes, 30)[0], rtol=1e-4)
    # In lists and by torch it is the same.
    offsets, probed = np.array([0, 700, 700, 3_000]), np.tile([2, 0], (nq, 1))
    np.testing.assert_array_equal(scan.search_lists(lattice, queries, codes, offsets, probed, 30)[1], ids)
    np.testing.assert_array_equal(_search_torch(lattice, queries, codes, 30, torch.device("cpu"))[1], ids)


@pytest.mark.parametrize("lattice", [LATTICES[0], LATTICES[-4]], ids=repr)
@pytest.mark.parametrize("nq", [1, 5])
def test_over_several_blocks_and_rounds(
    lattice: Lattice, nq: int, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalyzer.scan.searching.BLOCK_CODES", 1000)
    monkeypatch.setattr("catalyzer.scan.searching.FIRST_ROUND_CODES", 64)
    monkeypatch.setattr("catalyzer.scan.searching.LAST_ROUND_CODES", 1500)
    codes, queries = lattice.encode(sphere(random, 10_001, lattice.dim)), sphere(random, nq, lattice.dim)
    np.testing.assert_array_equal(scan.search(lattice, queries, codes, 100)[1], brute_force(lattice, queries, codes, 100)[1])


@pytest.mark.parametrize("lattice", [LATTICES[0], LATTICES[-4]], ids=repr)
@pytest.mark.parametrize("nq", [1, 4])
def test_ties_go_to_the_lower_row(lattice: Lattice, nq: int, random: np.random.Generator) -> None:
    few = lattice.encode(sphere(random, 5, lattice.dim))
    codes = few[random.integers(0, 5, 6_000)]
    queries = sphere(random, nq, lattice.dim)
    queries[0] = 0  # equally far from everything
    ids = scan.search(lattice, queries, codes, 2_000)[1]
    assert ids[0].tolist() == list(range(2_000))
    np.testing.assert_array_equal(ids, brute_force(lattice, queries, codes, 2_000)[1])


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 700), nq=st.integers(0, 9), data=st.data())
def test_any_number_of_codes_queries_and_neighbours(n: int, nq: int, data: st.DataObject) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    k = data.draw(st.integers(1, n))
    lattice = data.draw(st.sampled_from([SphericalLattice(8, 10), ProductLattice([(8, 10), (5, 7), (24, 79)])]))
    codes = lattice.encode(sphere(random, n, lattice.dim))
    queries = random.normal(size=(nq, lattice.dim)).astype(np.float32) * data.draw(st.sampled_from([1e-3, 1, 1e3]))
    distances, ids = scan.search(lattice, queries, codes, k)
    expected, _ = brute_force(lattice, queries, codes, k)
    np.testing.assert_allclose(distances, expected, rtol=1e-6, atol=1e-6)
    for row, found in enumerate(ids):
        assert len(set(found.tolist())) == k
        np.testing.assert_allclose(brute_force(lattice, queries[row : row + 1], codes[found], k)[0], expected[row : row + 1])


@pytest.mark.parametrize("lattice", [LATTICES[1], LATTICES[-2]], ids=repr)
def test_the_way_through_torch_agrees(lattice: Lattice, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalyzer.scan.searching.DEVICE_CODES", 1000)
    monkeypatch.setattr("catalyzer.scan.searching.DEVICE_DISTANCES", 7_000)
    codes = lattice.encode(sphere(random, 300, lattice.dim))[random.integers(0, 300, 4_100)]
    queries = sphere(random, 30, lattice.dim)
    distances, ids = _search_torch(lattice, queries, codes, 50, torch.device("cpu"))
    expected, expected_ids = scan.search(lattice, queries, codes, 50)
    np.testing.assert_allclose(distances, expected, atol=1e-6)
    np.testing.assert_array_equal(ids, expected_ids)


@pytest.mark.parametrize("nq", [1, 5])
def test_memory_mapped_codes(nq: int, random: np.random.Generator, tmp_path: Path) -> None:
    quantizer = LatticeQuantizer(24, 64)
    codes, queries = quantizer.encode(sphere(random, 5_000, 24)), sphere(random, nq, 24)
    codes.tofile(tmp_path / "codes")
    mapped = np.memmap(tmp_path / "codes", np.uint8, "r", shape=codes.shape)
    for of_file, of_memory in zip(quantizer.search(queries, mapped, 10), quantizer.search(queries, codes, 10), strict=True):
        np.testing.assert_array_equal(of_file, of_memory)


@pytest.mark.parametrize("nq", [1, 3])
def test_a_bad_code_in_a_later_block_is_named(nq: int, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalyzer.scan.searching.BLOCK_CODES", 1000)
    lattice = SphericalLattice(24, 10)
    codes = lattice.encode(sphere(random, 5_000, 24))
    codes[4_321] = 255
    with pytest.raises(InvalidInput, match="row 4,321 holds the code 4294967295"):
        scan.search(lattice, sphere(random, nq, 24), codes, 10)


def test_bad_input_is_refused() -> None:
    lattice = SphericalLattice(24, 10)
    codes, query = np.zeros((5, 4), np.uint8), np.ones((1, 24), np.float32)
    for queries, of, k, message in [
        (np.ones((1, 23), np.float32), codes, 1, r"queries must be \(n, 24\)"),
        (query, codes[:, :3], 1, r"codes must be \(n, 4\) uint8, got \(5, 3\)"),
        (query, codes, 0, "k must be an integer between 1 and 5, the number of codes; got 0"),
        (query, codes, 6, "got 6"),
        (query * np.nan, codes, 1, "query 0 contains NaN"),
        (query, codes + np.uint8(255), 1, "row 0 holds the code 4294967295"),
        (query.repeat(5, 0), codes + np.uint8(255), 1, "row 0 holds the code 4294967295"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            scan.search(lattice, queries, of, k)


def in_lists(random: np.random.Generator, n: int, lists: int) -> np.ndarray:
    """Offsets of so many lists, some of them empty, over n codes."""
    return np.concatenate([[0], np.sort(random.integers(0, n + 1, lists - 1)), [n]])


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 2_000), nq=st.integers(0, 5), lists=st.integers(1, 30), seed=st.integers(0, 1000), data=st.data())
def test_lists_are_searched_as_their_codes_would_be_alone(n: int, nq: int, lists: int, seed: int, data: st.DataObject) -> None:
    random = np.random.default_rng(seed)
    lattice = data.draw(st.sampled_from([*LATTICES[:3], LATTICES[4], *LATTICES[-3:]]))
    few = lattice.encode(sphere(random, data.draw(st.sampled_from([5, n])), lattice.dim))
    codes, queries = few[random.integers(0, len(few), n)], sphere(random, nq, lattice.dim)  # many ties, or hardly any
    k, nprobe = data.draw(st.integers(1, n)), data.draw(st.integers(1, lists))
    offsets = in_lists(random, n, lists)
    probed = random.permuted(np.tile(np.arange(lists), (nq, 1)), axis=1)[:, :nprobe]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("catalyzer.scan.searching.BLOCK_CODES", data.draw(st.sampled_from([256, 512, 1 << 16])))
        distances, ids = scan.search_lists(lattice, queries, codes, offsets, probed, k)
    assert (distances.dtype, ids.dtype, distances.shape) == (np.float32, np.int64, (nq, k))
    for row in range(nq):
        among = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in np.sort(probed[row])])
        found = min(k, len(among))
        assert (ids[row, found:] == -1).all()
        assert (distances[row, found:] == np.inf).all()
        if found:
            alone = scan.search(lattice, queries[row : row + 1], codes[among], found)
            np.testing.assert_array_equal(distances[row, :found], alone[0][0])
            np.testing.assert_array_equal(ids[row, :found], among[alone[1][0]])


def test_all_lists_are_the_search_without(random: np.random.Generator) -> None:
    lattice = SphericalLattice(24, 79)
    codes, queries = lattice.encode(sphere(random, 9_000, 24)), sphere(random, 40, 24)
    probed = np.tile(np.arange(50), (40, 1))
    found = scan.search_lists(lattice, queries, codes, in_lists(random, 9_000, 50), probed, 30)
    for ours, theirs in zip(found, scan.search(lattice, queries, codes, 30), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_only_the_lists_probed_are_read(random: np.random.Generator) -> None:
    lattice = SphericalLattice(24, 79)
    codes, queries = lattice.encode(sphere(random, 900, 24)), sphere(random, 3, 24)
    codes[700] = 255
    offsets, probed = np.array([0, 300, 600, 900]), np.array([[0, 1]] * 3)
    assert scan.search_lists(lattice, queries, codes, offsets, probed, 5)[1].max() < 600
    probed[1, 1] = 2
    with pytest.raises(InvalidInput, match="row 700 holds the code 18446744073709551615"):
        scan.search_lists(lattice, queries, codes, offsets, probed, 5)
    with pytest.raises(InvalidInput, match="query 2 contains NaN"):
        scan.search_lists(lattice, np.where(np.arange(3)[:, None] == 2, np.nan, queries), codes, offsets, probed, 5)
    for lists in (np.array([[0, 3]] * 3), np.array([[-1, 0]] * 3), np.array([[0]]), np.array([0, 1, 2])):
        with pytest.raises(InvalidInput, match=r"probed must be \(nq, nprobe\) lists from 0 to 2"):
            scan.search_lists(lattice, queries, codes, offsets, lists, 5)
