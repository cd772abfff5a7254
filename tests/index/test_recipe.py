"""What an index learns from few vectors, or from vectors among which some are mistakes."""

import logging

import numpy as np
import pytest

from catalyzer import CatalyzerIndex, InvalidInput, knn, recall_at
from catalyzer.nn import Linear, LinearDecoder
from catalyzer.outliers import outliers
from tests.helpers import clustered

BASE, QUERIES = clustered(2000, 32, 1), clustered(200, 32, 2)
TRUTH = knn(QUERIES, BASE, 1)[1]


def recall(index: CatalyzerIndex) -> float:
    index.add(BASE)
    return recall_at(10, index.search(QUERIES, k=10)[1], TRUTH)


@pytest.mark.parametrize("factor", [1e3, 1e12])
def test_one_row_moves_nothing(factor: float, caplog: pytest.LogCaptureFixture) -> None:
    x = clustered(1500, 32, 0).astype(np.float32)
    clean = recall(CatalyzerIndex(d_out=24, hidden=64).fit(x, epochs=4))
    x[777] *= factor
    with caplog.at_level(logging.WARNING):
        index = CatalyzerIndex(d_out=24, hidden=64).fit(x, epochs=4)
    assert "1 of 1,500 vectors to learn from are more than 10 times as far from the middle as most" in caplog.text
    assert "rows 777" in caplog.text
    assert recall(index) > clean - 0.05


def test_rows_far_from_all_others() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(5000, 8))
    assert not outliers(x).any()
    assert not outliers(x * 1e-9 + 7).any()
    x[[0, 4999]] += 1e3
    assert np.flatnonzero(outliers(x)).tolist() == [0, 4999]
    assert not outliers(np.ones((100, 4))).any()
    assert outliers(np.empty((0, 4))).shape == (0,)


def test_distances_that_float32_cannot_square() -> None:
    x = clustered(600, 32, 0).astype(np.float32) * np.float32(1e-30)
    with pytest.raises(InvalidInput, match=r"float32 cannot hold the squares of such distances; multiply all vectors"):
        CatalyzerIndex(d_out=24, hidden=16).fit(x, epochs=1)


def test_an_index_takes_a_linear_map_where_that_finds_as_much(caplog: pytest.LogCaptureFixture) -> None:
    x = clustered(600, 32, 0)
    with caplog.at_level(logging.WARNING):
        index = CatalyzerIndex(d_out=24, hidden=16).fit(x, epochs=1)
    assert "the index takes the linear map: 480 vectors, or their epochs, are few for a network" in caplog.text
    assert index._contents is not None
    codec = index._contents.codec
    assert isinstance(codec.transform, Linear)
    assert isinstance(codec.decoder, LinearDecoder)
    found = recall(index)
    assert found > 0.9
    assert index.reconstruct([0]).shape == (1, 32)
