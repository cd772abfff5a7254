"""Vectors as users have them: what is clear is taken, what is not is named, and nothing valid is dropped."""

import pickle
import sys
import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from catalyzer import CatalyzerIndex, InvalidInput, open_vectors
from catalyzer.index.recipe import LEARN
from catalyzer.metric import Metric, MetricName
from tests.helpers import clustered, write

shortens = pytest.mark.skipif(sys.platform == "win32", reason="Windows shortens no file that is mapped")

BASE, QUERIES = clustered(700, 32, 1), clustered(30, 32, 2)


class Lazy:
    """As an HDF5 dataset: a type, a shape and slices, and an array only where one asks for it."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.dtype, self.shape, self.largest = x, x.dtype, x.shape, 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.largest = max(self.largest, len(self.x[rows]))
        return self.x[rows]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise AssertionError("all of it was read at once")


class Frame:
    """As a DataFrame: no type, but an array of itself."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.shape = x, x.shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.x


@pytest.fixture
def index(fitted: Path) -> CatalyzerIndex:
    index = CatalyzerIndex.load(fitted)
    index.add(BASE)
    return index


@pytest.mark.parametrize(
    "made",
    [
        np.ndarray.tolist, lambda x: [tuple(row) for row in x.tolist()], Lazy, Frame, torch.from_numpy,
        lambda x: torch.from_numpy(x).bfloat16(), lambda x: x.astype(ml_dtypes.bfloat16), np.ma.masked_array,
        lambda x: x.astype(np.float16), lambda x: x.astype(">f8"),
    ],
    ids=["lists", "tuples", "lazy", "frame", "tensor", "bfloat16 tensor", "bfloat16", "nothing masked", "half", "big-endian"],
)  # fmt: skip
def test_what_is_clear_is_taken(made: Any, index: CatalyzerIndex) -> None:
    codes = index.codes.copy()
    assert index.add(made(BASE)).size == 0
    np.testing.assert_array_equal(index.codes[700:], codes)
    np.testing.assert_array_equal(index.search(made(QUERIES), 5)[1], index.search(QUERIES, 5)[1])


@pytest.mark.parametrize("made", [np.asarray, np.ndarray.tolist, torch.from_numpy])
def test_one_query_has_results_of_one_dimension(made: Any, index: CatalyzerIndex) -> None:
    for one, expected in zip(index.search(made(QUERIES[0]), 7), index.search(QUERIES[:1], 7), strict=True):
        assert one.shape == (7,)
        np.testing.assert_array_equal(one, expected[0])
    with pytest.raises(InvalidInput, match="dimension 32, like the training vectors, got 31"):
        index.search(QUERIES[0, :31])
    with pytest.raises(InvalidInput, match=r"got shape \(32,\) of uint8; give a single vector x as x\[None\]"):
        index.add(BASE[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.ma.masked_equal(BASE, BASE[0, 0]), "an array with masked elements"),
        (list(np.ma.masked_equal(BASE, BASE[0, 0])), "an array with masked elements"),
        ([[1.0, 2.0], [3.0]], "a list that is not such an array"),
        ([["a"] * 32], "of <U1"),
        (BASE > 3, "of bool"),
        (BASE + 1j, "of complex128"),
        (np.array([[None] * 32]), "of object"),
        (None, "got NoneType"),
        (BASE[None], "got shape"),
        (7, "got int"),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_named(given: Any, message: str, index: CatalyzerIndex) -> None:
    for work in (index.add, index.search):
        with pytest.raises(InvalidInput, match=message):
            work(given)
    assert index.ntotal == 700


def test_read_only_arrays_draw_no_warning(index: CatalyzerIndex) -> None:
    given = BASE.astype(np.float32)
    given.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.add(given)
        index.search(given[:3], 5, rerank=20)


@pytest.mark.parametrize("factor", [1e20, 1e-30, 2.0**100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cosine_scales_before_it_squares(factor: float, dtype: type, index: CatalyzerIndex) -> None:
    cosine = CatalyzerIndex.from_codec(index._trained().codec, metric="cosine")
    x = (BASE - 128.0).astype(dtype)
    assert cosine.add(x * dtype(factor), skip_invalid=True).size == 0
    found = cosine.search(x[:20] * dtype(factor), 5)
    usual = CatalyzerIndex.from_codec(index._trained().codec, metric="cosine")
    usual.add(x)
    expected = usual.search(x[:20], 5)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4)
    assert (found[1] == expected[1]).mean() > 0.95  # the last bit of a vector may be another


def test_cosine_of_what_float32_does_not_hold(index: CatalyzerIndex) -> None:
    cosine = CatalyzerIndex.from_codec(index._trained().codec, metric="cosine")
    x = np.concatenate([BASE[:3] * 1e300, BASE[:3] * 1e-300])
    assert cosine.add(x, skip_invalid=True).size == 0
    assert (cosine.codes[:3] == cosine.codes[3:]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_too_large_numbers_are_named_and_never_skipped(dtype: type, index: CatalyzerIndex) -> None:
    x = BASE.astype(dtype)
    x[5, 3], x[2, 2] = dtype(1e30) if dtype is np.float32 else 1e200, np.nan
    with pytest.raises(InvalidInput, match=r"row 5 contains numbers up to 1e\+\d+, too large for float32 squares"):
        index.add(x, skip_invalid=True)
    assert index.ntotal == 700
    with pytest.raises(InvalidInput, match="row 3 contains numbers up to"):
        index.search(x[[0, 1, 3, 5]])
    x[5, 3] = 1
    assert index.add(x, skip_invalid=True).tolist() == [2]


def test_an_invalid_query_is_found_before_the_work(index: CatalyzerIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = np.tile(QUERIES, (100, 1)).astype(np.float32)
    queries[-1, 0] = np.nan
    searched = []
    codec = type(index._trained().codec)
    search = codec.search
    monkeypatch.setattr(codec, "search", lambda *args: searched.append(1) or search(*args))
    monkeypatch.setattr("catalyzer.index.searching.PAIRS", 10_000)
    with pytest.raises(InvalidInput, match="row 2,999 contains NaN or infinity"):
        index.search(queries, 5)
    assert not searched
    index.search(queries[:-1], 5)
    assert len(searched) > 10


def test_the_largest_norm_is_that_of_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalyzer.index.recipe.LEARN", 2048)
    assert LEARN > 2048
    learn = clustered(20_000, 16, 0).astype(np.float32)
    learn[3_000] *= 3  # between the rows of the sample
    index = CatalyzerIndex(bits=32, metric="ip", d_out=12, hidden=16).fit(learn, epochs=1)
    index.add(learn)
    assert index.ntotal == 20_000
    np.save(tmp_path / "x.npy", learn[3_000:3_001] * 1.01)
    with pytest.raises(InvalidInput, match=r"x.npy: row 0 has the norm .* fit an index with a larger max_norm"):
        index.add(tmp_path / "x.npy")
    index.search(learn[3_000] * 7, 5)  # queries may be of any length


def test_a_rare_length_is_named(caplog: pytest.LogCaptureFixture) -> None:
    learn = clustered(600, 16, 0).astype(np.float32)
    for factor in (1, 100):
        caplog.clear()
        learn[7] *= factor
        CatalyzerIndex(bits=32, metric="ip", d_out=12, hidden=16).fit(learn, epochs=1)
        assert ("or give a smaller max_norm" in caplog.text) == (factor == 100)


def test_a_largest_norm_of_the_users(tmp_path: Path) -> None:
    learn = clustered(600, 16, 0).astype(np.float32)
    most = float(np.linalg.norm(learn, axis=1).max())
    with pytest.raises(InvalidInput, match=r"row \d+ has the norm .*, above the index's limit for inner products, 1;"):
        CatalyzerIndex(metric="ip", max_norm=1.0).fit(learn, epochs=1)
    index = CatalyzerIndex(bits=32, metric="ip", max_norm=2 * most, d_out=12, hidden=16)
    assert pickle.loads(pickle.dumps(index))._max_norm == 2 * most
    index.fit(learn, epochs=1).add(1.9 * learn)
    index.save(tmp_path / "a.catalyzer")
    again = CatalyzerIndex.load(tmp_path / "a.catalyzer")
    with pytest.raises(InvalidInput, match="larger max_norm"):
        again.add(2.1 * learn)


def test_files_that_others_write(tmp_path: Path, index: CatalyzerIndex) -> None:
    np.save(tmp_path / "half.npy", BASE.astype(ml_dtypes.bfloat16))
    (tmp_path / "wide.fbin").write_bytes(np.array(BASE.shape, "<u8").tobytes() + BASE.astype("<f4").tobytes())
    (tmp_path / "UP.NPY").write_bytes((tmp_path / "half.npy").read_bytes())
    for name in ("half.npy", "wide.fbin", "UP.NPY"):
        file = open_vectors(tmp_path / name)
        assert file.shape == BASE.shape
        np.testing.assert_array_equal(file[:], BASE)
        assert file.dtype == np.float32
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(file))[5:7], BASE[5:7])
        assert index.add(tmp_path / name).size == 0
    assert (index.codes.reshape(4, 700, 8) == index.codes[:700]).all()


def test_an_array_in_a_file_that_is_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "archive.npz", BASE)
    good = tmp_path / "good.npy"
    np.save(good, BASE)
    content = good.read_bytes()
    for name, written, message in (
        ("text", b"1.0 2.0\n", "not a .npy file, whatever its name; save one array with numpy.save"),
        ("archive", (tmp_path / "archive.npz").read_bytes(), "an archive of several arrays"),
        ("header", content.replace(b"'descr'", b"'de(cr'").replace(b"}", b"("), "its .npy header is damaged"),
        ("short", content[:-5], "the file ends before its array does"),
    ):
        path = tmp_path / f"{name}.npy"
        path.write_bytes(written)
        with pytest.raises(InvalidInput, match=message) as error:
            open_vectors(path)
        assert "pickle" not in str(error.value)


@shortens
@pytest.mark.parametrize("name", ["x.npy", "x.fbin", "x.bvecs"])
def test_a_file_that_is_shortened_while_it_is_mapped(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, BASE.astype(np.float32) if name == "x.fbin" else BASE)
    file = open_vectors(path)
    assert len(file[600:]) == 100
    with path.open("r+b") as other:
        other.truncate(path.stat().st_size // 2)
    with pytest.raises(InvalidInput, match=f"{name} was truncated while it was read"):
        file[600:]


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_a_constant_block_of_zeros_is_valid_but_for_cosine(metric: MetricName) -> None:
    from catalyzer.index.source import check_rows

    zeros = np.zeros((3, 4), np.float32)
    if metric != "cosine":
        assert check_rows(zeros, Metric(metric)) == 0
        return
    with pytest.raises(InvalidInput, match="row 0 contains only zeros, so it has no direction"):
        check_rows(zeros, Metric(metric))


def test_slices_that_are_not_what_they_should_be(index: CatalyzerIndex) -> None:
    class Short(Lazy):
        def __getitem__(self, rows: slice) -> np.ndarray:
            return self.x[rows][:-1]

    class Masked(Lazy):
        def __getitem__(self, rows: slice) -> np.ndarray:
            return np.ma.masked_equal(self.x[rows], self.x[0, 0])

    for source, message in (
        (Short(BASE), r"expected \(700, 32\) when reading rows from 0 on, got \(699, 32\)"),
        (Masked(BASE), "masked"),
    ):
        for work in (index.add, index.search, lambda x: index.update(range(700), x)):
            with pytest.raises(InvalidInput, match=message):
                work(source)
    assert index.ntotal == 700


@shortens
def test_a_file_that_is_shortened_before_it_is_opened_again(tmp_path: Path, index: CatalyzerIndex) -> None:
    path = write(tmp_path / "x.bvecs", BASE)
    file = open_vectors(path)
    with path.open("r+b") as other:
        other.truncate(36 * 300)
    with pytest.raises(InvalidInput, match="was truncated after it was opened, from 700 rows to 300"):
        pickle.loads(pickle.dumps(file))
    for use in (index.add, index.search, lambda file: file.first(600)[:]):
        with pytest.raises(InvalidInput, match="was truncated while it was read, from 25,200 to 10,800 bytes"):
            use(file)
    assert index.ntotal == 700


def test_bytes_behind_an_array(tmp_path: Path) -> None:
    with (tmp_path / "x.npy").open("wb") as file:
        np.save(file, BASE)
        np.save(file, BASE)
    with pytest.raises(InvalidInput, match="but the file has 45,056 bytes; save one array in a file"):
        open_vectors(tmp_path / "x.npy")


def test_limits_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.bvecs", BASE)
    for limit in (-1, True, 2.5):
        with pytest.raises(InvalidInput, match="limit must be an integer of at least 0"):
            open_vectors(path, limit)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="no such file"):
        open_vectors("~nobody-of-this-name/x.npy")


@pytest.mark.parametrize("ids", [np.ma.masked_array([900, 901], mask=[0, 1]), [[1], [2, 3]], torch.ones(2, requires_grad=True)])
def test_ids_that_are_none(ids: Any, index: CatalyzerIndex) -> None:
    for work in (lambda: index.add(BASE[:2], ids=ids), lambda: index.remove(ids), lambda: index.reconstruct(ids)):
        with pytest.raises(InvalidInput, match="ids must be int64 of shape"):
            work()
    with pytest.raises(InvalidInput, match="expected a CatalyzerIndex to merge, got str"):
        index.merge("a.catalyzer")  # type: ignore[arg-type]


@pytest.mark.parametrize("max_norm", [np.int8(100), np.float16(100), np.int64(100), Fraction(100)])
def test_a_largest_norm_of_any_type(max_norm: Any) -> None:
    assert Metric("ip", max_norm) == Metric("ip", 100.0)
    assert type(Metric("ip", max_norm).max_norm) is float


def test_a_codec_refuses_what_it_cannot_code(index: CatalyzerIndex) -> None:
    codec = index._trained().codec
    huge, nan, good = np.full((2, 32), 1e30), np.full((2, 32), np.nan), np.ones((2, 32))
    codes = codec.encode(good)
    for given, message in (
        (huge, "too large"), (nan, "NaN"), (good[:, :5], r"\(2, 5\)"), (good[0], r"\(32,\)"), (good + 1j, "complex"),
        (good.tolist(), "got list"), (torch.ones(2, 32), "got Tensor"),
    ):  # fmt: skip
        for work in (codec.encode, lambda x: codec.search(x, codes, 1)):
            with pytest.raises(InvalidInput, match=message):
                work(given)
    for share in (-1, 2, np.nan):
        with pytest.raises(InvalidInput, match="latent_share must be between 0 and 1"):
            replace(codec, latent_share=share)
