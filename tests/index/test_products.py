"""Indexes whose codes are products of spheres: what changes, files, lists and reranking do with these."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from catalyzer import Catalyzer, CatalyzerIndex, Codec, Decoder, LatticeQuantizer
from catalyzer.errors import DamagedFile
from catalyzer.index.contents import Contents
from catalyzer.index.file import verify, write
from catalyzer.index.lists import InvertedLists
from catalyzer.metric import Metric
from catalyzer.nn import Linear, LinearDecoder
from tests.helpers import brute_force, clustered

LEARN, BASE, QUERIES = (clustered(n, 32, seed).astype(np.float32) for seed, n in enumerate((1500, 1000, 40)))
QUANTIZER = LatticeQuantizer(28, 100)  # blocks of 10, 9 and 9 dimensions, whose codes have 5, 4 and 4 bytes


@pytest.fixture(scope="module", params=["linear", "refined", "network"])
def codec(request: pytest.FixtureRequest) -> Codec:
    if request.param != "network":
        refine = 4 if request.param == "refined" else 1
        return Codec(Linear(32, 28).adapt(LEARN), QUANTIZER, LinearDecoder(28, 32).adapt(LEARN), refine, latent_share=0.2)
    torch.manual_seed(0)
    query, catalyzer = (Catalyzer(32, 28, 64, QUANTIZER.spheres).adapt(LEARN).eval() for _ in range(2))
    query.load_state_dict({name: tensor * 1.001 for name, tensor in catalyzer.state_dict().items()})
    return Codec(catalyzer, QUANTIZER, Decoder(28, 32, 64).adapt(LEARN).eval(), latent_share=0.2, query=query)


@pytest.fixture(params=[0, 20], ids=["flat", "lists"])
def path(request: pytest.FixtureRequest, codec: Codec, tmp_path: Path) -> Path:
    """The file of an index of BASE, in some lists or in none."""
    lists = InvertedLists.fit(codec, LEARN, request.param) if request.param else None
    none = np.empty(0, np.int64), np.empty((0, QUANTIZER.code_size), np.uint8)
    write(tmp_path / "a.catalyzer", Contents(codec, Metric("l2"), *none, lists=lists))
    index = CatalyzerIndex.load(tmp_path / "a.catalyzer")
    index.add(BASE)
    index.save(tmp_path / "a.catalyzer")
    return tmp_path / "a.catalyzer"


def check(index: CatalyzerIndex, codec: Codec, expected: dict[int, int], path: Path) -> None:
    """An index holds just the rows of BASE that are expected by id, finds what brute force finds, and so does its file."""
    assert sorted(index.ids.tolist()) == sorted(expected)
    np.testing.assert_array_equal(index.codes, codec.encode(BASE[[expected[i] for i in index.ids.tolist()]]))
    distances = index.search(QUERIES, 10, rerank=0, nprobe=index.ivf or None)[0]
    latent = codec.for_search.map_queries(QUERIES)
    np.testing.assert_allclose(distances, brute_force(latent, QUANTIZER.decode(index.codes), 10)[0], atol=1e-5)
    index.save(path)
    verify(path)
    for again in (CatalyzerIndex.load(path), CatalyzerIndex.load(path, mmap=True)):
        for options in ({"rerank": 0, "nprobe": index.ivf or None}, {"rerank": 50}, {"ids": index.ids[::3]}):
            for ours, theirs in zip(again.search(QUERIES, 10, **options), index.search(QUERIES, 10, **options), strict=True):
                np.testing.assert_array_equal(ours, theirs)
    reranked = index.search(QUERIES, 10, rerank=50, nprobe=index.ivf or None)
    for ours, theirs in zip(reranked, codec.for_search.search(QUERIES, index.codes, 10, rerank=50), strict=True):
        assert (ours == (theirs if theirs.dtype == np.float32 else index.ids[theirs])).mean() > 0.99  # but for ties


def test_every_change(codec: Codec, path: Path, tmp_path: Path) -> None:
    index, expected = CatalyzerIndex.load(path), {i: i for i in range(len(BASE))}
    check(index, codec, expected, path)
    index.update(np.arange(50), BASE[900:950])
    expected |= {i: 900 + i for i in range(50)}
    check(index, codec, expected, path)
    assert index.remove(np.arange(30, 400)) == 370
    for i in range(30, 400):
        del expected[i]
    check(index, codec, expected, path)
    other = CatalyzerIndex.load(path)
    other.remove(other.ids)
    other.add(BASE[7:300], ids=np.arange(5007, 5300))
    index.merge(other)
    check(index, codec, expected | {5000 + i: i for i in range(7, 300)}, tmp_path / "merged.catalyzer")
    assert index.reconstruct([5007]).shape == (1, 32)
    lims, near, _ = index.range_search(QUERIES, expected=5, rerank=0)
    assert 4 < lims[-1] / len(QUERIES) < 6
    assert len(near) == lims[-1]


def test_one_query_finds_what_many_find(path: Path) -> None:
    index = CatalyzerIndex.load(path, mmap=True)
    together = index.search(QUERIES, 10)
    for row in range(len(QUERIES)):
        for alone, among in zip(index.search(QUERIES[row], 10), together, strict=True):
            np.testing.assert_array_equal(alone, among[row])


def test_what_is_no_code_is_named(path: Path) -> None:
    held = verify(path)
    codes = np.array(held.codes)
    codes[17, 9:] = 255
    write(path, replace(held, codes=codes))
    with pytest.raises(DamagedFile, match=r"row 17 holds the code \d+ in block 2, but SphericalLattice"):
        verify(path)
