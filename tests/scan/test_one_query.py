"""One query in codes of several blocks whose vectors were rotated at random."""

import numpy as np
import pytest

from catalyzer import Codec, ProductLattice, scan
from catalyzer.lattice import GainShapeLattice, GainShapeProduct
from catalyzer.nn import Linear
from catalyzer.quantizers import LatticeQuantizer
from catalyzer.scan import one_query

Lattice = ProductLattice | GainShapeLattice | GainShapeProduct
PRODUCT = ProductLattice([(40, 21)] * 3)
LATTICES: list[Lattice] = [
    PRODUCT,
    GainShapeLattice(PRODUCT),
    GainShapeProduct(PRODUCT),
    ProductLattice([(24, 79), (40, 21), (9, 12)]),
]


def rotated(n: int, dim: int, random: np.random.Generator) -> np.ndarray:
    """Vectors far from isotropic, rotated: clusters around few directions, with most of the norm in few coordinates."""
    centres = random.normal(size=(20, dim)) * np.arange(1, dim + 1) ** -0.5
    vectors = centres[random.integers(20, size=n)] + 0.5 * random.normal(size=(n, dim)) * np.arange(1, dim + 1) ** -0.7
    vectors @= np.linalg.qr(np.random.default_rng(7).normal(size=(dim, dim)))[0]
    return (vectors / np.linalg.norm(vectors, axis=1).mean()).astype(np.float32)


@pytest.mark.parametrize("lattice", LATTICES, ids=repr)
def test_finds_what_the_exact_search_finds(lattice: Lattice, random: np.random.Generator) -> None:
    codes = lattice.encode(rotated(20_000, lattice.dim, random))
    queries = rotated(100, lattice.dim, random)
    distances, ids = scan.search(lattice, queries, codes, k=10)
    missing = 0
    for query, near, expected in zip(queries, distances, ids, strict=True):
        own, found = scan.search(lattice, query[None], codes, k=10, rotated=True)
        missing += len(np.setdiff1d(expected, found))
        same = np.isin(found[0], expected)
        np.testing.assert_array_equal(own[0, same], near[np.isin(expected, found)])
    assert missing <= 1  # of 1,000


@pytest.mark.parametrize(
    "lattice", [ProductLattice([(16, 139)] * 4), GainShapeProduct(ProductLattice([(16, 97)] * 4))], ids=repr
)
def test_norms_of_blocks_that_differ_much_lose_nothing(lattice: Lattice, random: np.random.Generator) -> None:
    # Few dimensions, rotated: the norms of a query's blocks are far from those that the lattice gives to points.
    turned = np.linalg.qr(random.normal(size=(64, 64)))[0][:4]
    x = (random.normal(size=(100_000, 4)) @ turned / 2).astype(np.float32)
    codes, queries = lattice.encode(x), x[-30:]
    _, ids = scan.search(lattice, queries, codes, k=10)
    for query, expected in zip(queries, ids, strict=True):
        np.testing.assert_array_equal(scan.search(lattice, query[None], codes, k=10, rotated=True)[1][0], expected)


UNEVEN: list[Lattice] = [
    GainShapeLattice(ProductLattice([(20, 86), (24, 79)])),  # 7, 8 and 1 bytes
    GainShapeProduct(ProductLattice([(24, 79), (20, 68)])),  # 9 and 7 bytes
    GainShapeProduct(ProductLattice([(20, 68), (24, 79)]), norms=[0.8, 0.6]),
]


@pytest.mark.parametrize("rotated_", [False, True])
@pytest.mark.parametrize("lattice", UNEVEN, ids=repr)
def test_blocks_of_unequal_bytes(lattice: Lattice, rotated_: bool, random: np.random.Generator) -> None:
    x = (random.normal(size=(1000, lattice.dim)) / lattice.dim**0.5).astype(np.float32)
    codes = lattice.encode(x)
    assert codes.shape[1] % 8 == 0
    _, expected = scan.search(lattice, x[:20], codes, k=5)
    for query, ids in zip(x[:20], expected, strict=True):
        np.testing.assert_array_equal(scan.search(lattice, query[None], codes, k=5, rotated=rotated_)[1][0], ids)


def test_limits_are_what_random_directions_reach(random: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_query, "DEVIATIONS", 1.0)
    query = random.normal(size=120).astype(np.float32) * np.arange(1, 121, dtype=np.float32) ** -0.3
    query = (query.reshape(3, 40) / np.linalg.norm(query.reshape(3, 40), axis=1, keepdims=True)).ravel()  # equal blocks
    plan = one_query._Plan(PRODUCT, query, rotated=True)
    stage = plan.stages[0]
    # Directions of norm 1 with the same dot product, and so the same distance.
    dot = 0.4 * plan.square**0.5
    others = random.normal(size=(100_000, 120))
    others -= np.outer(others @ query, query) / plan.square
    points = dot * query / plan.square + others * ((1 - dot**2 / plan.square) ** 0.5 / np.linalg.norm(others, axis=1))[:, None]
    _, limit = plan.limits(stage, np.ones(1, np.float32), plan.square + 1 - 2 * dot)
    block = slice(40 * stage.block, 40 * (stage.block + 1))
    below = (points[:, block] @ query[block] < limit).mean()
    assert abs(below - 0.1587) < 0.005  # of a normal distribution, one deviation below the mean


def test_a_search_of_a_rotating_map_makes_use_of_it(random: np.random.Generator) -> None:
    x = random.normal(size=(2000, 130)).astype(np.float32)
    for nested in (False, True):
        quantizer = LatticeQuantizer(120, 192)
        codec = Codec(Linear(130, 120, nested=nested, spheres=[40, 40, 40] if nested else None).adapt(x), quantizer)
        first, *_ = codec.first_stage(x[:1], codec.encode(x[:5], None))
        assert isinstance(first, LatticeQuantizer)
        assert first.rotated is not nested
    assert not quantizer.rotated


def test_most_codes_are_dropped_after_the_first_block(random: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = []
    scan_part = one_query._Part.scan

    def counting(part: one_query._Part, stage: one_query._Stage, rows: np.ndarray, *rest: np.ndarray) -> object:
        scanned.append(len(rows))
        return scan_part(part, stage, rows, *rest)

    monkeypatch.setattr(one_query._Part, "scan", counting)
    codes, query = PRODUCT.encode(rotated(20_000, PRODUCT.dim, random)), rotated(1, PRODUCT.dim, random)
    scan.search(PRODUCT, query, codes, k=10)
    exactly = scanned.copy()
    scanned.clear()
    scan.search(PRODUCT, query, codes, k=10, rotated=True)
    assert exactly[0] == scanned[0] == 20_000
    assert scanned[1] < exactly[1] / 2


def test_runs_without_codes(random: np.random.Generator) -> None:
    codes, query = PRODUCT.encode(rotated(50, PRODUCT.dim, random)), rotated(1, PRODUCT.dim, random)
    offsets, probed = np.array([0, 0, 50, 50]), np.array([[0, 1, 2]])
    _, expected = scan.search(PRODUCT, query, codes, k=5)
    np.testing.assert_array_equal(scan.search_lists(PRODUCT, query, codes, offsets, probed, k=5)[1], expected)
    distances, ids = scan.search_lists(PRODUCT, query, codes, offsets, np.array([[0, 2]]), k=5)
    assert np.isinf(distances).all()
    assert (ids == -1).all()
