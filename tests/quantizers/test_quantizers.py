"""One interface: every quantizer encodes, decodes and searches as brute force on its decoded vectors does."""

import pickle
from typing import Self

import faiss
import numpy as np
import pytest
import torch

from catalyzer import InvalidInput
from catalyzer.quantizers import (
    AdditiveQuantizer,
    EdenQuantizer,
    ITQQuantizer,
    LatticeQuantizer,
    LSHQuantizer,
    ProductQuantizer,
    Quantizer,
    RaBitQuantizer,
    ScalarQuantizer,
    SignQuantizer,
)
from tests.helpers import clustered

DIM = 24


def made(name: str) -> Quantizer:
    return {
        "lattice": LatticeQuantizer(DIM, 64),
        "lattice 32": LatticeQuantizer(DIM, 32),
        "lattices": LatticeQuantizer(DIM, 72),
        "sign": SignQuantizer(DIM, asymmetric=True),
        "pq": ProductQuantizer(DIM, 64),
        "opq": ProductQuantizer(DIM, 64, rotate=True),
        "pq padded": ProductQuantizer(DIM, 40),
        "rq": AdditiveQuantizer(DIM, 32),
        "lsq": AdditiveQuantizer(DIM, 32, local_search=True),
        "sq 4": ScalarQuantizer(DIM, 4),
        "sq 6": ScalarQuantizer(DIM, 6),
        "sq 8": ScalarQuantizer(DIM),
    }[name].fit(vectors(2000, 0))


def vectors(n: int, seed: int) -> np.ndarray:
    x = clustered(n, DIM, seed).astype(np.float32) - 128
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(
    scope="module",
    params=["lattice", "lattice 32", "lattices", "sign", "pq", "opq", "pq padded", "rq", "lsq", "sq 4", "sq 6", "sq 8"],
)
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
    with pytest.raises(InvalidInput, match="between 1 and 10, the number of codes; got 11"):
        quantizer.search(queries, codes, 11)


@pytest.mark.parametrize("rotate", [False, True])
def test_product_quantization_is_faiss_s(rotate: bool) -> None:
    x, base, queries = vectors(800, 0), vectors(1000, 1), vectors(30, 2)
    index = faiss.index_factory(DIM, "OPQ8,PQ8x8np" if rotate else "PQ8x8np")  # no polysemous training, which takes long
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


@pytest.mark.parametrize(("kind", "bits"), [(LSHQuantizer, 16), (LSHQuantizer, 64), (ITQQuantizer, 16), (ITQQuantizer, DIM)])
def test_hashes_are_the_signs_of_centred_projections(kind: type[LSHQuantizer | ITQQuantizer], bits: int) -> None:
    x, base, queries = vectors(2000, 0) + 5, vectors(300, 1) + 5, vectors(20, 2) + 5  # uncentred, all signs would agree
    quantizer = kind(DIM, bits).fit(x)
    codes = quantizer.encode(base)
    assert codes.shape == (300, quantizer.code_size)
    share = np.unpackbits(quantizer.encode(x), axis=1, count=bits, bitorder="little").mean(axis=0)
    assert ((share > 0.2) & (share < 0.8)).all()
    unpacked, of_queries = (
        np.unpackbits(c, axis=1, count=bits, bitorder="little").astype(int) for c in (codes, quantizer.encode(queries))
    )
    hamming = (of_queries[:, None] != unpacked[None]).sum(-1)
    distances, ids = quantizer.search(queries, codes, 5)
    np.testing.assert_array_equal(np.take_along_axis(hamming, ids, 1), np.sort(hamming, axis=1)[:, :5])
    np.testing.assert_allclose(distances, np.sort(hamming, axis=1)[:, :5] * 4 / bits, rtol=1e-6)
    decoded = quantizer.decode(codes)
    assert decoded.shape == base.shape
    assert ((decoded - base) ** 2).sum() < ((base - x.mean(axis=0)) ** 2).sum()


def test_itq_loses_less_than_random_directions() -> None:
    x, base = vectors(2000, 0), vectors(2000, 1)
    itq, lsh = (kind(DIM, 16).fit(x) for kind in (ITQQuantizer, LSHQuantizer))
    errors = [((each.decode(each.encode(base)) - base) ** 2).sum() for each in (itq, lsh)]
    assert errors[0] < 0.95 * errors[1]


def test_rabitq_is_faiss_s() -> None:
    x, base, queries = vectors(2000, 0), vectors(500, 1), vectors(20, 2)
    quantizer = RaBitQuantizer(DIM).fit(x)
    codes = quantizer.encode(base)
    assert codes.shape == (500, quantizer.code_size)
    assert quantizer.bits == DIM + 64
    exact = ((queries[:, None] - base[None]) ** 2).sum(-1)
    ids = quantizer.search(queries, codes, 50)[1]
    assert (ids == exact.argmin(axis=1)[:, None]).any(axis=1).mean() > 0.8
    assert ((quantizer.decode(codes) - base) ** 2).sum() < ((base - x.mean(axis=0)) ** 2).sum()


@pytest.mark.parametrize(
    ("kind", "bits_per_dim", "size"),
    [
        *((RaBitQuantizer, b, 3 + 12 + 3 * (b - 1) + 8) for b in (2, 3, 4, 8, 9)),
        *((EdenQuantizer, b, 3 * b + 8) for b in (2, 3, 4, 8)),
    ],
)
def test_estimates_are_distances_to_what_is_decoded_up_to_its_norm(
    kind: type[RaBitQuantizer | EdenQuantizer], bits_per_dim: int, size: int
) -> None:
    x, base, queries = vectors(2000, 0), vectors(500, 1), vectors(20, 2)
    quantizer = kind(DIM, bits_per_dim=bits_per_dim).fit(x)
    codes = quantizer.encode(base)
    assert codes.shape == (500, size)
    assert quantizer.code_size == size
    error = ((quantizer.decode(codes) - base) ** 2).sum() / ((base - x.mean(axis=0)) ** 2).sum()
    assert error < 1.2 * 0.35**bits_per_dim + 1e-4
    distances, ids = quantizer.search(queries, codes, 10)
    exact = ((queries[:, None] - base[None]) ** 2).sum(-1)
    # <x, q> of an estimate is that of the decoded vector; |x|² is kept in the code
    center = x.mean(axis=0)
    decoded, q = quantizer.decode(codes) - center, queries - center
    estimates = ((base - center) ** 2).sum(1) + (q**2).sum(1)[:, None] - 2 * q @ decoded.T
    if kind is RaBitQuantizer:
        np.testing.assert_allclose(distances, np.take_along_axis(estimates, ids, 1), atol=1e-4)
    assert (ids == exact.argmin(axis=1)[:, None]).any(axis=1).mean() > 0.9


LEARNED = [
    ProductQuantizer(DIM, 64), ProductQuantizer(DIM, 64, rotate=True), ProductQuantizer(DIM, 40, rotate=True),
    AdditiveQuantizer(DIM, 32), AdditiveQuantizer(DIM, 32, local_search=True), LSHQuantizer(DIM, 30), ITQQuantizer(DIM, 20),
    RaBitQuantizer(DIM), RaBitQuantizer(DIM, bits_per_dim=4), EdenQuantizer(DIM), ScalarQuantizer(DIM), ScalarQuantizer(DIM, 6),
]  # fmt: skip
FIXED = [
    LatticeQuantizer(DIM, 64), LatticeQuantizer(DIM, 64, 10), LatticeQuantizer(DIM, 72), SignQuantizer(DIM),
    SignQuantizer(DIM, asymmetric=True),
]  # fmt: skip


@pytest.mark.parametrize("quantizer", [*LEARNED, *FIXED], ids=lambda quantizer: quantizer.label)
def test_what_is_learned_goes_into_an_equal_quantizer(quantizer: Quantizer) -> None:
    quantizer.fit(vectors(2000, 0))
    other = type(quantizer)(**quantizer.arguments)
    state = quantizer.state_dict()
    assert bool(state) == quantizer.is_learned == (quantizer in LEARNED)
    assert all(name.endswith("_") and tensor.dtype == torch.float32 for name, tensor in state.items())
    other.load_state_dict({name: tensor.clone() for name, tensor in state.items()})
    base, queries = vectors(500, 1), vectors(20, 2)
    codes = quantizer.encode(base)
    np.testing.assert_array_equal(other.encode(base), codes)
    np.testing.assert_array_equal(other.decode(codes), quantizer.decode(codes))
    for ours, theirs in zip(other.search(queries, codes, 10), quantizer.search(queries, codes, 10), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert other.state_dict().keys() == state.keys()
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in state.items())


class Thresholds(Quantizer):
    """A bit a coordinate; learns an array and numbers of both kinds."""

    def __init__(self, dim: int) -> None:
        self.dim, self.bits = dim, dim

    def fit(self, x: np.ndarray) -> Self:
        self.middle_, self.size_, self.unit_ = np.median(x, axis=0), np.abs(x).mean(), float(x.std())
        return self

    def encode(self, x: np.ndarray) -> np.ndarray:
        return np.packbits(x > self.middle_, axis=1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        signs = 2 * np.unpackbits(codes, axis=1, count=self.dim).astype(np.float32) - 1
        return self.middle_ + (self.size_ + np.float32(self.unit_)) * signs


def test_learned_numbers_are_kept_as_arrays_are() -> None:
    quantizer, other = Thresholds(DIM).fit(vectors(2000, 0)), Thresholds(DIM)
    state = quantizer.state_dict()
    assert {name: tensor.shape for name, tensor in state.items()} == {"middle_": (DIM,), "size_": (), "unit_": ()}
    other.load_state_dict(state)
    codes = quantizer.encode(vectors(500, 1))
    np.testing.assert_array_equal(other.decode(codes), quantizer.decode(codes))


@pytest.mark.parametrize("quantizer", [*LEARNED, *FIXED], ids=lambda quantizer: quantizer.label)
def test_what_another_quantizer_has_learned_is_refused(quantizer: Quantizer) -> None:
    state = quantizer.fit(vectors(2000, 0)).state_dict()
    hostile = [{**state, "more_": torch.zeros(3)}, {**state, "search": torch.zeros(3)}, {**state, "_signs": torch.zeros(3)}]
    for name, tensor in state.items():
        others = {key: value for key, value in state.items() if key != name}
        larger = torch.cat([tensor, tensor])
        changed = [larger, tensor[:0], tensor.double(), tensor.reshape(1, *tensor.shape), torch.zeros(())]
        hostile += [others, *({**others, name: wrong} for wrong in changed)]
    for wrong in hostile:
        with pytest.raises(InvalidInput, match=rf"^{quantizer.label}"):
            type(quantizer)(**quantizer.arguments).load_state_dict(wrong)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LatticeQuantizer(24, 64, 200), "79 bits"),
        (lambda: LatticeQuantizer(24, 32, 79), "needs 64 bits, which do not fit in bits = 32"),
        (lambda: ProductQuantizer(24, 12), "multiple of 8, got 12"),
        (lambda: AdditiveQuantizer(24, 12), "multiple of 8, got 12"),
        (lambda: AdditiveQuantizer(8, 64).fit(np.ones((100, 8), np.float32)), "at least 256 vectors, got 100"),
        (lambda: RaBitQuantizer(24, bits_per_dim=10), "bits_per_dim must be an integer between 1 and 9; got 10"),
        (lambda: EdenQuantizer(24, 9), "bits_per_dim must be an integer between 1 and 8; got 9"),
        (lambda: ScalarQuantizer(24, 5), "4, 6 or 8 bits per dimension, got bits_per_dim = 5"),
        (lambda: ITQQuantizer(24, 32), "32 bits need at least 32 dimensions; got 24"),
        (lambda: ITQQuantizer(24, 16).fit(np.ones((9, 24), np.float32)), "16 bits from at least 16 vectors, got 9"),
        (lambda: ProductQuantizer(4, 64), "8 bytes need at least 8 dimensions, got 4"),
        (lambda: ProductQuantizer(8, 64).fit(np.ones((100, 8), np.float32)), "at least 256 vectors, got 100"),
    ],
)
def test_refusals(make, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make()


@pytest.mark.parametrize(
    "quantizer",
    [ProductQuantizer(16, 32), ProductQuantizer(16, 32, rotate=True), AdditiveQuantizer(16, 16), LSHQuantizer(16, 16),
     ITQQuantizer(16, 16), RaBitQuantizer(16), EdenQuantizer(16), ScalarQuantizer(16), SignQuantizer(16),
     LatticeQuantizer(16, 32)],
    ids=lambda quantizer: quantizer.label,
)  # fmt: skip
def test_what_cannot_be_encoded(quantizer: Quantizer) -> None:
    x = clustered(600, 16, 0).astype(np.float32)
    if quantizer.is_learned:
        assert not quantizer.is_fitted
        with pytest.raises(InvalidInput, match="is not fitted; call fit"):
            quantizer.encode(x)
        quantizer.fit(x)
    assert quantizer.is_fitted
    assert pickle.loads(pickle.dumps(quantizer)).is_fitted
    for bad in (x[:, :5], x[0], np.full((3, 16), np.nan, np.float32)):
        with pytest.raises(InvalidInput, match=r"expected vectors of shape \(n, 16\)|contains NaN or infinity"):
            quantizer.encode(bad)
