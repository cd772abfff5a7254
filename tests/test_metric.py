"""Every metric ranks by L2 as it ranks itself, and gives the similarity back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalyzer import InvalidInput
from catalyzer.files import vectors
from catalyzer.metric import Metric, MetricName, norms


def squared_distances(queries: np.ndarray, base: np.ndarray) -> np.ndarray:
    return ((queries[:, None].astype(np.float64) - base) ** 2).sum(axis=2)


@pytest.mark.parametrize("name", ["l2", "cosine", "ip"])
@given(seed=st.integers(0, 2**32 - 1), d=st.integers(1, 40), spread=st.floats(1e-3, 1e3))
def test_nearest_by_l2_is_best(name: MetricName, seed: int, d: int, spread: float) -> None:
    random = np.random.default_rng(seed)
    base = (random.normal(size=(50, d)) * random.uniform(0.1, 1, (50, 1)) * spread).astype(np.float32)
    queries = (random.normal(size=(7, d)) * spread).astype(np.float32)
    metric = Metric(name, float(norms(base).max()) if name == "ip" else None)
    assert not metric.too_long(base).any()
    distances = squared_distances(metric.queries(queries), metric.base(base))
    scores = metric.scores(distances.astype(np.float32), queries, on_sphere=False)
    x, q = base.astype(np.float64), queries.astype(np.float64)
    expected = {
        "l2": squared_distances(q, x),
        "ip": q @ x.T,
        "cosine": (q @ x.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(x, axis=1),
    }[name]
    np.testing.assert_allclose(scores, expected, atol=1e-5 * max(1.0, float(abs(expected).max())))
    np.testing.assert_allclose(metric.restore(metric.base(base)), metric.base(base)[:, :d], rtol=1e-5, atol=1e-6 * spread)


def test_what_cannot_be_compared() -> None:
    x = np.ones((1, 3), np.float32)
    ip = Metric("ip", max_norm=3**0.5)
    assert ip.too_long(np.array([[1, 1, 1], [1, 1, 1.001]], np.float32)).tolist() == [False, True]
    zero = np.zeros((1, 3), np.float32)
    assert ip.scores(squared_distances(ip.queries(zero), ip.base(x[:1])).astype(np.float32), zero, on_sphere=False) == 0
    for max_norm in (0, -1.0, np.nan, np.inf, True, "3"):
        with pytest.raises(InvalidInput, match="max_norm must be a number above 0 and at most"):
            Metric("ip", max_norm)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"max_norm = 1\.0 is for inner products, metric=.ip.; got metric=.l2."):
        Metric("l2", 1.0)
    with pytest.raises(InvalidInput, match="one of l2, cosine, ip; got 'dot'"):
        Metric("dot")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["l2", "cosine", "ip"])
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 40), first=st.integers(-50, 50), last=st.integers(-50, 50))
def test_vectors_are_mapped_where_they_are_sliced(name: MetricName, seed: int, n: int, first: int, last: int) -> None:
    x = np.random.default_rng(seed).normal(size=(n, 5)).astype(np.float32)
    metric = Metric(name, 100.0 if name == "ip" else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "BLOCK", 7)
        for mapped, whole in ((metric.stored(x, "x"), metric.base(x)), (metric.searched(x, "x"), metric.queries(x))):
            assert (len(mapped), mapped.shape, mapped.dtype) == (n, whole.shape, whole.dtype)
            np.testing.assert_array_equal(mapped[first:last], whole[first:last])
            np.testing.assert_array_equal([*mapped], [*whole])
