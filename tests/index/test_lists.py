"""Inverted lists: a partition that every change keeps, and searches in parts of it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalyzer import CatalyzerIndex, InvalidInput, LatticeQuantizer, SignQuantizer, knn, recall_at
from catalyzer.index import catalyzer_index
from catalyzer.index.contents import Contents
from catalyzer.index.file import read, verify, write
from catalyzer.index.lists import InvertedLists
from catalyzer.index.recipe import quantizer_class
from catalyzer.metric import MetricName
from catalyzer.nn import embed
from tests.helpers import clustered

BASE, QUERIES = clustered(3000, 32, 1), clustered(40, 32, 2)


@pytest.fixture
def index(listed: Path) -> CatalyzerIndex:
    return CatalyzerIndex.load(listed)


@pytest.fixture
def filled(index: CatalyzerIndex) -> CatalyzerIndex:
    index.add(BASE)
    return index


def contents(index: CatalyzerIndex, folder: Path) -> Contents:
    index.save(folder / "contents.catalyzer")
    return verify(folder / "contents.catalyzer")


def brute_force(
    held: Contents, queries: np.ndarray, k: int, rerank: int, nprobe: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Distances and ids for each query alone, by the codec's own search in the codes of its lists and no others."""
    assert held.lists is not None
    latent = held.codec.for_search.map_queries(queries)
    distances, ids = [], []
    for row, query in enumerate(latent):
        nearest = np.argsort(((held.lists.centroids - query) ** 2).sum(axis=1), kind="stable")[:nprobe]
        rows = np.concatenate([np.arange(*held.lists.offsets[i : i + 2]) for i in np.sort(nearest)])
        found = (
            held.codec.for_search.search(queries[row : row + 1], held.codes[rows], min(k, len(rows)), rerank)
            if len(rows)
            else None
        )
        distances.append(np.empty(0) if found is None else found[0][0])
        ids.append(np.empty(0, int) if found is None else held.ids[rows[found[1][0]]])
    return distances, ids


@pytest.mark.parametrize("rerank", [0, 30, 500])
@pytest.mark.parametrize("nprobe", [1, 3, None])
def test_a_search_is_the_codecs_in_the_nearest_lists(
    filled: CatalyzerIndex, tmp_path: Path, rerank: int, nprobe: int | None
) -> None:
    distances, ids = filled.search(QUERIES, 300, rerank, nprobe)
    assert (distances.dtype, ids.dtype, distances.shape) == (np.float32, np.int64, (40, 300))
    expected = brute_force(contents(filled, tmp_path), QUERIES, 300, rerank, nprobe or 16)
    assert (ids < 0).any() or nprobe != 1
    for found, found_ids, d, i in zip(distances, ids, *expected, strict=True):
        assert (found_ids[len(i) :] == -1).all()
        assert (found[len(i) :] == np.inf).all()
        # A mean over candidates, by which both stages are weighed, is summed in another order where some are missing.
        np.testing.assert_allclose(found[: len(d)], d, rtol=1e-6)
        np.testing.assert_array_equal(found_ids[: len(i)], i)


@pytest.mark.parametrize("rerank", [0, 50])
def test_all_lists_find_what_an_index_without_would(filled: CatalyzerIndex, tmp_path: Path, rerank: int) -> None:
    held = contents(filled, tmp_path)
    expected = held.codec.for_search.search(QUERIES, held.codes, 10, rerank)
    distances, ids = filled.search(QUERIES, 10, rerank, nprobe=filled.ivf)
    np.testing.assert_array_equal(distances, expected[0])
    np.testing.assert_array_equal(ids, held.ids[expected[1]])
    # The same vectors as they came: other rows, the same distances.
    order = np.argsort(held.ids)
    write(tmp_path / "flat.catalyzer", replace(held, ids=held.ids[order], codes=held.codes[order], lists=None))
    np.testing.assert_array_equal(CatalyzerIndex.load(tmp_path / "flat.catalyzer").search(QUERIES, 10, rerank)[0], distances)


def test_more_lists_find_more(filled: CatalyzerIndex) -> None:
    truth = knn(QUERIES, BASE, 1)[1]
    recalls = [recall_at(10, filled.search(QUERIES, nprobe=nprobe)[1], truth) for nprobe in (1, 4, 20)]
    assert recalls == sorted(recalls)
    assert recalls[0] > 0.3
    assert recalls[2] > 0.7


def whole(held: Contents, expected: dict[int, int]) -> None:
    """Lists are a partition in which each code stands where its vector belongs; `expected` has the row of BASE by id."""
    assert held.lists is not None
    assert (len(held.lists.offsets), held.lists.offsets[0], held.lists.offsets[-1]) == (21, 0, len(held.ids))
    assert sorted(held.ids.tolist()) == sorted(expected)
    rows = [expected[i] for i in held.ids.tolist()]
    if not rows:
        return
    points = embed(held.codec.transform, BASE[rows].astype(np.float32))
    distances = ((points[:, None] - held.lists.centroids) ** 2).sum(axis=2)
    own = np.repeat(np.arange(20), held.lists.sizes)
    np.testing.assert_allclose(distances[np.arange(len(own)), own], distances.min(axis=1), atol=1e-5)
    np.testing.assert_array_equal(held.codes, held.codec.encode(BASE[rows]))


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_change_keeps_the_partition(listed: Path, tmp_path: Path, data: st.DataObject) -> None:
    index, expected = CatalyzerIndex.load(listed), {}
    for _ in range(data.draw(st.integers(1, 5))):
        kind = data.draw(st.sampled_from(["add", "ids", "remove", "merge", "reload"]))
        first, n = data.draw(st.integers(0, 2500)), data.draw(st.integers(0, 300))
        rows, names = range(first, first + n), None
        start = int(max([-1, *index.ids.tolist(), *expected])) + 1
        if kind == "ids":
            names = start + np.random.default_rng(n).permutation(n) * 3
        if kind in ("add", "ids"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(catalyzer_index, "BLOCK", data.draw(st.sampled_from([64, 1 << 16])))
                before = {*index.ids.tolist()}
                index.add(BASE[first : first + n], names)
            added = names if names is not None else sorted({*index.ids.tolist()} - before)
            expected |= dict(zip([int(i) for i in added], rows, strict=True))
        elif kind == "remove":
            gone = [i for i in expected if i % 3 == n % 3]
            index.remove(np.array(gone, np.int64))
            expected = {i: row for i, row in expected.items() if i not in gone}
        elif kind == "merge":
            other = CatalyzerIndex.load(listed)
            other.add(BASE[first : first + n], np.arange(start, start + n))
            index.merge(other)
            expected |= dict(zip(range(start, start + n), rows, strict=True))
        else:
            index.save(tmp_path / "b.catalyzer")
            index = CatalyzerIndex.load(tmp_path / "b.catalyzer", mmap=data.draw(st.booleans()))
    whole(contents(index, tmp_path), expected)


def test_what_was_handed_out_never_changes(filled: CatalyzerIndex) -> None:
    ids, codes = filled.ids, filled.codes
    copies = ids.copy(), codes.copy()
    filled.add(QUERIES)
    filled.remove(np.arange(100))
    filled.add(BASE)
    np.testing.assert_array_equal(ids, copies[0])
    np.testing.assert_array_equal(codes, copies[1])


def test_readers_see_all_of_an_addition_or_none(index: CatalyzerIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalyzer_index, "BLOCK", 16)

    def look() -> set[int]:
        seen = set()
        while index.ntotal < 700:
            found = index.search(QUERIES[:2], k=1000, rerank=0, nprobe=20)[1]
            seen |= {int((row != -1).sum()) for row in found}
            assert index.search(QUERIES[:1], rerank=20, nprobe=5)[1].shape == (1, 10)
        return seen

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(look) for _ in range(3)]
        for first in range(0, 700, 100):
            index.add(BASE[first : first + 100])
        for reader in readers:
            assert reader.result() <= {*range(0, 701, 100)}


def test_threads_find_what_one_finds(filled: CatalyzerIndex) -> None:
    keys = [(row, rerank, nprobe) for row in range(0, 35, 5) for rerank in (0, 50) for nprobe in (1, 7)]
    alone = {key: filled.search(QUERIES[key[0] : key[0] + 5], 10, *key[1:]) for key in keys}

    def ask(key: tuple[int, int, int]) -> bool:
        found = filled.search(QUERIES[key[0] : key[0] + 5], 10, *key[1:])
        return all(np.array_equal(a, b) for a, b in zip(found, alone[key], strict=True))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, keys * 3))


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_similarities(metric: MetricName) -> None:
    learn = clustered(600, 16, 0).astype(np.float32) - 128
    index = CatalyzerIndex(32, metric, d_out=12, hidden=32, ivf=8).fit(learn, epochs=1)
    index.add(learn[:20])
    queries = learn[:5].copy()
    if metric == "ip":
        queries[0] = 0
    for rerank in (0, 10):
        similarities, ids = index.search(queries, 20, rerank, nprobe=2)
        assert ((similarities == -np.inf) == (ids == -1)).all()
        assert (ids == -1).any()
        assert (similarities[:, 1:] <= similarities[:, :-1]).all()
        whole, _ = index.search(queries, 20, rerank, nprobe=8)
        assert (whole[:, 0] >= similarities[:, 0]).all()


def test_empty_and_nearly_empty(index: CatalyzerIndex) -> None:
    assert index.search(QUERIES, 3)[1].tolist() == [[-1] * 3] * 40
    index.add(np.empty((0, 32)))
    assert index.add(np.full((3, 32), np.nan), skip_invalid=True).tolist() == [0, 1, 2]
    index.add(BASE[:1], ids=[0])
    assert sorted(index.search(BASE[:1], 3, nprobe=1)[1][0].tolist()) == [-1, -1, 0]
    assert index.search(np.empty((0, 32)), 3)[1].shape == (0, 3)
    index.remove([0])
    assert (index.search(QUERIES, 3)[1] == -1).all()


def test_overrides_of_what_an_index_chooses() -> None:
    nested = CatalyzerIndex(100, method="linear", d_out=28, ivf=8, overrides=["catalyzer.nested=true"]).fit(BASE[:600])
    nested.add(BASE[:100])
    assert nested.search(BASE[:5], 1, nprobe=8, blocks=2)[1][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert quantizer_class(True, False, ["decoder.hidden=32", "query.max_epochs=3"]) is LatticeQuantizer


def test_what_cannot_be(fitted: Path, listed: Path, index: CatalyzerIndex) -> None:
    for nprobe, sentence in (
        (0, "nprobe must be an integer between 1 and 20, the number of lists; got 0"),
        (1.5, r"the number of lists; got 1\.5"),
        (21, "nprobe must be an integer between 1 and 20, the number of lists; got 21"),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            index.search(QUERIES, nprobe=nprobe)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="nprobe = 4 is for an index with inverted lists, but this one has none"):
        CatalyzerIndex.load(fitted).search(QUERIES, nprobe=4)
    with pytest.raises(InvalidInput, match="ivf must be an integer of at least 0; got -1"):
        CatalyzerIndex(ivf=-1)
    with pytest.raises(InvalidInput, match=r"ivf = 100 lists need at least 800 .* got 600; .* an ivf of at most 75"):
        CatalyzerIndex(hidden=16, d_out=24, ivf=100).fit(BASE[:600])
    with pytest.raises(InvalidInput, match="ProductQuantizer has no method search_lists"):
        CatalyzerIndex(hidden=16, d_out=24, ivf=10, overrides=["quantizer=opq"]).fit(BASE[:600])
    assert (index.ivf, CatalyzerIndex.load(fitted).ivf) == (20, 0)
    held = read(listed, mmap=False)
    with pytest.raises(InvalidInput, match="SignQuantizer has no method search_lists"):
        replace(held, codec=replace(held.codec, quantizer=SignQuantizer(24)))


def test_merging_needs_the_same_lists(index: CatalyzerIndex, listed: Path, tmp_path: Path) -> None:
    held = read(listed, mmap=False)
    assert held.lists is not None
    other = InvertedLists(held.lists.centroids + 1, held.lists.offsets)
    for lists in (other, None):
        write(tmp_path / "other.catalyzer", replace(held, lists=lists))
        with pytest.raises(InvalidInput, match="come from different trainings"):
            index.merge(CatalyzerIndex.load(tmp_path / "other.catalyzer"))
