"""Numbers: NumPy's integers are integers, and what is none is refused in one sentence in every room."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from catalyzer import Catalyzer, Codec, InvalidInput, LatticeQuantizer, ProductQuantizer, SignQuantizer, SphericalLattice, knn
from catalyzer.errors import Unavailable, integer
from catalyzer.neighbors import knn_graph
from catalyzer.quantizers import AdditiveQuantizer, LSHQuantizer, RaBitQuantizer
from tests.helpers import clustered

X = clustered(600, 24, 0).astype(np.float32)
LATTICE = SphericalLattice(24, 79)
PQ = ProductQuantizer(24, 32).fit(X)
SIGNS = SignQuantizer(24)

TAKEN: dict[str, Callable[[Any], Any]] = {
    "lattice.nearest, k": lambda k: LATTICE.nearest(X[:2], k),
    "lattice.search, k": lambda k: LatticeQuantizer(24).search(X[:2], LATTICE.encode(X), k),
    "pq.search, k": lambda k: PQ.search(X[:2], PQ.encode(X), k),
    "signs.search, k": lambda k: SIGNS.search(X[:2], SIGNS.encode(X), k),
    "knn, k": lambda k: knn(X[:2], X, k),
    "knn_graph, k": lambda k: knn_graph(X, k),
    "dim": lambda k: SignQuantizer(8 * k),
    "lattice dim": lambda k: SphericalLattice(k, 4),
    "lattice r²": lambda k: SphericalLattice(4, k),
    "lattice bits": lambda k: SphericalLattice.for_bits(8, 16 * k),
    "pq bits": lambda k: ProductQuantizer(24, 8 * k),
    "rq bits": lambda k: AdditiveQuantizer(24, 8 * k),
    "lsh bits": lambda k: LSHQuantizer(24, k),
    "rabitq dim": lambda k: RaBitQuantizer(k),
    "network": lambda k: Catalyzer(k, 24),
    "hidden": lambda k: Catalyzer(24, 24, hidden=k),
}


@pytest.mark.parametrize("use", TAKEN.values(), ids=TAKEN)
def test_integers_of_numpy_are_integers(use: Callable[[Any], Any]) -> None:
    for kind in (int, np.int64, np.uint8, np.int32):
        use(kind(2))


@pytest.mark.parametrize("use", TAKEN.values(), ids=TAKEN)
@pytest.mark.parametrize("value", [2.0, np.float32(2), "2", None, 0, -1, np.array([2])], ids=repr)
def test_what_is_no_integer_is_one_sentence(use: Callable[[Any], Any], value: Any) -> None:
    with pytest.raises((InvalidInput, TypeError)) as error:
        use(value)
    if value is not None and not isinstance(value, str):
        assert isinstance(error.value, InvalidInput)
        assert " must be an integer " in str(error.value)


@pytest.mark.parametrize("value", [2**31, 2**63, 2**200, True])
def test_numbers_beyond_what_there_is(value: Any) -> None:
    for name in ("lattice.nearest, k", "lattice.search, k", "pq.search, k", "signs.search, k", "knn, k", "knn_graph, k"):
        if name == "lattice.nearest, k" and value in (2**31, 2**63):
            continue  # there are so many points
        with pytest.raises(InvalidInput, match="k must be an integer between 1 and"):
            TAKEN[name](value)


def test_points_that_fit_no_memory() -> None:
    with pytest.raises(Unavailable, match="do not fit into memory; lower k"):
        LATTICE.nearest(X[:2], 2**63)


def test_search_and_rerank_of_a_codec(codec: Codec) -> None:
    x = clustered(50, 32, 1)
    codes = codec.encode(x)
    expected = codec.search(x[:3], codes, 5, 50)
    for rerank in (np.int64(50), 10**18, 2**200):
        np.testing.assert_array_equal(codec.search(x[:3], codes, np.uint8(5), rerank)[1], expected[1])
    for k, rerank in ((2.0, 0), (True, 0), (5, -1), (5, 3.0), (51, 0)):
        with pytest.raises(InvalidInput, match="must be an integer"):
            codec.search(x[:3], codes, k, rerank)  # type: ignore[arg-type]


def test_limits_are_named() -> None:
    with pytest.raises(InvalidInput, match=r"^k must be an integer between 1 and 1,000, the number of codes; got 2,000$"):
        integer("k", 2000, 1, 1000, "the number of codes")
    with pytest.raises(InvalidInput, match=r"^bits must be an integer of at least 1; got True$"):
        integer("bits", True, 1)
