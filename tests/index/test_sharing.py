"""Several holders of one index: files that change meanwhile, copies, other processes; and updates."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from catalyzer import CatalyzerIndex, InvalidInput
from catalyzer.errors import Conflict
from tests.helpers import clustered

BASE, QUERIES = clustered(400, 32, 1), clustered(20, 32, 2)


@pytest.fixture(params=["fitted", "listed"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file with an index of BASE, with and without lists."""
    index = CatalyzerIndex.load(request.getfixturevalue(request.param))
    index.add(BASE)
    index.save(tmp_path / "a.catalyzer")
    return tmp_path / "a.catalyzer"


def same(a: CatalyzerIndex, b: CatalyzerIndex) -> bool:
    found = zip(a.search(QUERIES), b.search(QUERIES), strict=True)
    return a.ids.tolist() == b.ids.tolist() and all(np.array_equal(ours, theirs) for ours, theirs in found)


def test_no_save_undoes_that_of_another(path: Path, tmp_path: Path) -> None:
    first, second = CatalyzerIndex.load(path), CatalyzerIndex.load(path, mmap=True)
    first.add(BASE[:7])
    first.save(path)
    first.save(path)
    second.add(BASE[:3])
    link = tmp_path / "link.catalyzer"
    link.symlink_to(path.name)
    for name in (path, link):
        with pytest.raises(Conflict, match=r"has changed since this index was loaded from it .* load it again and repeat"):
            second.save(name)
    assert CatalyzerIndex.load(path).ntotal == 407
    second.save(tmp_path / "b.catalyzer")  # which becomes its file
    second.save(path)
    assert CatalyzerIndex.load(path).ntotal == 403
    with pytest.raises(Conflict):
        first.save(path)
    first.save(path, overwrite=True)
    assert CatalyzerIndex.load(path).ntotal == 407
    path.unlink()
    first.save(path)
    assert link.is_symlink()


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda index: pickle.loads(pickle.dumps(index))])
def test_copies_do_not_touch_each_other(path: Path, mmap: bool, duplicate: object) -> None:
    index = CatalyzerIndex.load(path, mmap)
    index.add(BASE[:1])  # so that there is capacity behind the rows
    other = duplicate(index)  # type: ignore[operator]
    assert same(index, other)
    index.add(BASE[:50])
    other.add(BASE[50:100])
    for each, rows in ((index, slice(0, 50)), (other, slice(50, 100))):
        assert each.ntotal == 451
        np.testing.assert_array_equal(each.reconstruct(np.arange(401, 451)), each.reconstruct(np.arange(400))[rows])


def test_a_mapped_index_travels_as_its_path(path: Path) -> None:
    mapped = CatalyzerIndex.load(path, mmap=True)
    sent = pickle.dumps(mapped)
    assert len(sent) < 1000
    received = pickle.loads(sent)
    assert same(received, mapped)
    assert isinstance(received.codes, np.memmap)
    changed = CatalyzerIndex.load(path)
    changed.remove([0])
    changed.save(path)
    with pytest.raises(Conflict, match="has changed since the pickled index was loaded from it"):
        pickle.loads(sent)
    assert same(copy.copy(mapped), mapped)  # the pages are still there


def test_an_untrained_index_travels_too() -> None:
    index = CatalyzerIndex(32, "cosine", d_out=8, hidden=16, decoder=False, ivf=4, overrides=["seed=1"])
    for other in (pickle.loads(pickle.dumps(index)), copy.copy(index), copy.deepcopy(index)):
        assert repr(other) == repr(index) == "CatalyzerIndex(bits=32, metric='cosine', ivf=4, not trained)"
        assert other._options == index._options


def _nearest(index: CatalyzerIndex) -> list[int]:
    return index.search(QUERIES, k=1)[1][:, 0].tolist()


def test_workers_search_what_they_are_sent(path: Path) -> None:
    indexes = [CatalyzerIndex.load(path), CatalyzerIndex.load(path, mmap=True)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_nearest, indexes) == [_nearest(indexes[0])] * 2


def test_what_it_says_of_itself(path: Path) -> None:
    index = CatalyzerIndex.load(path)
    assert repr(index) == f"CatalyzerIndex(bits=64, metric='l2', ivf={index.ivf}, d=32, ntotal=400)"
    assert index.bits == 64


def test_updates(path: Path) -> None:
    index, new = CatalyzerIndex.load(path, mmap=True), clustered(3, 32, 5)
    before, ids = index.codes.copy(), [7, 0, 399]
    index.update(ids, new)
    expected = CatalyzerIndex.load(path)
    expected.remove(ids)
    expected.add(new, ids)
    order, wanted = np.argsort(index.ids), np.argsort(expected.ids)
    np.testing.assert_array_equal(index.codes[order], expected.codes[wanted])
    np.testing.assert_array_equal(index.ids[order], expected.ids[wanted])
    index.add(BASE[:2])  # behind the new ones
    np.testing.assert_array_equal(index.reconstruct(ids), expected.reconstruct(ids))
    assert not np.array_equal(before, index.codes[:400])
    held = index.ids.copy(), index.codes.copy()
    for given, sentence in (
        ([1, 2, 1], "row 2 repeats the id 1 of an earlier row"),
        ([1, 2, 999], "1 of the ids are not in the index, the first of them 999"),
        ([1, 2], "an id for each of 3 vectors, got 2"),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            index.update(np.array(given), new)
    with pytest.raises(InvalidInput, match="row 1 contains NaN"):
        index.update([1, 2, 3], np.where(np.arange(3)[:, None] == 1, np.nan, new))
    np.testing.assert_array_equal(index.ids, held[0])
    np.testing.assert_array_equal(index.codes, held[1])


def test_removing_says_how_many(path: Path) -> None:
    index = CatalyzerIndex.load(path)
    assert index.remove([3, 3, 5]) == 2
    assert index.remove([]) == 0
    assert index.ntotal == 398


def test_threads_of_one_process_take_turns_at_saving(path: Path) -> None:
    index = CatalyzerIndex.load(path)
    first = index.ntotal

    def work(i: int) -> None:
        for _ in range(10):
            index.add(clustered(3, 32, i))
            index.save(path)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert index.ntotal == CatalyzerIndex.load(path).ntotal == first + 90
