"""Filters, range search, one query at a time: each compared with plain NumPy on what the index finds without them."""

import threading
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalyzer import CatalyzerIndex, Codec, InvalidInput, LatticeQuantizer
from catalyzer.metric import MetricName
from catalyzer.nn import Catalyzer, ResidualDecoder
from tests.helpers import clustered

BASE, QUERIES = clustered(900, 32, 1), clustered(25, 32, 2)
slow = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def networks() -> CatalyzerIndex:
    """Of networks that are not trained, as `fit` takes PCA of so few vectors; distances are weighed as it weighs them."""
    torch.manual_seed(0)
    f, g = Catalyzer(32, 24, 64).adapt(BASE), ResidualDecoder(24, 32, 64).adapt(BASE)
    index = CatalyzerIndex.from_codec(Codec(f, LatticeQuantizer(24), g, latent_share=0.2))
    index.add(BASE, ids=np.random.default_rng(3).permutation(2000)[:900])
    return index


def made(metric: MetricName, ivf: int) -> CatalyzerIndex:
    overrides = ["dataset.validation_base_size=100"]
    index = CatalyzerIndex(metric=metric, d_out=24, hidden=64, ivf=ivf, overrides=overrides)
    index.fit(clustered(800, 32, 0), epochs=1)
    index.add(BASE, ids=np.random.default_rng(3).permutation(2000)[:900])
    return index


@pytest.fixture(scope="module")
def indexes() -> dict[tuple[str, int], CatalyzerIndex]:
    made_by_fit = {(metric, ivf): made(metric, ivf) for metric, ivf in (("l2", 0), ("l2", 16), ("cosine", 16), ("ip", 0))}
    return made_by_fit | {("networks", 0): networks()}


KINDS = [("l2", 0), ("l2", 16), ("cosine", 16), ("ip", 0), ("networks", 0)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rerank", [0, 40])
def test_a_query_finds_the_same_alone_and_among_others(
    indexes: dict[tuple[str, int], CatalyzerIndex], kind: tuple[str, int], rerank: int
) -> None:
    index = indexes[kind]
    queries = np.concatenate([clustered(300, 32, 5), QUERIES]).astype(np.float32)
    distances, ids = index.search(queries, 20, rerank)
    for row in range(len(queries)):
        alone = index.search(queries[row], 20, rerank)
        np.testing.assert_array_equal(alone[0], distances[row])
        np.testing.assert_array_equal(alone[1], ids[row])
    np.testing.assert_array_equal(index.search(queries[:7], 20, rerank)[0], distances[:7])


def filtered(index: CatalyzerIndex, allowed: np.ndarray, k: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """By what a search for all vectors finds, without those that are not allowed."""
    scores, ids = index.search(QUERIES, index.ntotal, **options)
    worst = np.inf if index.metric == "l2" else -np.inf
    out = np.full((len(QUERIES), k), worst, np.float32), np.full((len(QUERIES), k), -1)
    for row in range(len(QUERIES)):
        kept = np.flatnonzero(np.isin(ids[row], allowed))[:k]
        out[0][row, : len(kept)], out[1][row, : len(kept)] = scores[row, kept], ids[row, kept]
    return out


@pytest.mark.parametrize("kind", KINDS)
@slow
@given(data=st.data())
def test_a_filter_is_exact_within_what_is_allowed(
    indexes: dict[tuple[str, int], CatalyzerIndex], kind: tuple[str, int], data: st.DataObject
) -> None:
    index = indexes[kind]
    all_lists = {"nprobe": index.ivf} if index.ivf else {}
    random = np.random.default_rng(data.draw(st.integers(0, 100)))
    allowed = random.permutation(2100)[: data.draw(st.sampled_from([0, 1, 5, 50, 500, 2100]))]
    mask = np.zeros(2100, bool)
    mask[allowed] = True
    masks = {"array": mask, "tensor": torch.from_numpy(mask), "tuple": tuple(mask.tolist()), "numpy": [*mask]}
    way = data.draw(st.sampled_from(["ids", "mask", "exclude", "both", "list"]))
    options: dict[str, Any] = {
        "ids": {"ids": allowed},
        "list": {"ids": allowed.tolist()},
        "mask": {"ids": masks[data.draw(st.sampled_from(sorted(masks)))]},
        "exclude": {"exclude": np.flatnonzero(~mask)},
        "both": {"ids": range(2100), "exclude": ~mask},
    }[way]
    k = data.draw(st.integers(1, 30))
    scores, ids = index.search(QUERIES, k, 0, **all_lists, **options)
    expected = filtered(index, allowed, k, rerank=0, **all_lists)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_array_equal(scores, expected[0])
    # Reranked: all that is allowed is a candidate, so the order is that of the decoded vectors.
    ids = index.search(QUERIES, 5, 900, **all_lists, **options)[1]
    assert np.isin(ids[ids >= 0], allowed).all()
    assert ((ids >= 0).sum(axis=1) == min(5, np.isin(index.ids, allowed).sum())).all()


def test_ranges(indexes: dict[tuple[str, int], CatalyzerIndex]) -> None:
    index = indexes["l2", 0]
    for wanted in (range(100, 900), range(5, 1500, 7), range(900, 100, -3), range(0), range(10**12)):
        there = np.array([each for each in index.ids if int(each) in wanted], np.int64)
        np.testing.assert_array_equal(index.search(QUERIES, 9, ids=wanted)[1], index.search(QUERIES, 9, ids=there)[1])


@pytest.mark.parametrize(
    "wanted",
    [
        range(-(2**63), 2**63 - 1, 7), range(2**62 + 6, -(2**63), -7), range(-(2**70), 2**70, 3), range(0, 10, 2**65),
        range(2**62 + 1, 2**70, 2**64), range(2**64, 2**70), range(-(2**70), -(2**64)),
    ],
)  # fmt: skip
def test_ranges_far_from_the_ids(indexes: dict[tuple[str, int], CatalyzerIndex], wanted: range) -> None:
    index = CatalyzerIndex.from_codec(indexes["l2", 0]._trained().codec)
    ids = [*range(2**62, 2**62 + 7), -(2**63), -(2**63) + 7, 0, 2**63 - 1]
    index.add(BASE[: len(ids)], ids)
    found = index.search(QUERIES[0], 11, ids=wanted)[1]
    assert {*found[found != -1].tolist()} == {each for each in ids if each in wanted}
    found = index.search(QUERIES[0], 11, exclude=wanted)[1]
    assert {*found[found != -1].tolist()} == {each for each in ids if each not in wanted}


def test_few_allowed_are_searched_in_all_lists(indexes: dict[tuple[str, int], CatalyzerIndex]) -> None:
    """Of one in eighteen the lists hold so few that all of them are scanned, and nothing is missed."""
    index = indexes["l2", 16]
    allowed = index.ids[::18]
    np.testing.assert_array_equal(
        index.search(QUERIES, 10, 0, ids=allowed)[1], filtered(index, allowed, 10, rerank=0, nprobe=16)[1]
    )


def test_what_is_no_filter(indexes: dict[tuple[str, int], CatalyzerIndex], tmp_path: Path) -> None:
    index = indexes["l2", 0]
    for ids, message in (
        (np.ones(900, bool), r"ids: expected a mask of shape \(n,\), where element i is for id i and n is above"),
        ({1, 2}, "ids must be int64 of shape .*, got a set"),
        ([0.5], "ids must be int64"),
        ("missing.npy", r"missing.npy: no such file"),
    ):
        with pytest.raises(InvalidInput, match=message):
            index.search(QUERIES, ids=ids)
    np.save(tmp_path / "allowed.npy", index.ids[:50])
    np.testing.assert_array_equal(
        index.search(QUERIES, ids=tmp_path / "allowed.npy")[1], index.search(QUERIES, ids=index.ids[:50])[1]
    )


def test_a_filter_of_a_mapped_index(indexes: dict[tuple[str, int], CatalyzerIndex], tmp_path: Path) -> None:
    index = indexes["l2", 16]
    index.save(tmp_path / "a.catalyzer")
    mapped = CatalyzerIndex.load(tmp_path / "a.catalyzer", mmap=True)
    np.testing.assert_array_equal(mapped.search(QUERIES, ids=range(700))[1], index.search(QUERIES, ids=range(700))[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ids", [None, range(800)])
@slow
@given(at=st.floats(0, 1))
def test_all_on_the_sphere_within_a_radius(
    indexes: dict[tuple[str, int], CatalyzerIndex], kind: tuple[str, int], ids: range | None, at: float
) -> None:
    index = indexes[kind]
    options = {"ids": ids} | ({"nprobe": 5} if index.ivf else {})
    scores, found = index.search(QUERIES, 900, 0, **options)
    radius = float(np.quantile(scores[np.isfinite(scores)], at))
    lims, distances, rows = index.range_search(QUERIES, radius, rerank=0, **options)
    assert (lims.dtype, distances.dtype, rows.dtype, lims[0], lims[-1]) == (np.int64, np.float32, np.int64, 0, len(rows))
    for query in range(len(QUERIES)):
        inside = scores[query] < radius if index.metric == "l2" else scores[query] > radius
        np.testing.assert_array_equal(rows[lims[query] : lims[query + 1]], found[query, inside])
        np.testing.assert_array_equal(distances[lims[query] : lims[query + 1]], scores[query, inside])


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_vectors_within_a_radius(indexes: dict[tuple[str, int], CatalyzerIndex], kind: tuple[str, int]) -> None:
    """All are candidates: exactly those whose decoded vector is within the radius."""
    index = indexes[kind]
    options = {"nprobe": 16} if index.ivf else {}
    codec, metric = index._trained().codec.for_search, index._trained().metric
    decoded, mapped = codec.decode(np.asarray(index.codes)), metric.queries(QUERIES.astype(np.float32))
    squared = ((mapped[:, None].astype(np.float64) - decoded) ** 2).sum(-1).astype(np.float32)
    scores = metric.scores(squared, QUERIES.astype(np.float32), on_sphere=False)
    radius = float(np.quantile(scores, 0.05 if index.metric == "l2" else 0.95))
    lims, distances, ids = index.range_search(QUERIES, radius, rerank=1800, **options)
    for query in range(len(QUERIES)):
        clear = np.abs(scores[query] - radius) > 1e-4 * abs(radius)
        inside = scores[query] < radius if index.metric == "l2" else scores[query] > radius
        found = ids[lims[query] : lims[query + 1]]
        assert {*index.ids[inside & clear].tolist()} <= {*found.tolist()} <= {*index.ids[inside | ~clear].tolist()}
        part = distances[lims[query] : lims[query + 1]]
        np.testing.assert_array_equal(part, np.sort(part) if index.metric == "l2" else np.sort(part)[::-1])
    # Few candidates to begin with find nearly all, by going on while the farther half still has some.
    few = index.range_search(QUERIES, radius, rerank=20, **options)
    assert np.isin(few[2], ids).all()
    assert len(few[2]) > 0.7 * len(ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rerank", [0, None])
def test_the_expected_number_of_results(
    indexes: dict[tuple[str, int], CatalyzerIndex], kind: tuple[str, int], rerank: int | None
) -> None:
    index = indexes[kind]
    for expected in (0, 1, 7.5, 200, 5000):
        lims, distances, _ = index.range_search(QUERIES, expected=expected, rerank=rerank, nprobe=16 if index.ivf else None)
        wanted = min(round(expected * 25), 900 * 25)
        worst = distances.max(initial=-np.inf) if index.metric == "l2" else distances.min(initial=np.inf)
        without_ties = int((distances != worst).sum())
        assert without_ties <= wanted <= lims[-1]
        if rerank == 0 and expected == 200:
            worst = float(distances.max() if index.metric == "l2" else distances.min())
            again = index.range_search(QUERIES, worst, rerank=0, nprobe=16 if index.ivf else None)
            assert lims[-1] - len(again[2]) in range(30)


def test_what_is_no_radius(indexes: dict[tuple[str, int], CatalyzerIndex]) -> None:
    index = indexes["l2", 0]
    for options, message in (
        ({}, "give one of radius and expected; got radius = None and expected = None"),
        ({"radius": 1.0, "expected": 3}, "give one of radius and expected"),
        ({"radius": float("nan")}, "radius must be a finite number; got nan"),
        ({"radius": "far"}, "radius must be a finite number; got 'far'"),
        ({"radius": 10**400}, "radius must be a finite number; got 1000"),
        ({"expected": -1}, "expected must be a finite number of at least 0; got -1"),
    ):
        with pytest.raises(InvalidInput, match=message):
            index.range_search(QUERIES, **options)


def test_radii_beyond_float32(indexes: dict[tuple[str, int], CatalyzerIndex]) -> None:
    index = indexes["l2", 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            len(index.range_search(QUERIES, 1e300, rerank=0)[2])
            == len(index.range_search(QUERIES, expected=1e300)[2])
            == 900 * 25
        )
        assert len(index.range_search(QUERIES, Fraction(1, 10**9))[2]) == 0


def test_an_empty_index(indexes: dict[tuple[str, int], CatalyzerIndex]) -> None:
    index = CatalyzerIndex.from_codec(indexes["l2", 0]._trained().codec)
    assert index.search(QUERIES, 3, ids=[4])[1].tolist() == [[-1] * 3] * 25
    for options in ({"radius": 1.0}, {"expected": 3}):
        lims, distances, ids = index.range_search(QUERIES, **options)
        assert (lims.tolist(), distances.tolist(), ids.tolist()) == ([0] * 26, [], [])


def test_threads_side_by_side(indexes: dict[tuple[str, int], CatalyzerIndex]) -> None:
    """Single queries of several threads, some with a limit of their own, while one holds the lock of large searches."""
    from catalyzer.index import catalyzer_index

    index = indexes["l2", 16]
    queries = clustered(64, 32, 9).astype(np.float32)
    expected = index.search(queries, 10)[1]
    wrong: list[int] = []

    def work(part: int) -> None:
        for row in range(part, 64, 4):
            found = index.search(queries[row], 10, threads=part or None)[1]
            if not np.array_equal(found, expected[row]):
                wrong.append(row)

    with catalyzer_index._COMPUTING:
        threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    np.testing.assert_array_equal(index.search(queries, 10, threads=2**70)[1], expected)
    for threads_, message in ((0, "threads must be an integer of at least 1; got 0"), (1.5, "threads must be an integer")):
        with pytest.raises(InvalidInput, match=message):
            index.search(QUERIES, threads=threads_)  # type: ignore[arg-type]
