"""What an index learns from few vectors, or from vectors among which some are mistakes."""

import logging
from pathlib import Path

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


@pytest.mark.parametrize("ivf", [0, 8])
def test_an_index_without_training(ivf: int, tmp_path: Path) -> None:
    x = clustered(2000, 32, 0)
    index = CatalyzerIndex(bits=128, method="linear", ivf=ivf).fit(x)
    found = recall(index)
    assert found > 0.9
    assert index.codes.shape == (2000, 16)
    index.save(tmp_path / "x.catalyzer")
    loaded = CatalyzerIndex.load(tmp_path / "x.catalyzer", mmap=True)
    assert loaded._contents is not None
    assert isinstance(loaded._contents.codec.transform, Linear)
    assert isinstance(loaded._contents.codec.decoder, LinearDecoder)
    for ours, theirs in zip(loaded.search(QUERIES), index.search(QUERIES, rerank=0), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for row in range(3):  # alone as among others
        for ours, theirs in zip(loaded.search(QUERIES[row]), index.search(QUERIES), strict=True):
            np.testing.assert_array_equal(ours, theirs[row])
    assert np.abs(index.reconstruct(np.arange(200)) - BASE[:200]).mean() < np.abs(BASE[:200] - BASE.mean(0)).mean() / 2


def test_no_budget_is_no_training() -> None:
    x = clustered(600, 32, 0)
    linear, zero = CatalyzerIndex(d_out=24, method="linear").fit(x), CatalyzerIndex(d_out=24).fit(x, budget="0")
    for index in (linear, zero):
        index.add(BASE)
    np.testing.assert_array_equal(linear.codes, zero.codes)
    for more in ({"epochs": 3}, {"budget": "1min"}):
        with pytest.raises(InvalidInput, match='method="linear" trains no network, so it takes neither epochs nor a budget'):
            CatalyzerIndex(d_out=24, method="linear").fit(x, **more)
    with pytest.raises(InvalidInput, match=r"method must be .auto. or .linear., got 'pca'"):
        CatalyzerIndex(method="pca")  # type: ignore[arg-type]
