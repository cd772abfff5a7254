"""The file of an index: read as it was written, and refused with a sentence where anything in it is not as it should be."""

import hashlib
import json
import os
import pickle
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalyzer import CatalyzerIndex, InvalidInput
from catalyzer.index.file import BLOCK_ROWS, DIGEST_SIZE, HEADER_SIZE, MAGIC, Contents, read, verify, write
from tests.helpers import ROOT, clustered

COMMITTED = ROOT / "tests" / "index-format-1.catalyzer"
COMMITTED_2 = ROOT / "tests" / "index-format-2.catalyzer"
FUZZING = settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=["format 1", "format 2"])
def path(request: pytest.FixtureRequest, fitted: Path, listed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 200 vectors, without lists and with; not to be changed."""
    path = tmp_path_factory.mktemp("file") / "a.catalyzer"
    index = CatalyzerIndex.load(fitted if request.param == "format 1" else listed)
    index.add(clustered(200, 32, 1), ids=np.arange(200) * 7)
    index.save(path)
    return path


@pytest.fixture(scope="module")
def with_20_lists(listed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 200 vectors in 20 lists; not to be changed."""
    path = tmp_path_factory.mktemp("file") / "a.catalyzer"
    index = CatalyzerIndex.load(listed)
    index.add(clustered(200, 32, 1))
    index.save(path)
    return path


@contextmanager
def bounded_memory(limit: int = 1 << 28) -> Iterator[None]:
    """Whoever asks for so many bytes more than there are now gets a MemoryError, which is no InvalidInput."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def one_sentence_or_none() -> Iterator[None]:
    sentence = ""
    try:
        yield
    except InvalidInput as error:
        sentence = str(error)
    assert "\n" not in sentence


def refused(path: Path, sentence: str = "") -> None:
    """Both ways of loading refuse the file in one line that names it, and so does verifying."""
    for attempt in (lambda: read(path, mmap=False), lambda: read(path, mmap=True), lambda: verify(path)):
        with pytest.raises(InvalidInput, match=sentence) as raised:
            attempt()
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)


def header(content: bytes) -> dict[str, Any]:
    return json.loads(content[16 : HEADER_SIZE - DIGEST_SIZE])


def with_header(content: bytes, changed: Any) -> bytes:
    """The file with another header, whose checksum is right: what a hostile sender would make."""
    text = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
    head = (content[:16] + text).ljust(HEADER_SIZE - DIGEST_SIZE)[: HEADER_SIZE - DIGEST_SIZE]
    return head + hashlib.blake2b(head, digest_size=DIGEST_SIZE).digest() + content[HEADER_SIZE:]


def with_weights(content: bytes, weights: bytes) -> bytes:
    """The file with other weights, all checksums and places right."""
    fields = header(content)
    end = HEADER_SIZE + len(weights)
    shift = -(-end // 64) * 64 - fields["checksums"]["offset"]
    rest = content[fields["checksums"]["offset"] :]
    fields["weights"] |= {"size": len(weights), "blake2b": hashlib.blake2b(weights, digest_size=DIGEST_SIZE).hexdigest()}
    for name in fields.keys() & {"checksums", "lists", "ids", "codes"}:
        fields[name]["offset"] += shift
    return with_header(content, fields)[:HEADER_SIZE] + weights + bytes(-end % 64) + rest


def same(a: Contents, b: Contents) -> bool:
    return (
        (a.metric, a.bits, a.last_id) == (b.metric, b.bits, b.last_id)
        and np.array_equal(a.ids, b.ids)
        and np.array_equal(a.codes, b.codes)
        and (a.lists is None) == (b.lists is None)
        and (a.lists is None or b.lists is None or np.array_equal(a.lists.offsets, b.lists.offsets))
        and (a.lists is None or b.lists is None or np.array_equal(a.lists.centroids, b.lists.centroids))
    )


@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_is_read_as_it_was_written(path: Path, tmp_path: Path, mmap: bool) -> None:
    contents = read(path, mmap)
    assert isinstance(contents.codes, np.memmap) == isinstance(contents.ids, np.memmap) == mmap
    assert sorted(contents.ids.tolist()) == list(range(0, 1400, 7))
    write(tmp_path / "b.catalyzer", contents)
    assert (tmp_path / "b.catalyzer").read_bytes() == path.read_bytes()
    write(path.with_name("b.catalyzer"), contents)  # its own codes are mapped while it is replaced
    loaded, queries = CatalyzerIndex.load(path, mmap), clustered(10, 32, 2)
    for rerank in (0, 20):
        for ours, theirs in zip(
            loaded.search(queries, 5, rerank), CatalyzerIndex.load(path).search(queries, 5, rerank), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_a_mapped_index_outlives_its_file(path: Path, tmp_path: Path) -> None:
    copy = shutil.copy(path, tmp_path / "b.catalyzer")
    index, queries = CatalyzerIndex.load(copy, mmap=True), clustered(10, 32, 2)
    before = index.search(queries)
    index.add(queries)  # into memory, since what is mapped is not written to
    assert index.ntotal == 210
    index.save(copy)
    copy.unlink()
    np.testing.assert_array_equal(CatalyzerIndex.load(path).search(queries)[1], before[1])
    assert index.search(queries)[1].shape == (10, 10)


def test_an_empty_index_is_kept_too(fitted: Path, tmp_path: Path) -> None:
    for mmap in (False, True):
        index = CatalyzerIndex.load(fitted, mmap)
        assert (index.ntotal, index.is_trained, index.d) == (0, True, 32)
        index.save(tmp_path / "b.catalyzer")
        assert (tmp_path / "b.catalyzer").read_bytes() == fitted.read_bytes()
    assert len(verify(fitted).ids) == 0


def test_format_1_stays_readable(tmp_path: Path) -> None:
    contents = verify(COMMITTED)
    assert (contents.d, contents.metric.name, contents.bits, repr(contents.lattice)) == (
        10, "ip", 16, "SphericalLattice(dim=8, radius_sq=15)",
    )  # fmt: skip
    assert contents.ids.tolist() == [5, 3, 2**40]
    assert contents.last_id == 2**40
    assert contents.codes.tolist() == [[168, 219], [196, 153], [196, 153]]
    write(tmp_path / "b.catalyzer", contents)
    assert (tmp_path / "b.catalyzer").read_bytes() == COMMITTED.read_bytes()


def test_format_2_stays_readable(tmp_path: Path) -> None:
    contents = verify(COMMITTED_2)
    assert contents.lists is not None
    assert contents.lists.offsets.tolist() == [0, 2, 2, 3]
    assert contents.lists.centroids.shape == (3, 8)
    assert contents.lists.centroids[1].tolist() == [0.5] + [0.0] * 7
    assert contents.ids.tolist() == [5, 2**40, 3]
    write(tmp_path / "b.catalyzer", contents)
    assert (tmp_path / "b.catalyzer").read_bytes() == COMMITTED_2.read_bytes()


def with_lists(content: bytes, lists: bytes, **changed: Any) -> bytes:
    """The file with other bytes for its lists, as many, and their checksum right."""
    fields = header(content)
    at = fields["lists"]["offset"]
    fields["lists"] |= {"blake2b": hashlib.blake2b(lists, digest_size=DIGEST_SIZE).hexdigest(), **changed}
    return with_header(content[:at] + lists + content[at + len(lists) :], fields)


@FUZZING
@given(data=st.data())
def test_hostile_lists(with_20_lists: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = with_20_lists.read_bytes()
    place = header(whole)["lists"]
    lists = bytearray(whole[place["offset"] : place["offset"] + place["size"]])
    numbers = st.sampled_from([0, 1, -1, 199, 200, 201, 2**31, 2**62, 2**63 - 1, -(2**63)]) | st.integers(0, 200)
    for _ in range(data.draw(st.integers(1, 4))):
        if data.draw(st.booleans()):
            struct.pack_into("<q", lists, 8 * data.draw(st.integers(0, 20)), data.draw(numbers))
        else:
            value = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 2.0, -1.5, 3e38]))
            struct.pack_into("<f", lists, 8 * 21 + 4 * data.draw(st.integers(0, 20 * 24 - 1)), value)
    file = tmp_path / "hostile.catalyzer"
    file.write_bytes(with_lists(whole, bytes(lists)))
    with bounded_memory(), one_sentence_or_none():
        index = CatalyzerIndex.load(file, mmap=True)
        found = index.search(clustered(3, 32, 2), 200, rerank=0, nprobe=data.draw(st.integers(1, 20)))[1]
        assert all(len(set(row[row >= 0].tolist())) == (row >= 0).sum() for row in found)


def test_hostile_lists_that_come_to_mind(with_20_lists: Path, tmp_path: Path) -> None:
    whole, file = with_20_lists.read_bytes(), tmp_path / "hostile.catalyzer"
    place = header(whole)["lists"]
    lists = whole[place["offset"] : place["offset"] + place["size"]]
    offsets, centroids = np.frombuffer(lists, "<i8", 21), lists[8 * 21 :]
    for changed in (
        offsets + 1, offsets[::-1], np.where(np.arange(21) == 5, 2**63 - 1, offsets),
        np.where(np.arange(21) == 5, -(2**63), offsets), np.where(np.arange(21) == 20, 199, offsets),
    ):  # fmt: skip
        file.write_bytes(with_lists(whole, changed.astype("<i8").tobytes() + centroids))
        refused(file, "its lists are not a partition of 200 vectors")
    for value in (np.nan, np.inf, 2.1, 3e38):
        file.write_bytes(with_lists(whole, lists[:-4] + struct.pack("<f", value)))
        refused(file, "its lists are not a partition of 200 vectors")
    for shape in ([19, 24], [20, 23], [2**40, 24], [0, 24], [20], [20, 24, 1]):
        file.write_bytes(with_lists(whole, lists, shape=shape))
        refused(file, "is damaged")
    file.write_bytes(with_header(whole[:8] + struct.pack("<I", 1) + whole[12:], header(whole)))
    refused(file, "its header is not of format 1, which knows no lists")
    contents = read(with_20_lists, mmap=False)
    assert contents.lists is not None
    write(file, replace(contents, lists=replace(contents.lists, centroids=contents.lists.centroids[:, :23].copy())))
    refused(file, "its header and its networks do not belong together")


@FUZZING
@given(data=st.data())
def test_whatever_happens_to_a_file_is_noticed(path: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = path.read_bytes()
    fields = header(whole)
    places = st.one_of(
        st.integers(0, len(whole) - 1), st.integers(0, HEADER_SIZE), st.integers(fields["checksums"]["offset"], len(whole) - 1)
    )
    start, length = data.draw(places), data.draw(st.integers(1, 100))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "remove", "overwrite"]))
    damaged = bytearray(whole)
    if kind == "flip":
        damaged[start] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del damaged[start:]
    elif kind == "insert":
        damaged[start:start] = data.draw(st.binary(min_size=1, max_size=100))
    elif kind == "remove":
        del damaged[start : start + length]
    else:
        damaged[start : start + length] = data.draw(st.binary(min_size=length, max_size=length))
    if damaged == whole:
        return
    file = tmp_path / "damaged.catalyzer"
    file.write_bytes(damaged)
    with bounded_memory():
        for attempt in (lambda: read(file, mmap=False), lambda: verify(file)):
            with pytest.raises(InvalidInput) as raised:
                attempt()
            assert "\n" not in str(raised.value)
        if not (kind in ("flip", "overwrite") and start + length >= fields["ids"]["offset"]):  # mapped, these are believed
            with pytest.raises(InvalidInput):
                read(file, mmap=True)


def test_thousands_of_flipped_bytes(path: Path, tmp_path: Path) -> None:
    whole, file, random = path.read_bytes(), tmp_path / "damaged.catalyzer", np.random.default_rng(0)
    file.write_bytes(whole)
    places = [*range(200), *random.integers(len(whole), size=1300)]
    with file.open("r+b") as handle:
        for place in places:
            handle.seek(place)
            handle.write(bytes([whole[place] ^ random.integers(1, 256)]))
            handle.flush()
            with pytest.raises(InvalidInput):
                read(file, mmap=False)
            handle.seek(place)
            handle.write(whole[place : place + 1])
    assert same(read(file, mmap=False), read(path, mmap=False))


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@FUZZING
@given(data=st.data())
def test_a_hostile_header(path: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = path.read_bytes()
    fields = header(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        group: Any = fields
        name = data.draw(st.sampled_from([*fields, "new"]))
        if isinstance(fields.get(name), dict) and data.draw(st.booleans()):
            group, name = fields[name], data.draw(st.sampled_from([*fields[name], "new"]))
        if data.draw(st.booleans()):
            group.pop(name, None)
        else:
            group[name] = data.draw(ANYTHING)
    file = tmp_path / "hostile.catalyzer"
    file.write_bytes(with_header(whole, fields))
    with bounded_memory(), one_sentence_or_none():
        # What is not refused does not matter to what is held.
        assert np.array_equal(read(file, mmap=True).codes, read(path, mmap=True).codes)


def test_hostile_headers_that_come_to_mind(with_20_lists: Path, tmp_path: Path) -> None:
    whole, file = with_20_lists.read_bytes(), tmp_path / "hostile.catalyzer"
    fields = header(whole)

    def changed(**parts: Any) -> dict[str, Any]:
        return {**fields, **{name: {**fields[name], **v} if isinstance(v, dict) else v for name, v in parts.items()}}

    for text in (
        b"", b"{", b"[" * 4000, b'{"a":' * 600, b"\xff\xfe", b"null", b"[]", b"9" * 4000,
        json.dumps(fields).encode() + b"{}", changed(extra=1), changed(bits=128), changed(bits=63), changed(radius_sq=16129),
        changed(d=31), changed(metric="ip"), changed(metric="ip", max_norm=1.0), changed(max_norm=1.0), changed(numbering=2),
        changed(ids={"shape": [2**40]}, codes={"shape": [2**40, 8]}), changed(codes={"shape": [200, 9]}),
        changed(ids={"shape": [0]}, codes={"shape": [0, 8]}), changed(codes={"shape": [-1, 8]}),
        changed(ids={"shape": [200, 1]}), changed(lists=None), {**fields, "lists": fields["checksums"]},
        changed(weights={"size": 2**60}), changed(weights={"size": 10**30}), changed(weights={"size": 0}),
        changed(checksums={"size": 64}), changed(ids={"offset": 0}), changed(codes={"offset": -64}), changed(last_id=2**63),
        changed(latent_share=2), changed(latent_share=float("nan")),
    ):  # fmt: skip
        file.write_bytes(with_header(whole, text))
        with bounded_memory():
            refused(file, "is damaged")


@FUZZING
@given(data=st.data())
def test_hostile_weights(path: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = path.read_bytes()
    fields = header(whole)
    weights = whole[HEADER_SIZE : HEADER_SIZE + fields["weights"]["size"]]
    (size,) = struct.unpack("<Q", weights[:8])
    tensors, values = json.loads(weights[8 : 8 + size]), bytearray(weights[8 + size :])
    numbers = st.sampled_from([0, 1, 2, 24, 32, 64, 2**31, 2**40, 2**63, -1])
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(tensors)))
        kind = data.draw(st.sampled_from(["shape", "dtype", "data_offsets", "remove", "rename", "values"]))
        if kind == "remove":
            del tensors[name]
        elif kind == "rename":
            tensors[
                data.draw(st.sampled_from(["query.layers.0.weight", "x", "", "catalyzer.", "decoder.mean", "os.system"]))
            ] = tensors.pop(name)
        elif kind == "values":
            at = data.draw(st.integers(0, len(values) - 4))
            values[at : at + 4] = data.draw(st.sampled_from([b"\x00\x00\x80\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00"]))
        elif name in tensors:
            tensors[name] = {
                **tensors[name],
                kind: data.draw(st.sampled_from(["F16", "F64", "I64", "BOOL", "F8_E4M3", "X"]))
                if kind == "dtype"
                else data.draw(st.lists(numbers, max_size=3)),
            }
        if not tensors:
            break
    text = json.dumps(tensors).encode()
    file = tmp_path / "hostile.catalyzer"
    file.write_bytes(with_weights(whole, struct.pack("<Q", len(text)) + text + bytes(values)))
    with bounded_memory(), one_sentence_or_none():
        CatalyzerIndex.load(file).search(clustered(2, 32, 2))


def test_networks_that_do_not_belong_together(fitted: Path, tmp_path: Path) -> None:
    contents = read(fitted, mmap=False)
    other = CatalyzerIndex(bits=32, d_out=8, hidden=16).fit(clustered(600, 16, 0), epochs=1)
    other.save(tmp_path / "other.catalyzer")
    stranger = read(tmp_path / "other.catalyzer", mmap=False).codec
    for codec in (
        replace(contents.codec, decoder=stranger.decoder),
        replace(contents.codec, query=stranger.query),
        replace(contents.codec, transform=stranger.transform, decoder=None, query=None),
    ):
        write(tmp_path / "b.catalyzer", replace(contents, codec=codec))
        refused(tmp_path / "b.catalyzer", "is damaged")
    assert fitted.exists()


def test_a_later_format(path: Path, tmp_path: Path) -> None:
    whole, file = path.read_bytes(), tmp_path / "b.catalyzer"
    file.write_bytes(whole[:8] + struct.pack("<I", 3) + b"what a later version has there" + bytes(5000))
    refused(file, "has format 3, and this catalyzer reads up to 2; install a newer one")


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch evil",)


def test_foreign_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "x.npy", np.zeros((1000, 10)))
    for name, content, sentence in (
        ("empty", b"", "is not an index"),
        ("text", b"hello", "is not an index"),
        ("array", (tmp_path / "x.npy").read_bytes(), "is not an index"),
        ("pickle", pickle.dumps(Evil()), "is not an index"),
        ("begins", MAGIC, "it ends after 8 bytes"),
        ("zeros", bytes(10_000), "is not an index"),
        ("pickled header", with_header(MAGIC + struct.pack("<II", 1, 0), pickle.dumps(Evil())), "is damaged"),
    ):
        file = tmp_path / name
        file.write_bytes(content)
        refused(file, sentence)
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", tmp_path, tmp_path / "missing"):
        refused(file, "no such file")
    assert not (tmp_path / "evil").exists()


def test_verify_says_which_vectors_are_damaged(fitted: Path, tmp_path: Path) -> None:
    contents, n = read(fitted, mmap=False), 2 * BLOCK_ROWS + 5
    codes = contents.lattice.encode(np.random.default_rng(0).normal(size=(n, 24)))
    file = tmp_path / "b.catalyzer"
    write(file, replace(contents, ids=np.arange(n), codes=codes, last_id=n - 1))
    assert len(verify(file).ids) == n
    whole = file.read_bytes()
    for place, sentence in ((len(whole) - 1, "vectors 131,072 to 131,076"), (len(whole) - 8 * n, "vectors 0 to 65,535")):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        read(file, mmap=True)
        for attempt in (lambda: verify(file), lambda: read(file, mmap=False)):
            with pytest.raises(InvalidInput, match=sentence):
                attempt()
    codes = codes.copy()
    codes[7] = 255
    write(file, replace(contents, ids=np.arange(n), codes=codes))
    with pytest.raises(InvalidInput, match="row 7 holds the code"):
        verify(file)
    write(file, replace(contents, ids=np.zeros(200, np.int64), codes=codes[8:208]))
    with pytest.raises(InvalidInput, match="it has an id twice"):
        verify(file)


def test_a_file_that_cannot_be_written(path: Path, tmp_path: Path) -> None:
    index = CatalyzerIndex.load(path)
    (tmp_path / "folder.catalyzer" / "x").mkdir(parents=True)
    for target in (tmp_path / "folder.catalyzer", Path("/dev/null/a.catalyzer")):
        with pytest.raises(InvalidInput, match=f"{target} cannot be written .*; what was there is unchanged"):
            index.save(target)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.catalyzer"]
