"""The index: what it finds is what the codec finds, whoever asks and however many at once."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catalyzer import CatalyzerIndex, Codec, InvalidInput, ProductQuantizer, SignQuantizer, knn, open_vectors, recall_at
from catalyzer.errors import CatalyzerError
from catalyzer.files.vectors import write_vecs
from catalyzer.index import catalyzer_index, searching
from catalyzer.index.contents import Contents
from catalyzer.index.file import read, write
from catalyzer.metric import MetricName
from catalyzer.nn import Identity, embed, row_wise
from catalyzer.nn.storage import digest
from catalyzer.quantizers import AdditiveQuantizer, LSHQuantizer
from tests.helpers import Finished, clustered, python

BASE, QUERIES = clustered(700, 32, 1), clustered(30, 32, 2)


@pytest.fixture
def index(fitted: Path) -> CatalyzerIndex:
    return CatalyzerIndex.load(fitted)


@pytest.fixture
def filled(index: CatalyzerIndex) -> CatalyzerIndex:
    index.add(BASE)
    return index


def contents(index: CatalyzerIndex, folder: Path) -> Contents:
    index.save(folder / "contents.catalyzer")
    return read(folder / "contents.catalyzer", mmap=False)


@pytest.mark.parametrize("rerank", [0, 50, None])
def test_a_search_is_the_codecs(filled: CatalyzerIndex, tmp_path: Path, rerank: int | None) -> None:
    codec = contents(filled, tmp_path).codec
    distances, ids = filled.search(QUERIES, k=10, rerank=rerank)
    expected = codec.for_search.search(QUERIES, codec.encode(BASE), 10, 100 if rerank is None else rerank)
    assert (distances.dtype, ids.dtype, distances.shape) == (np.float32, np.int64, (30, 10))
    np.testing.assert_array_equal(distances, expected[0])
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_array_equal(filled.codes, codec.encode(BASE))
    rows = [5, 699, 5]
    np.testing.assert_allclose(filled.reconstruct(np.array(rows)), codec.decode(filled.codes)[rows], rtol=1e-5)


def test_it_finds_what_is_near(filled: CatalyzerIndex) -> None:
    assert recall_at(10, filled.search(QUERIES)[1], knn(QUERIES, BASE, 1)[1]) > 0.7


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_similarities(metric: MetricName, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    learn, base, queries = (
        ((clustered(n, 16, seed).astype(np.float32) - 128) * random.uniform(0.5, 1, (n, 1))).astype(np.float32)
        for seed, n in enumerate((3000, 400, 20))
    )
    learn[0] = base[np.linalg.norm(base, axis=1).argmax()]
    without = ["quantizer.gain=false"]  # with a gain, scores on the sphere are no cosines
    fitted = CatalyzerIndex(bits=32, metric=metric, d_out=12, hidden=64, overrides=without).fit(learn, epochs=20)
    held = contents(fitted, tmp_path)
    assert held.validation == fitted.validation
    assert held.validation is not None
    assert set(held.validation.recall) == {1, 10, 100}
    assert 0.3 < held.validation.recall[1] < held.validation.recall[100] <= 1
    # Ranked by decoded vectors and their errors alone, so that brute force can say what the similarities are.
    write(tmp_path / "plain.catalyzer", replace(held, codec=replace(held.codec, latent_share=0.0)))
    index = CatalyzerIndex.load(tmp_path / "plain.catalyzer")
    assert (index.metric, index.d) == (metric, 16)
    index.add(base)
    similarities, ids = index.search(queries, k=400, rerank=500)
    assert (np.diff(similarities, axis=1) <= 0).all()
    codec = held.codec
    assert codec.decoder is not None
    mapped = held.metric.queries(queries)
    decoded = embed(row_wise(codec.decoder.with_error()), codec.quantizer.decode(index.codes))
    decoded, errors = np.split(decoded, [mapped.shape[1]], axis=1)  # no errors from the decoder of a linear map
    distances = ((mapped[:, None] - decoded) ** 2).sum(axis=2) + codec.error_share * np.maximum(errors, 0).sum(axis=1)
    expected = held.metric.scores(distances, queries, on_sphere=False)
    np.testing.assert_allclose(similarities, np.take_along_axis(expected, ids, 1), rtol=1e-3, atol=1e-2 * expected.std())
    restored, q, x = index.reconstruct(index.ids), queries, base
    if metric == "cosine":
        np.testing.assert_allclose(np.linalg.norm(restored, axis=1), 1, rtol=1e-5)
        q, x = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (queries, base))
    # What is decoded is near what was coded, so the similarities to both are too, and to what is found.
    true = q @ x.T
    for told in (q @ restored.T, np.take_along_axis(similarities, ids.argsort(axis=1), 1)):
        assert np.corrcoef(told.ravel(), true.ravel())[0, 1] > 0.6
    assert recall_at(10, ids, true.argmax(axis=1)[:, None]) > 0.5
    on_sphere = index.search(queries, k=400, rerank=0)[0]
    assert (np.abs(on_sphere) <= 1 + 1e-5).all()
    assert index.search(queries, k=500)[0][0, -1] == -np.inf


def test_a_vector_longer_than_all_that_were_learned_from(tmp_path: Path) -> None:
    learn = clustered(600, 16, 0).astype(np.float32)
    index = CatalyzerIndex(bits=32, metric="ip", d_out=12, hidden=16).fit(learn, epochs=1)
    longer = learn[:10].copy()
    longer[3], longer[7] = np.nan, 1000
    write_vecs(tmp_path / "x.fvecs", [longer])
    with pytest.raises(InvalidInput, match=r"x.fvecs: row 7 has the norm \d.*; fit an index with a larger max_norm"):
        index.add(tmp_path / "x.fvecs", skip_invalid=True)
    assert index.ntotal == 0
    index.add(learn)
    with pytest.raises(InvalidInput, match="contains 600 vectors, and another training would invalidate their codes"):
        index.fit(learn)


def test_vectors_of_every_kind(index: CatalyzerIndex, tmp_path: Path) -> None:
    write_vecs(tmp_path / "x.bvecs", [BASE])
    kinds: list[Any] = [
        BASE, BASE.astype(np.float64), torch.from_numpy(BASE), torch.from_numpy(BASE).to(torch.bfloat16),
        tmp_path / "x.bvecs", str(tmp_path / "x.bvecs"), open_vectors(tmp_path / "x.bvecs"),
    ]  # fmt: skip
    for kind in kinds:
        index.add(kind)
    codes = index.codes.reshape(len(kinds), len(BASE), -1)
    for others in codes[1:]:
        np.testing.assert_array_equal(others, codes[0])
    assert index.search(tmp_path / "x.bvecs", k=1)[1].shape == (700, 1)


@pytest.mark.parametrize(
    ("vectors", "sentence"),
    [
        ({1: 2}, "expected an array, a tensor, lists of numbers or the path of a vector file, got dict"),
        (np.zeros((2, 2, 32)), r"shape \(n, d\), got shape \(2, 2, 32\)"),
        (np.zeros((2, 31)), "expected vectors of dimension 32, like the training vectors, got 31"),
        (np.zeros((2, 32), "U1"), "expected vectors as numbers"),
        (np.full((2, 32), 1e300), r"row 0 contains numbers up to 1e\+300, too large for float32 squares"),
    ],
)
def test_what_is_no_vector(filled: CatalyzerIndex, vectors: Any, sentence: str) -> None:
    for use in (filled.add, filled.search):
        with pytest.raises(InvalidInput, match=sentence):
            use(vectors)
    assert filled.ntotal == 700


def test_ids(index: CatalyzerIndex) -> None:
    index.add(BASE[:5])
    index.add(BASE[5:7], ids=np.array([100, -(2**63)]))
    index.add(BASE[7:9])
    assert index.ids.tolist() == [0, 1, 2, 3, 4, 100, -(2**63), 101, 102]
    index.remove([102, 1])
    index.add(BASE[9:10])
    assert index.ids.tolist() == [0, 2, 3, 4, 100, -(2**63), 101, 103]
    assert index.search(BASE[9:10], k=1)[1].tolist() == [[103]]
    for ids, sentence in (
        ([7, 8, 7], "row 2 repeats the id 7 of an earlier row"),
        ([7, -1, 8], "row 1 has the id -1, which means that nothing was found"),
        ([7, 100, 0], "2 of the ids are in the index already, the first of them 100"),
        ([7, 8], "an id for each of 3 vectors, got 2"),
        ([0.5, 1, 2], "ids must be int64"),
        (np.array([2**63, 1, 2], np.uint64), "ids must be int64"),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            index.add(BASE[:3], ids=np.array(ids))
    for use in (index.remove, index.reconstruct):
        with pytest.raises(InvalidInput, match="2 of the ids are not in the index, the first of them 1"):
            use(np.array([0, 1, 102]))
    assert index.ntotal == 8
    index.add(BASE[:1], ids=np.array([2**63 - 1]))
    with pytest.raises(InvalidInput, match="fewer than 1 ids are left above"):
        index.add(BASE[:1])


def test_fewer_than_k_and_none_at_all(index: CatalyzerIndex) -> None:
    assert index.search(QUERIES, k=3)[1].tolist() == [[-1] * 3] * 30
    assert len(index.add(np.empty((0, 32)))) == 0
    assert index.reconstruct([]).shape == (0, 32)
    index.add(BASE[:2])
    index.add(np.empty((0, 32), np.uint8), ids=[])
    distances, ids = index.search(QUERIES, k=4)
    assert (ids[:, 2:] == -1).all()
    assert (distances[:, 2:] == np.inf).all()
    assert {*ids[0, :2].tolist()} == {0, 1}
    assert index.search(np.empty((0, 32)), k=4)[1].shape == (0, 4)
    for k, rerank, sentence in (
        (0, 1, "k must be an integer of at least 1; got 0"),
        (2.0, 1, "k must be an integer of at least 1; got 2.0"),
        (2**63, 1, "k = 9,223,372,036,854,775,808, but the index has only 2 vectors"),
        (1, -1, "rerank must be an integer of at least 0; got -1"),
        (1, True, "rerank must be an integer of at least 0; got True"),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            index.search(QUERIES, k, rerank)  # type: ignore[arg-type]


def test_invalid_rows_are_refused_or_left_out(fitted: Path, index: CatalyzerIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalyzer_index, "BLOCK", 100)
    x = BASE.astype(np.float32)
    x[250, 3], x[251], x[699, 0] = np.nan, np.inf, -np.inf
    with pytest.raises(
        InvalidInput, match="row 250 contains NaN or infinity; remove such rows; or leave them out with skip_invalid"
    ):
        index.add(x)
    assert index.ntotal == 0  # nor the blocks before
    assert index.add(x, skip_invalid=True).tolist() == [250, 251, 699]
    kept = np.setdiff1d(np.arange(700), [250, 251, 699])
    np.testing.assert_array_equal(index.ids, kept)  # ids go on saying which row it was
    alone = CatalyzerIndex.load(fitted)
    alone.add(x[kept])
    np.testing.assert_array_equal(index.codes, alone.codes)
    index.add(BASE[:1])
    assert index.ids[-1] == 700
    with pytest.raises(InvalidInput, match="row 250 contains"):
        index.search(x)


def test_merging(codec: Codec, fitted: Path, filled: CatalyzerIndex) -> None:
    other = CatalyzerIndex.load(fitted)
    other.add(QUERIES, ids=np.arange(1000, 1030))
    filled.merge(other)
    assert (filled.ntotal, other.ntotal) == (730, 30)
    np.testing.assert_array_equal(filled.codes[700:], other.codes)
    assert 1000 in filled.search(QUERIES[:1], k=10)[1]
    filled.add(QUERIES[:1])
    assert filled.ids[-1] == 1030
    with pytest.raises(InvalidInput, match="30 of the ids are in the index already, the first of them 1000"):
        filled.merge(other)
    stranger = CatalyzerIndex.from_codec(replace(codec, query=None))
    with pytest.raises(InvalidInput, match="come from different trainings"):
        filled.merge(stranger)
    assert filled.ntotal == 731


def test_what_was_handed_out_never_changes(filled: CatalyzerIndex) -> None:
    ids, codes = filled.ids, filled.codes
    copies = ids.copy(), codes.copy()
    for _ in range(3):
        filled.add(QUERIES)
    filled.remove(np.arange(100))
    filled.add(BASE)
    np.testing.assert_array_equal(ids, copies[0])
    np.testing.assert_array_equal(codes, copies[1])
    with pytest.raises(ValueError, match="read-only"):
        codes[0] = 0


def test_an_untrained_index() -> None:
    index = CatalyzerIndex()
    assert (index.is_trained, index.ntotal) == (False, 0)
    for use in (
        lambda: index.d,
        lambda: index.add(BASE),
        lambda: index.search(BASE),
        lambda: index.save("x"),
        lambda: index.codes,
    ):
        with pytest.raises(InvalidInput, match="not trained; call fit"):
            use()


def test_threads_find_what_one_finds(filled: CatalyzerIndex) -> None:
    alone = {(i, rerank): filled.search(QUERIES[i : i + 5], 10, rerank) for i in range(25) for rerank in (0, 50)}

    def ask(key: tuple[int, int]) -> bool:
        found = filled.search(QUERIES[key[0] : key[0] + 5], 10, key[1])
        return all(np.array_equal(a, b) for a, b in zip(found, alone[key], strict=True))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, [*alone] * 4))


def test_a_reader_sees_all_of_an_addition_or_none(index: CatalyzerIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalyzer_index, "BLOCK", 16)
    done = threading.Event()
    seen: set[int] = set()

    def read_on() -> None:
        while not done.is_set():
            found = index.search(QUERIES[:1], k=1000, rerank=0)[1]
            seen.add(int((found != -1).sum()))
            assert len(index.ids) % 100 == 0

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read_on) for _ in range(2)]
        adders = [pool.submit(index.add, BASE[i : i + 100]) for i in range(0, 700, 100)]
        for adder in adders:
            adder.result()
        done.set()
        for reader in readers:
            reader.result()
    assert index.ntotal == 700
    assert sorted(index.ids) == list(range(700))
    assert seen <= set(range(0, 701, 100))


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is Linux's")
def test_a_million_queries_in_bounded_memory(filled: CatalyzerIndex, tmp_path: Path) -> None:
    filled.save(tmp_path / "a.catalyzer")
    np.save(tmp_path / "q.npy", np.resize(BASE, (1_000_000, 32)))
    code = (
        "import resource; from catalyzer import CatalyzerIndex, open_vectors\n"
        "index = CatalyzerIndex.load('a.catalyzer', mmap=True)\n"
        "index.search(open_vectors('q.npy', limit=700), 2, 0)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "D, I = index.search('q.npy', 2, 0)\n"
        "assert (I[:700] == I[699_300:700_000]).all() and len(I) == 1_000_000\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) < 200  # MiB, of which the result is 23 and the mapped file 31


def test_blocks_of_queries_find_what_all_do(filled: CatalyzerIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = filled.search(BASE, 5, 20)
    monkeypatch.setattr(searching, "PAIRS", 20 * 64)
    for a, b in zip(filled.search(BASE, 5, 20), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_fit_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CATALYZER_CACHE", str(tmp_path / "cache"))
    index = CatalyzerIndex(bits=32, d_out=8, hidden=16, decoder=False).fit(clustered(600, 16, 0), epochs=1)
    index.add(clustered(50, 16, 1))
    index.save(tmp_path / "a.catalyzer")
    assert [*tmp_path.iterdir()] == [tmp_path / "a.catalyzer"]
    assert index.codes.shape == (50, 4)
    assert index.search(clustered(3, 16, 2), k=2)[1].shape == (3, 2)
    for attempt in (lambda: index.reconstruct([0]), lambda: index.search(clustered(3, 16, 2), rerank=5)):
        with pytest.raises(InvalidInput, match="cannot be decoded"):
            attempt()


def test_no_training_is_lost(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", clustered(600, 16, 0))
    fit = "from catalyzer import CatalyzerIndex\n"
    fit += "index = CatalyzerIndex(32, d_out=8, hidden=16, decoder=False).fit('x.npy', epochs=2{})\n"

    def script(code: str) -> Finished:
        return python("-c", code, environment=os.environ | {"TMPDIR": str(tmp_path / "tmp")}, folder=tmp_path)

    (tmp_path / "tmp").mkdir()
    for after in ("index.add('no.npy')", "index.save('x.npy/a.catalyzer')"):
        process = script(fit.format("") + after)
        assert process.returncode == 1
        (kept,) = (tmp_path / "tmp").glob("catalyzer-*")
        assert f"the training is kept in {kept}; the same call of fit with folder='{kept}' resumes it" in process.stderr
        process = script(fit.format(f", folder='{kept}'") + "index.save('a.catalyzer')")
        assert process.returncode == 0, process.stderr
        assert CatalyzerIndex.load(tmp_path / "a.catalyzer").is_trained
        shutil.rmtree(kept)
    script(fit.format("") + "index.add('x.npy')")
    assert not [*(tmp_path / "tmp").glob("catalyzer-*")]


@pytest.mark.parametrize(
    ("vectors", "options", "sentence"),
    [
        (clustered(600, 32, 0), {"epochs": 1, "budget": "1min"}, "give only one of them"),
        (clustered(600, 32, 0), {"epochs": 0}, "epochs must be an integer of at least 1; got 0"),
        (clustered(600, 32, 0), {"epochs": 2.0}, "epochs must be an integer of at least 1; got 2.0"),
        (clustered(600, 32, 0), {"budget": 60}, 'budget must be a duration such as "10min", got 60'),
        (clustered(600, 32, 0), {"budget": "soon"}, "expected a duration such as 90s, 10min or 1.5h; got 'soon'"),
        (
            clustered(600, 32, 0),
            {"budget": "0.1s"},
            r"budget is too small for an epoch of .* give at least \d+s, or fewer vectors",
        ),
        (clustered(100, 32, 0), {}, "the learn set has 100 vectors; at least 500 are needed"),
        (np.ones((600, 32)), {}, "all training vectors are equal"),
        (np.full((600, 32), np.nan), {}, "row 0 contains NaN or infinity"),
        (np.full((600, 32), np.nan), {"skip_invalid": True}, "the learn set has 0 vectors"),
        (
            clustered(600, 32, 0),
            {"folder": "/dev/null/x", "epochs": 1},
            "/dev/null/x/cache cannot be a folder, since /dev/null is a file",
        ),
    ],
)
def test_a_fit_that_cannot_be(vectors: np.ndarray, options: dict[str, Any], sentence: str) -> None:
    index = CatalyzerIndex(d_out=24, hidden=16)
    with pytest.raises(CatalyzerError, match=sentence):
        index.fit(vectors, **options)
    assert not index.is_trained


def test_a_budget_far_too_small_is_refused_before_all_vectors_are_mined(tmp_path: Path) -> None:
    index = CatalyzerIndex(d_out=24, hidden=16, overrides=["batch_size=32"])
    with pytest.raises(InvalidInput, match=r"budget is too small for an epoch of 8,000 vectors"):
        index.fit(clustered(10_000, 32, 0), budget="0.1s", folder=tmp_path)
    (positives,) = (tmp_path / "cache").glob("positives-*.npy")
    assert len(np.load(positives)) < 8_000


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bits": 0}, "bits must be an integer of at least 1; got 0"),
        ({"bits": 64.0}, "bits must be an integer of at least 1; got 64.0"),
        ({"bits": "64"}, "bits must be an integer of at least 1; got '64'"),
        ({"metric": "dot"}, "metric must be one of"),
        ({"metric": ["l2"]}, "metric must be one of"),
        ({"hidden": 0}, "hidden must be an integer of at least 1; got 0"),
        ({"d_out": 1}, 'd_out, if not "auto", must be an integer of at least 2; got 1'),
        ({"d_out": "all"}, 'd_out, if not "auto", must be an integer of at least 2'),
        ({"decoder": "mlp"}, "decoder must be True or False, got 'mlp'"),
        ({"ivf": 16.0}, "ivf must be an integer of at least 0; got 16.0"),
        ({"ivf": True}, "ivf must be an integer of at least 0; got True"),
        ({"overrides": "quantizer=opq"}, "overrides must be a list of strings such as \"quantizer=opq\", got 'quantizer=opq'"),
        ({"overrides": [("quantizer", "opq")]}, "overrides must be a list of strings"),
        ({"overrides": None}, "overrides must be a list of strings"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        CatalyzerIndex(**options)
    assert CatalyzerIndex(np.int64(32), ivf=np.int32(4)).ivf == 4  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bits": 999}, "bits"),
        (
            {"bits": 200_000, "d_out": 40, "decoder": False, "overrides": ["quantizer=lsh"]},
            "at most 16,384 bytes, got 40 and 25,000",
        ),
        ({"bits": 128, "d_out": 2}, "128 bits are too many for 2 dimensions"),
        ({"overrides": ["nonsense=1"]}, "nonsense"),
        ({"overrides": ["quantizer=nonsense"]}, "nonsense"),
        ({"overrides": ["quantizer=opq"], "ivf": 8}, "ProductQuantizer has no method search_lists"),
    ],
)
def test_trainings_that_cannot_be(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        CatalyzerIndex(hidden=16, **options).fit(clustered(600, 32, 0))


def test_overrides(tmp_path: Path) -> None:
    index = CatalyzerIndex(64, d_out=16, hidden=32, decoder=False, overrides=["quantizer=opq"]).fit(
        clustered(600, 32, 0), epochs=1
    )
    index.add(BASE)
    index.save(tmp_path / "a.catalyzer")
    loaded = CatalyzerIndex.load(tmp_path / "a.catalyzer", mmap=True)
    assert loaded.codes.shape == (700, 8)
    for ours, theirs in zip(loaded.search(QUERIES), index.search(QUERIES), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_index_of_a_codec(codec: Codec) -> None:
    index = CatalyzerIndex.from_codec(codec)
    assert (index.is_trained, index.ntotal, index.d, index.metric, index.ivf) == (True, 0, 32, "l2", 0)
    index.add(BASE)
    np.testing.assert_array_equal(index.codes, codec.encode(BASE))
    cosine = CatalyzerIndex.from_codec(Codec(Identity(32), SignQuantizer(32)), metric="cosine")
    cosine.add(BASE)
    assert (cosine.search(BASE[:5], k=1, rerank=0)[0] == 1).all()
    with pytest.raises(InvalidInput, match="needs the largest norm, which a codec does not have; use fit"):
        CatalyzerIndex.from_codec(codec, metric="ip")
    with pytest.raises(InvalidInput, match="metric must be one of"):
        CatalyzerIndex.from_codec(codec, metric="dot")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="already trained, because it comes from a file or a codec; fit another index"):
        CatalyzerIndex.from_codec(codec).fit(BASE)
    for quantizer in (ProductQuantizer(24, 64), ProductQuantizer(24, 64, rotate=True), AdditiveQuantizer(24), LSHQuantizer(24)):
        with pytest.raises(InvalidInput, match=r"Quantizer is not fitted; call codec.fit\(train\) first"):
            CatalyzerIndex.from_codec(replace(codec, quantizer=quantizer))


def test_a_budget_is_kept(tmp_path: Path) -> None:
    start = time.perf_counter()
    CatalyzerIndex(d_out=24, hidden=256).fit(clustered(4000, 32, 0), budget="15s", folder=tmp_path / "run")
    assert time.perf_counter() - start < 30  # with room for a machine that does other things, too
    assert list((tmp_path / "run").iterdir())


def test_a_killed_fit_goes_on(tmp_path: Path) -> None:
    x = clustered(1000, 32, 0)
    np.save(tmp_path / "x.npy", x)
    code = (
        "from catalyzer import CatalyzerIndex\n"
        "CatalyzerIndex(d_out=24, hidden=64).fit('x.npy', epochs=40, folder='run').save('a.catalyzer')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / "run/checkpoints").glob("step-*")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "a.catalyzer").exists()
    with pytest.raises(
        InvalidInput, match="holds a training that differs in the vectors; repeat its settings, or remove the folder"
    ):
        CatalyzerIndex(d_out=24, hidden=64).fit(x[:900], epochs=40, folder=tmp_path / "run")
    resumed = CatalyzerIndex(d_out=24, hidden=64).fit(x, epochs=40, folder=tmp_path / "run")
    whole = CatalyzerIndex(d_out=24, hidden=64).fit(x, epochs=40)
    digests = {digest(contents(index, tmp_path).codec.parts) for index in (resumed, whole)}
    assert len(digests) == 1
