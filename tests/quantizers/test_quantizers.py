"""One interface: every quantizer encodes, decodes and searches as brute force on its decoded vectors does."""

import faiss
import numpy as np
import pytest

from catalyzer import InvalidInput
from catalyzer.quantizers import LatticeQuantizer, ProductQuantizer, Quantizer, SignQuantizer
from tests.conftest import clustered

DIM = 24


def made(name: str) -> Quantizer:
    return {
        "lattice": LatticeQuantizer(DIM, 64),
        "lattice 32": LatticeQuantizer(DIM, 32),
        "sign": SignQuantizer(DIM, asymmetric=True),
        "pq": ProductQuantizer(DIM, 64),
        "opq": ProductQuantizer(DIM, 64, rotate=True),
        "pq padded": ProductQuantizer(DIM, 40),
    }[name].fit(vectors(2000, 0))


def vectors(n: int, seed: int) -> np.ndarray:
    x = clustered(n, DIM, seed).astype(np.float32) - 128
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module", params=["lattice", "lattice 32", "sign", "pq", "opq", "pq padded"])
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    return made(request.param)


def test_codes_and_decoded_vectors_have_the_promised_shapes(quantizer: Quantizer) -> None:
    codes = quantizer.encode(vectors(100, 1))
    assert codes.dtype == np.uint8
    assert codes.shape == (100, quantizer.code_size)
    assert quantizer.code_size == -(-quantizer.bits // 8)
    decoded = quantizer.decode(codes)
    assert decoded.dtype == np.float32
    assert decoded.shape == (100, DIM)


def test_search_is_exact_over_decoded_vectors(quantizer: Quantizer) -> None:
    codes, queries = quantizer.encode(vectors(1500, 1)), vectors(40, 2)
    distances, ids = quantizer.search(queries, codes, 10)
    assert (distances.dtype, ids.dtype) == (np.float32, np.int64)
    exact = ((queries[:, None] - quantizer.decode(codes)[None]) ** 2).sum(-1)
    np.testing.assert_allclose(distances, np.sort(exact, axis=1)[:, :10], atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(exact, ids, 1), distances, atol=1e-4)


def test_a_coded_vector_finds_itself(quantizer: Quantizer) -> None:
    x = vectors(500, 1)
    ids = quantizer.search(x[:50], quantizer.encode(x), 100)[1]
    assert (ids == np.arange(50)[:, None]).any(axis=1).mean() > 0.9


def test_search_refuses_what_does_not_fit(quantizer: Quantizer) -> None:
    codes, queries = quantizer.encode(vectors(10, 1)), vectors(3, 2)
    with pytest.raises(InvalidInput, match=rf"queries must be \(n, {DIM}\)"):
        quantizer.search(queries[:, 1:], codes, 1)
    with pytest.raises(InvalidInput, match=r"codes must be \(n, "):
        quantizer.search(queries, codes[:, 1:], 1)
    with pytest.raises(InvalidInput, match="between 1 and the number of codes, 10; got 11"):
        quantizer.search(queries, codes, 11)


@pytest.mark.parametrize("rotate", [False, True])
def test_product_quantization_is_faiss_s(rotate: bool) -> None:
    x, base, queries = vectors(3000, 0), vectors(1000, 1), vectors(30, 2)
    index = faiss.index_factory(DIM, "OPQ8,PQ8x8" if rotate else "PQ8x8")
    index.train(x)
    index.add(base)
    ours = ProductQuantizer(DIM, 64, rotate).fit(x)
    np.testing.assert_array_equal(ours.search(queries, ours.encode(base), 10)[1], index.search(queries, 10)[1])


def test_sign_search_counts_bits_that_differ() -> None:
    quantizer = SignQuantizer(DIM)
    base, queries = vectors(300, 1), vectors(20, 2)
    hamming = ((queries[:, None] > 0) != (base[None] > 0)).sum(-1)
    distances, ids = quantizer.search(queries, quantizer.encode(base), 5)
    np.testing.assert_array_equal(np.take_along_axis(hamming, ids, 1), np.sort(hamming, axis=1)[:, :5])
    np.testing.assert_allclose(distances, np.sort(hamming, axis=1)[:, :5] * 4 / DIM, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LatticeQuantizer(24, 64, 200), "79 bits"),
        (lambda: LatticeQuantizer(24, 32, 79), "needs 64 bits, which do not fit in bits = 32"),
        (lambda: ProductQuantizer(24, 12), "multiple of 8, got 12"),
        (lambda: ProductQuantizer(4, 64), "8 bytes need at least 8 dimensions, got 4"),
        (lambda: ProductQuantizer(8, 64).fit(np.ones((100, 8), np.float32)), "at least 256 vectors, got 100"),
    ],
)
def test_refusals(make, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make()
