"""The file of an index: read as it was written, and refused with a sentence where anything in it is not as it should be."""

import hashlib
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from catalyzer import Catalyzer, CatalyzerIndex, Codec, Decoder, InvalidInput, LatticeQuantizer, ProductQuantizer
from catalyzer.errors import CatalyzerError, DamagedFile, Unavailable, UntrustedPart
from catalyzer.index.contents import MAX_DIM, Contents
from catalyzer.index.file import BLOCK_ROWS, read, verify, write
from catalyzer.metric import Metric
from catalyzer.nn import PCA, Identity, Transform
from catalyzer.quantizers import (
    AdditiveQuantizer,
    ITQQuantizer,
    LSHQuantizer,
    Quantizer,
    RaBitQuantizer,
    SignQuantizer,
)
from tests.helpers import ROOT, clustered

COMMITTED = ROOT / "tests" / "index-format-1.catalyzer"
FUZZING = settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=["flat", "lists", "opq"])
def path(
    request: pytest.FixtureRequest, codec: Codec, fitted: Path, listed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An index of 200 vectors; not to be changed."""
    path = tmp_path_factory.mktemp("file") / "a.catalyzer"
    if request.param == "opq":
        index = CatalyzerIndex.from_codec(learned(codec, ProductQuantizer(24, 64, rotate=True)))
    else:
        index = CatalyzerIndex.load(fitted if request.param == "flat" else listed)
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


def learned(codec: Codec, quantizer: Quantizer) -> Codec:
    """The networks of a codec before another quantizer, which learns here."""
    made = replace(codec, quantizer=quantizer)
    made.fit(clustered(2000, 32, 0).astype(np.float32))
    return made


@contextmanager
def bounded_memory(limit: int = 1 << 28) -> Iterator[None]:
    """Whoever asks for so many bytes more than there are now gets a MemoryError, which is no CatalyzerError."""
    if sys.platform != "linux":  # elsewhere such limits are none, or cannot be set
        yield
        return
    import resource

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
    except CatalyzerError as error:
        sentence = str(error)
    assert "\n" not in sentence


def refused(path: Path, sentence: str = ".", error: type[CatalyzerError] = DamagedFile) -> None:
    """Both ways of loading refuse the file in one line, and so does verifying."""
    for attempt in (lambda: read(path, mmap=False), lambda: read(path, mmap=True), lambda: verify(path)):
        with pytest.raises(error, match=sentence) as raised:
            attempt()
        assert str(path) in str(raised.value) or error is UntrustedPart
        assert "\n" not in str(raised.value)


def same(a: Contents, b: Contents) -> bool:
    return (
        (a.metric, a.last_id, a.codec.steps, a.codec.refine, a.codec.latent_share)
        == (b.metric, b.last_id, b.codec.steps, b.codec.refine, b.codec.latent_share)
        and np.array_equal(a.ids, b.ids)
        and np.array_equal(a.codes, b.codes)
        and (a.lists is None) == (b.lists is None)
        and (a.lists is None or b.lists is None or np.array_equal(a.lists.offsets, b.lists.offsets))
        and (a.lists is None or b.lists is None or np.array_equal(a.lists.centroids, b.lists.centroids))
    )


Tensors = dict[str, np.ndarray]


def taken_apart(path: Path) -> tuple[dict[str, Any], Tensors]:
    """The `index` text as an object, and the tensors, by the safetensors library alone."""
    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["index"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def put_together(index: Any, tensors: Tensors) -> bytes:
    """A file with all digests right, as docs/format.md has them: what a hostile sender would make."""
    text = index if isinstance(index, str) else json.dumps(index, separators=(",", ":"))
    dtypes = {"<i8": "I64", "<f8": "F64", "<f4": "F32", "|u1": "U8", "|b1": "BOOL", "<f2": "F16"}
    tensors = dict(sorted(tensors.items(), key=lambda item: ([*dtypes].index(item[1].dtype.str), item[0])))
    layout, at = {}, 0
    for name, array in tensors.items():
        layout[name] = {"dtype": dtypes[array.dtype.str], "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    digest = hashlib.blake2b(text.encode() + json.dumps(layout, separators=(",", ":")).encode(), digest_size=32)
    for name, array in tensors.items():
        if name not in ("ids", "codes"):
            digest.update(array.tobytes())
    metadata = {"format": "catalyzer.index/1", "index": text, "blake2b": digest.hexdigest()}
    header = json.dumps({"__metadata__": metadata, **layout}, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % 64)
    return struct.pack("<Q", len(header)) + header + b"".join(array.tobytes() for array in tensors.values())


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


def test_the_safetensors_library_alone_reads_it(path: Path) -> None:
    contents, tensors = read(path, mmap=False), safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(tensors["ids"], contents.ids)
    np.testing.assert_array_equal(tensors["codes"], contents.codes)
    state = {f"transform.{name}": tensor.numpy() for name, tensor in contents.codec.transform.state_dict().items()}
    assert {name for name in tensors if name.startswith("transform.")} == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(tensors[name], array)
    assert put_together(*taken_apart(path)) == path.read_bytes()  # and tests/ can make the same bytes
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    assert (8 + size) % 64 == 0
    for name, entry in header.items():
        if name != "__metadata__":
            itemsize = {"I64": 8, "F32": 4, "U8": 1}[entry["dtype"]]
            assert (8 + size + entry["data_offsets"][0]) % itemsize == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows replaces no file that is mapped")
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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows replaces no file that is open")
def test_readers_see_one_file_while_another_process_replaces_it(codec: Codec, tmp_path: Path) -> None:
    file = tmp_path / "a.catalyzer"
    for n in (3, 5):
        index = CatalyzerIndex.from_codec(codec)
        index.add(clustered(n, 32, 1))
        index.save(tmp_path / f"{n}.catalyzer")
    code = (
        "import itertools, os, shutil\n"
        "for i in itertools.count(): shutil.copy(f'{3 + i % 2 * 2}.catalyzer', 'b'); os.replace('b', 'a.catalyzer')"
    )
    shutil.copy(tmp_path / "3.catalyzer", file)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    try:
        assert {len(read(file, mmap=i % 2 == 0).ids) for i in range(100)} <= {3, 5}
    finally:
        process.kill()
        process.wait()


def test_an_empty_index_is_kept_too(fitted: Path, tmp_path: Path) -> None:
    for mmap in (False, True):
        index = CatalyzerIndex.load(fitted, mmap)
        assert (index.ntotal, index.is_trained, index.d) == (0, True, 32)
        index.save(tmp_path / "b.catalyzer")
        assert (tmp_path / "b.catalyzer").read_bytes() == fitted.read_bytes()
    assert len(verify(fitted).ids) == 0


def test_steps_and_points_tried_are_kept(codec: Codec, tmp_path: Path) -> None:
    x, paths = clustered(300, 32, 1), [tmp_path / f"{name}.catalyzer" for name in "ab"]
    index = CatalyzerIndex.from_codec(replace(codec, steps=2, refine=4))
    index.save(paths[0])
    loaded = CatalyzerIndex.load(paths[0])
    assert taken_apart(paths[0])[0]["steps"] == 2
    for each in (index, loaded):
        each.add(x)
    np.testing.assert_array_equal(loaded.codes, index.codes)
    plain = CatalyzerIndex.from_codec(codec)
    plain.add(x)
    assert (plain.codes != index.codes).any(axis=1).mean() > 0.5
    loaded.save(paths[1])
    index.save(paths[0])
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_gradients_pass_what_is_loaded_in_inference_mode(codec: Codec, tmp_path: Path) -> None:
    CatalyzerIndex.from_codec(replace(codec, steps=2)).save(tmp_path / "a.catalyzer")
    index = CatalyzerIndex.load(tmp_path / "a.catalyzer")
    with torch.inference_mode():
        again = CatalyzerIndex.load(tmp_path / "a.catalyzer")
        again.add(clustered(20, 32, 1))
    index.add(clustered(20, 32, 1))
    np.testing.assert_array_equal(again.codes, index.codes)


def test_format_1_stays_readable(tmp_path: Path) -> None:
    contents = verify(COMMITTED)
    codec = contents.codec
    assert (contents.d, contents.metric, contents.last_id) == (10, Metric("ip", 12.5), 2**40)
    assert (codec.latent_share, codec.refine, codec.quantizer.arguments) == (0.25, 2, {"dim": 8, "bits": 16, "radius_sq": 15})
    assert [type(part) for part in contents.codec.parts.values()] == [Catalyzer, LatticeQuantizer, Decoder, Catalyzer]
    assert contents.lists is not None
    assert contents.lists.offsets.tolist() == [0, 2, 2, 3]
    assert contents.lists.centroids[1].tolist() == [0.5] + [0.0] * 7
    assert contents.ids.tolist() == [5, 2**40, 3]
    assert contents.codes.tolist() == [[168, 219], [196, 153], [1, 2]]
    write(tmp_path / "b.catalyzer", contents)
    assert (tmp_path / "b.catalyzer").read_bytes() == COMMITTED.read_bytes()


class Halves(Transform):
    """A foreign transform, with a buffer of every type that an index can hold."""

    kept: Tensor

    def __init__(self, d_in: int, d_out: int, scale: float = 1.0) -> None:
        super().__init__(d_in, d_out)
        self.scale = scale
        self.layer = nn.Linear(d_in, d_out)
        self.register_buffer("kept", torch.ones(d_out, dtype=torch.bool))
        self.register_buffer("wide", torch.ones(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.float()) * self.scale * self.kept


class Rounding(Quantizer):
    """A foreign quantizer: a byte a coordinate, between the extremes that it has learned."""

    def __init__(self, dim: int) -> None:
        self.dim, self.bits = dim, 8 * dim

    def fit(self, x: np.ndarray) -> "Rounding":
        self.low_, self.high_ = x.min(axis=0), x.max(axis=0)
        return self

    def encode(self, x: np.ndarray) -> np.ndarray:
        return ((x - self.low_) / (self.high_ - self.low_) * 255).clip(0, 255).round().astype(np.uint8)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return codes.astype(np.float32) / 255 * (self.high_ - self.low_) + self.low_


@pytest.mark.parametrize(
    "quantizer",
    [
        ProductQuantizer(24, 64, rotate=True), ProductQuantizer(24, 40), AdditiveQuantizer(24, 32),
        AdditiveQuantizer(24, 32, local_search=True), LSHQuantizer(24, 30), ITQQuantizer(24, 20), RaBitQuantizer(24),
        SignQuantizer(24), SignQuantizer(24, asymmetric=True), LatticeQuantizer(24, 72), LatticeQuantizer(24, 64, 10),
    ],
    ids=lambda quantizer: quantizer.label,
)  # fmt: skip
def test_any_quantizer_in_an_index(codec: Codec, quantizer: Quantizer, tmp_path: Path) -> None:
    made = learned(codec, quantizer)
    index, queries = CatalyzerIndex.from_codec(made), clustered(20, 32, 2)
    index.add(clustered(300, 32, 1))
    index.save(tmp_path / "a.catalyzer")
    verify(tmp_path / "a.catalyzer")
    loaded = CatalyzerIndex.load(tmp_path / "a.catalyzer", mmap=True)
    assert loaded.codes.shape == (300, quantizer.code_size)
    for rerank in (0, 20, None):
        for ours, theirs in zip(loaded.search(queries, 5, rerank), index.search(queries, 5, rerank), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    loaded.add(clustered(50, 32, 3))
    index.add(clustered(50, 32, 3))
    np.testing.assert_array_equal(loaded.codes, index.codes)
    np.testing.assert_array_equal(loaded.reconstruct([3]), index.reconstruct([3]))
    fresh = CatalyzerIndex.from_codec(made)
    fresh.merge(loaded)
    np.testing.assert_array_equal(fresh.codes, index.codes)


@pytest.mark.parametrize("transform", [PCA(32, 24), Identity(32)], ids=["PCA", "identity"])
def test_any_transform_in_an_index(transform: Transform, tmp_path: Path) -> None:
    codec = Codec(transform.adapt(clustered(500, 32, 0)), LatticeQuantizer(transform.d_out, 64))
    index = CatalyzerIndex.from_codec(codec, metric="cosine")
    index.add(clustered(100, 32, 1))
    index.save(tmp_path / "a.catalyzer")
    loaded = CatalyzerIndex.load(tmp_path / "a.catalyzer")
    assert loaded.metric == "cosine"
    np.testing.assert_array_equal(loaded.search(clustered(5, 32, 2))[0], index.search(clustered(5, 32, 2))[0])


def test_parts_of_your_own_are_loaded_where_they_are_trusted(tmp_path: Path) -> None:
    file = tmp_path / "a.catalyzer"
    codec = Codec(Halves(32, 24, scale=0.5), Rounding(24))
    with pytest.raises(InvalidInput, match="Rounding is not fitted"):
        CatalyzerIndex.from_codec(codec)
    codec.fit(clustered(500, 32, 0))
    index = CatalyzerIndex.from_codec(codec)
    index.add(clustered(100, 32, 1))
    index.save(file)
    loaded = CatalyzerIndex.load(file, trust=__name__)
    for ours, theirs in zip(loaded.search(clustered(5, 32, 2)), index.search(clustered(5, 32, 2)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    verify(file, trust=["tests"])
    refused(file, f"{__name__}.Halves is not a class of catalyzer", UntrustedPart)
    half = Halves(32, 24).half()
    with pytest.raises(InvalidInput, match=r"transform.wide is torch.float16, a type that an index cannot store"):
        write(
            file, Contents(Codec(half, LatticeQuantizer(24)), Metric("l2"), np.empty(0, np.int64), np.empty((0, 8), np.uint8))
        )


@FUZZING
@given(data=st.data())
def test_whatever_happens_to_a_file_is_noticed(path: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    places = st.integers(0, len(whole) - 1) | st.integers(0, begin + 16) | st.integers(len(whole) - 2000, len(whole) - 1)
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
    entries = json.loads(whole[8:begin])
    believed = [entries[name]["data_offsets"] for name in ("ids", "codes")]  # where they are mapped
    with bounded_memory():
        for attempt in (lambda: read(file, mmap=False), lambda: verify(file)):
            with pytest.raises(CatalyzerError) as raised:
                attempt()
            assert "\n" not in str(raised.value)
        if not (kind in ("flip", "overwrite") and any(start + length > begin + a and start < begin + b for a, b in believed)):
            with pytest.raises(CatalyzerError):
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
            with pytest.raises(CatalyzerError):
                read(file, mmap=False)
            handle.seek(place)
            handle.write(whole[place : place + 1])
    assert same(read(file, mmap=False), read(path, mmap=False))


def test_every_short_file(path: Path, tmp_path: Path) -> None:
    whole, file = path.read_bytes(), tmp_path / "cut.catalyzer"
    for size in (*range(8), 60, 100, 500, 8 + int.from_bytes(whole[:8], "little"), len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        refused(file, error=DamagedFile if size >= 60 else InvalidInput)
    file.write_bytes(whole + b"\0")
    refused(file, "is damaged")


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([0, 1, -1, 24, 32, 2**31, 2**63, 2**64]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@FUZZING
@given(data=st.data())
def test_a_hostile_header(path: Path, tmp_path: Path, data: st.DataObject) -> None:
    index, tensors = taken_apart(path)
    for _ in range(data.draw(st.integers(1, 3))):
        group: Any = index
        name = data.draw(st.sampled_from([*group, "new"]))
        while isinstance(group.get(name), dict) and data.draw(st.booleans()):
            group = group[name]
            name = data.draw(st.sampled_from([*group, "new"]))
        if data.draw(st.booleans()):
            group.pop(name, None)
        else:
            group[name] = data.draw(ANYTHING)
    file = tmp_path / "hostile.catalyzer"
    file.write_bytes(put_together(index, tensors))
    with bounded_memory(), one_sentence_or_none():
        # What is not refused does not matter to what is held.
        assert np.array_equal(read(file, mmap=True).codes, read(path, mmap=True).codes)


@FUZZING
@given(data=st.data())
def test_hostile_tensors(path: Path, tmp_path: Path, data: st.DataObject) -> None:
    index, tensors = taken_apart(path)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(tensors)))
        kind = data.draw(st.sampled_from(["shape", "dtype", "remove", "rename", "values", "more"]))
        array = tensors[name]
        if kind == "remove":
            del tensors[name]
        elif kind == "rename":
            names = ["query.layers.0.weight", "x", "catalyzer.", "decoder.mean", "os.system", "lists.offsets", "ids", "codes."]
            tensors[data.draw(st.sampled_from(names))] = tensors.pop(name)
        elif kind == "shape":
            tensors[name] = array.reshape(data.draw(st.sampled_from([(-1,), (1, *array.shape), (*array.shape, 1), (1, -1)])))
        elif kind == "dtype":
            tensors[name] = array.astype(data.draw(st.sampled_from(["<i8", "<f8", "<f4", "|u1", "|b1", "<f2"])))
        elif kind == "more" and array.ndim:
            tensors[name] = np.concatenate([array, array[: data.draw(st.integers(1, 3))]])
        elif kind == "values" and array.size:
            values = (
                [np.nan, np.inf, -np.inf, 0, 3e38] if array.dtype.kind == "f" else [0, 1, 255, -1, 2**31, 2**63 - 1, -(2**63)]
            )
            with np.errstate(all="ignore"):
                array.reshape(-1)[data.draw(st.integers(0, array.size - 1))] = np.array(
                    data.draw(st.sampled_from(values))
                ).astype(array.dtype)
        if not tensors:
            break
    file = tmp_path / "hostile.catalyzer"
    file.write_bytes(put_together(index, tensors))
    with bounded_memory(), one_sentence_or_none():
        CatalyzerIndex.load(file).search(clustered(2, 32, 2))


def test_hostile_headers_that_come_to_mind(with_20_lists: Path, tmp_path: Path) -> None:
    file = tmp_path / "hostile.catalyzer"
    index, tensors = taken_apart(with_20_lists)
    text = json.dumps(index)

    def changed(**values: Any) -> dict[str, Any]:
        return {**index, **values}

    def part(name: str, **values: Any) -> dict[str, Any]:
        made = index["parts"][name]
        return changed(parts={**index["parts"], name: {**made, "arguments": {**made["arguments"], **values}}})

    def residual(layers: int) -> dict[str, Any]:
        made = index["parts"]["decoder"]
        arguments = {**made["arguments"], "residual_layers": layers}
        return changed(parts={**index["parts"], "decoder": {"class": "catalyzer.nn.ResidualDecoder", "arguments": arguments}})

    for hostile in (
        "", "{", "[" * 100_000, '{"a":' * 600, "null", "[]", "9" * 5000, text + "{}", text.replace("24", "1e400"),
        changed(extra=1), changed(bits=128), changed(bits=63), changed(d=31), changed(metric="ip"),
        changed(metric="ip", max_norm=1.0), changed(max_norm=1.0), changed(numbering=2), changed(numbering=None),
        changed(last_id=2**63), changed(latent_share=2), changed(refine=0), changed(parts={}), changed(parts=None),
        changed(steps=-1), changed(steps=1.5), changed(steps=10**9), changed(refine=10**9), residual(10**9),
        part("transform", d_in=31), part("transform", d_out=2**40), part("transform", hidden=10**18),
        part("transform", d_in=2**70), part("transform", hidden="64"), part("transform", new=1),
        part("transform", d_in=2**62, d_out=2**62, hidden=2**62), part("decoder", d_out=16), part("query", d_out=23),
        part("quantizer", dim=2**40), part("quantizer", dim=23), part("quantizer", bits=2**70), part("quantizer", bits=10**12),
        part("quantizer", radius_sq=10**18), part("quantizer", radius_sq=[79]),
    ):  # fmt: skip
        file.write_bytes(put_together(hostile, tensors))
        with bounded_memory():
            refused(file, "is damaged")


def test_no_claim_makes_a_quantizer_of_absurd_size(tmp_path: Path) -> None:
    file = tmp_path / "hostile.catalyzer"
    write(
        file,
        Contents(Codec(Identity(8), LatticeQuantizer(8, 16)), Metric("l2"), np.empty(0, np.int64), np.empty((0, 2), np.uint8)),
    )
    index, tensors = taken_apart(file)

    def claimed(d: int, name: str, told: int, **arguments: Any) -> None:
        parts = {
            **index["parts"],
            "transform": {"class": "catalyzer.nn.transforms.Identity", "arguments": {"d_in": d}},
            "quantizer": {"class": f"catalyzer.quantizers.{name}", "arguments": {"dim": d, **arguments}},
        }
        codes = np.empty((0, -(-told // 8)), np.uint8)
        content = put_together({**index, "d": d, "bits": told, "numbering": None, "parts": parts}, {**tensors, "codes": codes})
        file.write_bytes(content)
        with bounded_memory():
            refused(file, "is damaged")

    claimed(10**6, "RaBitQuantizer", 10**6 + 64)
    claimed(MAX_DIM + 1, "RaBitQuantizer", MAX_DIM + 65)
    claimed(10**6, "ProductQuantizer", 8 * 10**6, bits=8 * 10**6, rotate=True)
    claimed(24, "AdditiveQuantizer", 8 * 10**9, bits=8 * 10**9)
    claimed(24, "AdditiveQuantizer", 64, bits=8 * 10**9)
    claimed(24, "LSHQuantizer", 10**12, bits=10**12)
    claimed(24, "ITQQuantizer", 16, bits=16)  # without what it has learned
    claimed(24, "Quantizer", 16)
    claimed(24, "base.HashQuantizer", 16)


def test_classes_that_come_to_mind(with_20_lists: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hostile.catalyzer"
    index, tensors = taken_apart(with_20_lists)
    (tmp_path / "untrusted_parts.py").write_text("raise SystemExit('this module has been imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, error in (
        ("os.system", UntrustedPart), ("posix.system", UntrustedPart), ("builtins.eval", UntrustedPart),
        ("subprocess.Popen", UntrustedPart), ("untrusted_parts.Network", UntrustedPart), ("torch.nn.Linear", UntrustedPart),
        ("catalyzer_evil.Network", UntrustedPart), ("", UntrustedPart), ("eval", UntrustedPart), ("..", UntrustedPart),
        ("catalyzer", UntrustedPart), ("catalyzer.index.file.os.system", DamagedFile), ("catalyzer.index.file.os", DamagedFile),
        ("catalyzer.index.file.nn", DamagedFile), ("catalyzer.index.file.read", DamagedFile),
        ("catalyzer.index.file.Contents", DamagedFile), ("catalyzer.nn.transforms.Transform", DamagedFile),
        ("catalyzer.quantizers.LatticeQuantizer", DamagedFile), ("catalyzer.nn.Decoder\nx", DamagedFile), (7, DamagedFile),
        ("catalyzer.nn.batch_norm.BatchNorm", DamagedFile),
    ):  # fmt: skip
        for part in ("transform", "decoder", "query"):
            parts = {**index["parts"], part: {**index["parts"][part], "class": name}}
            file.write_bytes(put_together({**index, "parts": parts}, tensors))
            refused(file, error=error)
    for arguments in ({"args": ["touch evil"]}, {"d_in": "__import__('os').system('touch evil')"}):
        parts = {**index["parts"], "quantizer": {"class": "os.system", "arguments": arguments}}
        file.write_bytes(put_together({**index, "parts": parts}, tensors))
        refused(file, error=UntrustedPart)


@FUZZING
@given(data=st.data())
def test_hostile_lists(with_20_lists: Path, tmp_path: Path, data: st.DataObject) -> None:
    index, tensors = taken_apart(with_20_lists)
    numbers = st.sampled_from([0, 1, -1, 199, 200, 201, 2**31, 2**62, 2**63 - 1, -(2**63)]) | st.integers(0, 200)
    for _ in range(data.draw(st.integers(1, 4))):
        if data.draw(st.booleans()):
            tensors["lists.offsets"][data.draw(st.integers(0, 20))] = data.draw(numbers)
        else:
            value = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 2.0, -1.5, 3e38]))
            tensors["lists.centroids"].reshape(-1)[data.draw(st.integers(0, 20 * 24 - 1))] = value
    file = tmp_path / "hostile.catalyzer"
    file.write_bytes(put_together(index, tensors))
    with bounded_memory(), one_sentence_or_none():
        found = CatalyzerIndex.load(file, mmap=True).search(
            clustered(3, 32, 2), 200, rerank=0, nprobe=data.draw(st.integers(1, 20))
        )[1]
        assert all(len(set(row[row >= 0].tolist())) == (row >= 0).sum() for row in found)


def test_hostile_lists_that_come_to_mind(with_20_lists: Path, tmp_path: Path) -> None:
    file = tmp_path / "hostile.catalyzer"
    index, tensors = taken_apart(with_20_lists)
    offsets, centroids = tensors["lists.offsets"], tensors["lists.centroids"]

    def made(**changed: np.ndarray | None) -> bytes:
        lists = {"offsets": offsets, "centroids": centroids} | changed
        others = {name: array for name, array in tensors.items() if not name.startswith("lists.")}
        return put_together(index, others | {f"lists.{name}": array for name, array in lists.items() if array is not None})

    for hostile in (
        offsets + 1, offsets[::-1].copy(), np.where(np.arange(21) == 5, 2**63 - 1, offsets), offsets[:-1], offsets[1:],
        np.where(np.arange(21) == 5, -(2**63), offsets), np.where(np.arange(21) == 20, 199, offsets), offsets[:0],
    ):  # fmt: skip
        file.write_bytes(made(offsets=hostile))
        refused(file, "its lists are not a partition of 200 vectors")
    for value in (np.nan, np.inf):
        file.write_bytes(made(centroids=np.where(centroids == centroids[3, 3], np.float32(value), centroids)))
        refused(file, "lists.centroids is not finite")
    for content in (
        made(centroids=centroids[:, :23].copy()), made(centroids=centroids[:19]), made(centroids=centroids.astype(float)),
        made(centroids=centroids.reshape(-1)), made(offsets=None), made(centroids=None), made(offsets=offsets.astype(np.uint8)),
        made(more=offsets),
    ):  # fmt: skip
        file.write_bytes(content)
        refused(file, "is damaged")


def test_parts_that_do_not_belong_together(codec: Codec) -> None:
    nothing = np.empty(0, np.int64), np.empty((0, 8), np.uint8)
    for other in (replace(codec, decoder=Decoder(24, 31)), replace(codec, query=Catalyzer(32, 23))):
        with pytest.raises(InvalidInput, match="of the index does not fit the rest"):
            Contents(other, Metric("l2"), *nothing)
    with pytest.raises(InvalidInput, match="does not fit the rest"):
        Contents(codec, Metric("l2"), nothing[0], np.empty((0, 7), np.uint8))
    with pytest.raises(InvalidInput, match="at most 4,096 dimensions"):
        Contents(Codec(Identity(5000), SignQuantizer(5000)), Metric("l2"), nothing[0], np.empty((0, 625), np.uint8))


def test_a_later_format(path: Path, tmp_path: Path) -> None:
    whole, file = path.read_bytes(), tmp_path / "b.catalyzer"
    file.write_bytes(whole.replace(b"catalyzer.index/1", b"catalyzer.index/2"))
    refused(file, "has format '2', but this version of catalyzer reads 1; install a newer version", InvalidInput)


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch evil",)


def test_foreign_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "x.npy", np.zeros((1000, 10)))
    model = safetensors.numpy.save({"x": np.zeros(3)}, {"format": "pt"})
    for name, content in (
        ("empty", b""),
        ("text", b"hello"),
        ("array", (tmp_path / "x.npy").read_bytes()),
        ("pickle", pickle.dumps(Evil())),
        ("zeros", bytes(10_000)),
        ("model", model),
        ("plain", safetensors.numpy.save({"ids": np.zeros(3)})),
        ("none", struct.pack("<Q", 2) + b"{}"),
    ):
        file = tmp_path / name
        file.write_bytes(content)
        refused(file, "is not an index; make one with", InvalidInput)
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", tmp_path, tmp_path / "missing"):
        refused(file, "not a file" if file.exists() else "no such file", InvalidInput)
    assert not (tmp_path / "evil").exists()


def test_verify_says_which_vectors_are_damaged(fitted: Path, tmp_path: Path) -> None:
    contents, n = read(fitted, mmap=False), 2 * BLOCK_ROWS + 5
    codes = LatticeQuantizer(24, 64).encode(np.random.default_rng(0).normal(size=(n, 24)).astype(np.float32))
    file = tmp_path / "b.catalyzer"
    write(file, replace(contents, ids=np.arange(n), codes=codes, last_id=n - 1))
    assert len(verify(file).ids) == n
    whole = file.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    entries = json.loads(whole[8:begin])
    for name, row, sentence in (("codes", n - 1, "vectors 131,072 to 131,076"), ("ids", 0, "vectors 0 to 65,535")):
        place = begin + entries[name]["data_offsets"][0] + 8 * row
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        read(file, mmap=True)
        for attempt in (lambda: verify(file), lambda: read(file, mmap=False)):
            with pytest.raises(DamagedFile, match=sentence):
                attempt()
    codes = codes.copy()
    codes[7] = 255
    write(file, replace(contents, ids=np.arange(n), codes=codes))
    with pytest.raises(DamagedFile, match="row 7 holds the code"):
        verify(file)
    write(file, replace(contents, ids=np.zeros(200, np.int64), codes=codes[8:208]))
    with pytest.raises(DamagedFile, match="an id occurs twice"):
        verify(file)


def test_a_file_that_cannot_be_written(path: Path, tmp_path: Path) -> None:
    index = CatalyzerIndex.load(path)
    (tmp_path / "folder.catalyzer" / "x").mkdir(parents=True)
    (tmp_path / "file").touch()
    for target in (tmp_path / "folder.catalyzer", tmp_path / "file/a.catalyzer"):
        with pytest.raises(Unavailable, match=f"{re.escape(str(target))} cannot be written .*; what was there is unchanged"):
            index.save(target)
    assert {file.name for file in tmp_path.iterdir()} == {"file", "folder.catalyzer"}
