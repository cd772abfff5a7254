"""What an index learns from few vectors, or from vectors among which some are mistakes."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalyzer import CatalyzerIndex, InvalidInput, knn, recall_at
from catalyzer.nn import Linear, LinearDecoder
from catalyzer.outliers import outliers
from catalyzer.parts import describe
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
    assert "the index takes the linear map: for a network, 480 vectors or these epochs are too few" in caplog.text
    assert index._contents is not None
    codec = index._contents.codec
    assert isinstance(codec.transform, Linear)
    assert isinstance(codec.decoder, LinearDecoder)
    same = CatalyzerIndex(d_out=24, method="linear").fit(x)._contents
    assert same is not None
    assert [describe(part) for part in (same.codec.transform, same.codec.quantizer)] == [
        describe(part) for part in (codec.transform, codec.quantizer)
    ]
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
    assert {row.rerank for row in index.evaluate(QUERIES, BASE).rows} == {0}  # more would find nothing more
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


@pytest.mark.parametrize("gain", ["false", "blocks", "null"])
def test_nested_codes_are_searched_by_their_first_blocks(gain: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(3000, 80)).astype(np.float32) * np.linspace(2, 0.2, 80, dtype=np.float32)
    queries, truth = x[:100], np.argsort(((x[:100, None] - x[None]) ** 2).sum(2), axis=1)[:, :10]
    indexes = []
    for which in ("true", "false"):
        overrides = [f"catalyzer.nested={which}", f"quantizer.gain={gain if which == 'true' else 'false'}"]
        index = CatalyzerIndex(bits=192, d_out=72, method="linear", overrides=overrides).fit(x)
        index.add(x)
        index.save(tmp_path / "x.catalyzer")
        indexes.append(CatalyzerIndex.load(tmp_path / "x.catalyzer"))
    nested, rotated = indexes
    assert nested._contents is not None
    assert nested._contents.codec.quantizer.gain == {"false": None}.get(gain, "blocks")

    def found(index: CatalyzerIndex, **search: int) -> float:
        ids = index.search(queries, 10, **search)[1]
        return float(np.mean([len({*row} & {*true}) for row, true in zip(ids, truth, strict=True)]))

    # The first block has the axes of the largest variance, so it finds more by itself than a third of rotated axes does.
    first = found(nested, blocks=1, rerank=0)
    assert first > found(rotated, blocks=1, rerank=0) + 1
    assert found(nested, blocks=1, rerank=200) > first + 1
    assert found(nested, blocks=2, rerank=0) > first + 1
    for ours, theirs in zip(nested.search(queries, blocks=3, rerank=50), nested.search(queries, rerank=0), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)  # reranked by whole codes, in the same order
    for ours, theirs in zip(nested.search(queries[0], blocks=1), nested.search(queries, blocks=1), strict=True):
        np.testing.assert_array_equal(ours, theirs[0])  # alone as among others
    measured = nested.evaluate(queries, x, blocks=np.array([1, 3]))
    assert json.loads(json.dumps(measured.as_json()))["rows"][1]["blocks"] == 3
    assert [(row.rerank, row.blocks) for row in measured.rows] == [
        (n, blocks) for n in (0, 20, 50, 100, 500) for blocks in (1, 3)
    ]
    for row in measured.rows:
        assert row.overlap == pytest.approx(found(nested, blocks=row.blocks, rerank=row.rerank) / 10)
    assert str(measured.rows[2]) == "rerank=20, blocks=1"
    figure = measured.figure()
    legend = figure.legends[0].get_window_extent()
    assert 0 <= legend.x0 < legend.x1 <= figure.bbox.x1  # with its long labels
    refused = "blocks must be an integer between 1 and 3, the number of blocks of a code; got 4"
    with pytest.raises(InvalidInput, match=refused):
        nested.search(queries, blocks=4)
    with pytest.raises(InvalidInput, match=refused):
        nested.evaluate(queries, x, blocks=[4])


@pytest.mark.parametrize("ivf", [0, 8])
def test_norms_that_differ_are_coded(ivf: int) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(3000, 32)).astype(np.float32) * np.exp(0.7 * random.normal(size=(3000, 1))).astype(np.float32)
    index = CatalyzerIndex(bits=128, d_out=32, method="linear", ivf=ivf).fit(x)
    assert index._contents is not None
    assert index._contents.codec.quantizer.gain
    index.add(x)
    scores, ids = index.search(x[:200], 10)
    assert (ids[:, :1] == np.arange(200)[:, None]).mean() > 0.9
    assert (np.diff(scores, axis=1) >= 0).all()
    # The norm of a vector is that of its code, but for the projection and half a step.
    norms = np.linalg.norm(index.reconstruct(np.arange(200)) - x.mean(0), axis=1)
    np.testing.assert_allclose(norms, np.linalg.norm(x[:200] - x.mean(0), axis=1), rtol=0.2)
    without = CatalyzerIndex(bits=128, d_out=32, method="linear", ivf=ivf, overrides=["quantizer.gain=false"]).fit(x)
    without.add(x)
    truth = np.argsort(((x[:200, None] - x[None]) ** 2).sum(2), axis=1)[:, :10]
    hits = [
        np.mean([len({*a} & {*b}) for a, b in zip(each.search(x[:200])[1], truth, strict=True)]) for each in (index, without)
    ]
    assert hits[0] > hits[1] + 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"bits": 160, "overrides": ["quantizer.gain=false"]},
            "codes have 128 bits where bits = 160: 32 dimensions hold no more, and the vectors have no others; "
            "ask for fewer bits",
        ),
        (
            {"bits": 160, "d_out": 24, "overrides": ["quantizer.gain=false"]},
            "codes have 106 bits where bits = 160: 24 dimensions hold no more; raise d_out, or ask for fewer bits",
        ),
        (
            {"bits": 16, "d_out": 20},
            "codes have 14 bits where bits = 16: 20 dimensions have no sphere between; lower d_out, or ask for fewer bits",
        ),
        ({"bits": 128}, ""),
        ({"d_out": 24, "overrides": ["quantizer.radius_sq=20"]}, ""),  # which is the user's own choice
        ({"d_out": 24, "overrides": ["quantizer.blocks=[[12,4],[12,4]]"]}, ""),
    ],
)
def test_an_index_says_where_it_makes_fewer_bits(
    options: dict[str, Any], sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        CatalyzerIndex(method="linear", **options).fit(clustered(600, 32, 0))
    assert [record.message for record in caplog.records] == ([sentence] if sentence else [])


IDLE = "trains no network, which leaves {} without effect; leave that out"


@pytest.mark.parametrize(
    ("options", "fit", "sentence"),
    [
        (
            {"method": "linear", "hidden": 64},
            {},
            "hidden = 64 is the width of networks, and a linear map has none; leave it out",
        ),
        ({"hidden": 64}, {"budget": "0"}, "hidden = 64 is the width of networks"),
        ({"method": "linear", "overrides": ["loss=triplet", "lambda=0.01"]}, {}, IDLE.format("loss=triplet lambda=0.01")),
        ({"method": "linear", "overrides": ["trainer.max_epochs=3"]}, {}, IDLE.format("trainer.max_epochs=3")),
        ({"method": "linear", "decoder": False, "overrides": ["catalyzer=mlp"]}, {}, "Catalyzer is one; leave one of them out"),
        (
            {"decoder": False, "d_out": 24, "overrides": ["catalyzer=pca", "lambda=1"]},
            {},
            "PCA is not trained, which leaves lambda=1",
        ),
        (
            {"overrides": ["trainer.max_epochs=3"]},
            {"epochs": 3},
            "trainer.max_epochs=3 cannot be an override of an index; give epochs=3 to fit, or --epochs 3",
        ),
        ({"overrides": ["++trainer.max_epochs=30"]}, {"budget": "1min"}, "give epochs=30 to fit, or --epochs 30"),
        (
            {"overrides": ["trainer.check_val_every_n_epoch=2"]},
            {},
            "cannot be an override of an index, whose epochs say when it validates; leave it out",
        ),
    ],
)
def test_settings_without_effect(options: dict[str, Any], fit: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(sentence)):
        CatalyzerIndex(**options).fit(clustered(600, 32, 0), **fit)


def test_no_budget_is_no_training() -> None:
    x = clustered(600, 32, 0)
    linear, zero = CatalyzerIndex(d_out=24, method="linear").fit(x), CatalyzerIndex(d_out=24).fit(x, budget="0")
    for index in (linear, zero):
        index.add(BASE)
    np.testing.assert_array_equal(linear.codes, zero.codes)
    for more in ({"epochs": 3}, {"budget": "1min"}):
        with pytest.raises(InvalidInput, match='method="linear" trains no network, so it accepts neither epochs nor a budget'):
            CatalyzerIndex(d_out=24, method="linear").fit(x, **more)
    with pytest.raises(InvalidInput, match=r"method must be .auto. or .linear., got 'pca'"):
        CatalyzerIndex(method="pca")  # type: ignore[arg-type]


def test_codes_of_a_linear_map_that_are_chosen_by_its_decoder() -> None:
    index = CatalyzerIndex(100, d_out=28, method="linear", overrides=["steps=1", "refine=2"]).fit(BASE[:600])
    assert index._contents is not None
    assert (index._contents.codec.steps, index._contents.codec.refine) == (1, 2)
    assert recall(index) > 0.9


@pytest.mark.parametrize("ivf", [0, 8])
def test_blocks_have_gains_where_they_find_more(ivf: int, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(3000, 64)).astype(np.float32) * np.linspace(1, 0.5, 64, dtype=np.float32)
    index = CatalyzerIndex(bits=256, d_out=64, method="linear", ivf=ivf).fit(x)
    assert index._contents is not None
    assert index._contents.codec.quantizer.gain == "blocks"
    index.add(x)
    assert index.codes.shape == (3000, 32)
    index.save(tmp_path / "x.catalyzer")
    for loaded in (CatalyzerIndex.load(tmp_path / "x.catalyzer", mmap=mmap) for mmap in (False, True)):
        for ours, theirs in zip(loaded.search(x[:100]), index.search(x[:100]), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(index.search(x[0]), index.search(x[:100]), strict=True):
        np.testing.assert_array_equal(ours, theirs[0])  # alone as among others
    without = CatalyzerIndex(bits=256, d_out=64, method="linear", ivf=ivf, overrides=["quantizer.gain=false"]).fit(x)
    without.add(x)
    errors = [np.square(each.reconstruct(np.arange(500)) - x[:500]).sum() for each in (index, without)]
    assert errors[0] < 0.9 * errors[1]
    with pytest.raises(InvalidInput, match="the first blocks of these codes are no codes themselves"):
        index.search(x[:2], blocks=1)


def test_nested_blocks_have_no_gain_together() -> None:
    index = CatalyzerIndex(bits=256, d_out=64, method="linear", overrides=["catalyzer.nested=true", "quantizer.gain=true"])
    with pytest.raises(InvalidInput, match=r"quantizer\.gain=true is one gain for all blocks"):
        index.fit(np.random.default_rng(0).normal(size=(1000, 64)))
    with pytest.raises(
        InvalidInput, match=r'catalyzer\.nested=true is for linear maps; add method="linear", or --method linear'
    ):
        CatalyzerIndex(bits=256, overrides=["catalyzer.nested=true"]).fit(np.random.default_rng(0).normal(size=(1000, 64)))
