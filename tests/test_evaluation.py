"""recall@k by hand, and what is measured."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalyzer import recall_at
from catalyzer.codec import Codec
from catalyzer.evaluation import measure
from catalyzer.neighbors import knn
from catalyzer.nn import Identity
from catalyzer.quantizers import ProductQuantizer
from tests.helpers import clustered


@given(nq=st.integers(1, 30), n=st.integers(1, 50), data=st.data())
def test_recall_counts_the_true_neighbour_among_the_first_k(nq: int, n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    random = np.random.default_rng(nq)
    ids = np.stack([random.permutation(n) for _ in range(nq)])
    truth = random.integers(0, n, (nq, 3))
    expected = sum(truth[i, 0] in ids[i, :k] for i in range(nq)) / nq
    assert recall_at(k, ids, truth) == pytest.approx(expected)


def test_measuring_finds_what_searching_the_decoded_base_finds() -> None:
    base, queries = clustered(3000, 32, 1), clustered(100, 32, 2)
    truth = knn(queries, base, 1)[1]
    quantizer = ProductQuantizer(32, 64).fit(clustered(2000, 32, 0).astype(np.float32))
    result, reranked = measure("PQ", Codec(Identity(32), quantizer), base, queries, truth, (0, 200))
    decoded = quantizer.decode(quantizer.encode(base.astype(np.float32)))
    ids = knn(queries, decoded, 100)[1]
    for k, recall in result.recall.items():
        assert recall == pytest.approx(recall_at(k, ids, truth), abs=0.02)
    assert result.recall[1] <= result.recall[10] <= result.recall[100]
    assert result.encoding > 0
    assert result.search > 0
    expected = ((decoded - base.astype(np.float32)) ** 2).sum(axis=1).mean()
    assert result.error == pytest.approx(expected, rel=1e-4)
    assert reranked.method == "PQ (rerank 200)"
    assert reranked.recall == pytest.approx(result.recall, abs=0.02)  # both stages measure the same distance


def test_ranks_beyond_the_base_are_left_out() -> None:
    base = clustered(300, 32, 1)
    quantizer = ProductQuantizer(32, 64).fit(base.astype(np.float32))
    truth = np.arange(30)[:, None]
    (result,) = measure("PQ", Codec(Identity(32), quantizer), base[:30], base[:30], truth)
    assert sorted(result.recall) == [1, 2, 5, 10, 20]
