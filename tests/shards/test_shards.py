"""Shards against all at once, kills at any moment, folders that do not fit: on one machine."""

import contextlib
import json
import os
import re
import resource
import runpy
import shutil
import signal
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from catalyzer import InvalidInput, TrainedRun, codec, open_vectors
from catalyzer.errors import DamagedFile, MissingPackage, Unavailable
from catalyzer.files.atomic import locked
from catalyzer.files.formats import EXTENSIONS
from catalyzer.runs.settings import Encode
from catalyzer.shards import CodeShards, RayEngine, encode, search, searching, write_neighbours
from tests.helpers import DIM, ROOT, Command, clustered, make_run, prepared, refused, write


def all_codes(folder: Path) -> np.ndarray:
    shards = CodeShards.open(folder)
    return np.concatenate([shards.read(number) for number in range(shards.count)])


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_format_is_encoded_as_all_at_once(extension: str, run: Path, tmp_path: Path) -> None:
    x = clustered(300, DIM, 1)
    x = x.astype({".fvecs": np.float32, ".fbin": np.float32, ".ivecs": np.int32}.get(extension, np.uint8))
    source = write(tmp_path / f"base{extension}", x // 2 if extension == ".i8bin" else x)
    encode(run, source, tmp_path / "codes", shard_size=128)
    np.testing.assert_array_equal(all_codes(tmp_path / "codes"), TrainedRun.load(run).encode(open_vectors(source)))
    assert sorted(path.name for path in (tmp_path / "codes").iterdir()) == [
        "000000.npy", "000001.npy", "000002.npy", "manifest.json",
    ]  # fmt: skip


@pytest.mark.parametrize(("quantizer", "rerank"), [("lattice", 0), ("lattice", 70), ("sign", 0), ("sign", 70), ("opq", 0)])
@pytest.mark.parametrize("shard_size", [5000, 60, 128])
def test_shards_are_searched_as_all_at_once(
    quantizer: str, rerank: int, shard_size: int, base: np.ndarray, queries: np.ndarray, tmp_path: Path
) -> None:
    decoder = ["decoder=mlp", "decoder.hidden=64"] if rerank else []
    run = make_run(tmp_path / "run", *decoder, f"quantizer={quantizer}")
    np.save(tmp_path / "base.npy", base)
    np.save(tmp_path / "q.npy", queries)
    shards = encode(run, tmp_path / "base.npy", tmp_path / "codes", shard_size)
    distances, ids = search(shards, tmp_path / "q.npy", 30, rerank)
    expected = TrainedRun.load(run).search(queries, all_codes(tmp_path / "codes"), 30, rerank)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_array_equal(distances, expected[0])
    assert distances.dtype == np.float32
    assert ids.dtype == np.int64


def test_more_queries_than_are_searched_together(
    codes: Path, run: Path, queries: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "PAIRS", 1000)
    monkeypatch.setattr(searching, "QUERIES_PER_MERGE", 7)
    monkeypatch.setattr(codec, "PAIRS", 1000)
    np.save(tmp_path / "q.npy", queries)
    expected = TrainedRun.load(run).search(queries, all_codes(codes), 10, 60)
    for found, at_once in zip(search(CodeShards.open(codes), tmp_path / "q.npy", 10, 60), expected, strict=True):
        np.testing.assert_array_equal(found, at_once)


def test_memory_does_not_grow_with_the_file(run: Path, queries: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", queries)
    peaks = []
    for n in (1_000, 4_000, 60_000):  # the first is for what is loaded once
        source = write(tmp_path / f"{n}.u8bin", clustered(n, DIM, 1))
        tracemalloc.start()
        shards = encode(run, source, tmp_path / str(n), shard_size=2_000)
        encoding = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        search(shards, tmp_path / "q.npy", 10, 50)
        peaks.append((encoding, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
    for few, many in zip(*peaks[1:], strict=True):
        assert many < 1.2 * few + 100_000  # the vectors are 2 MB, their codes 480 kB


def test_a_run_that_was_moved(run: Path, source: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shards = encode(tmp_path / "run", source, tmp_path / "codes")
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(InvalidInput, match="does not exist; give its folder with run=FOLDER"):
        search(shards, source, 10)
    np.testing.assert_array_equal(search(shards, source, 1, 0, tmp_path / "moved")[0], search(shards, source, 1, 0, run)[0])
    assert len(encode(tmp_path / "moved", source, tmp_path / "codes").manifest.shards) == 1


@pytest.fixture
def source(base: np.ndarray, tmp_path: Path) -> Path:
    return write(tmp_path / "base.u8bin", base)


@pytest.fixture
def codes(run: Path, source: Path, tmp_path: Path) -> Path:
    """A finished folder of 40 shards."""
    return encode(run, source, tmp_path / "codes", shard_size=128).folder


def test_a_kill_costs_a_shard_and_no_more(
    encode_command: Command, run: Path, source: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    arguments = [f"run={run}", f"input={source}", "shard_size=10", "output=codes"]
    codes = tmp_path / "codes"
    # Python tells of every renaming before it is done: that of shard 30 is when the process dies.
    kill = (
        "import os, signal, sys\n"
        "last = lambda event, args: event == 'os.rename' and str(args[1]).endswith('000030.npy')\n"
        "sys.addaudithook(lambda *event: last(*event) and os.kill(os.getpid(), signal.SIGKILL))"
    )
    assert prepared(kill, "encode.py", arguments, environment, tmp_path).returncode == -signal.SIGKILL
    named = CodeShards.open(codes).manifest.shards
    written = {path.name: path.stat().st_mtime_ns for path in codes.glob("[0-9]*.npy")}
    assert list(named) == list(range(30))
    assert len(written) == 30
    (codes / ".000400.npy.half").write_bytes(b"of a shard that a writer was killed at")

    assert f"codes: {500 - len(named)} of 500 shards to encode" in encode_command(*arguments).stderr
    for shard in named.values():
        assert (codes / shard.file).stat().st_mtime_ns == written[shard.file]
    assert {path.name for path in codes.iterdir()} == {f"{number:06d}.npy" for number in range(500)} | {"manifest.json"}
    expected = TrainedRun.load(run).encode(open_vectors(source))
    np.testing.assert_array_equal(all_codes(codes), expected)


@pytest.mark.parametrize(("file_format", "suffixes"), [("vecs", (".ivecs", ".fvecs")), ("npy", (".ids.npy", ".distances.npy"))])
def test_results_as_files(file_format: Literal["vecs", "npy"], suffixes: tuple[str, str], tmp_path: Path) -> None:
    found = (np.array([[0.0, 2.5]], np.float32), np.array([[7, 3]]))
    write_neighbours(tmp_path / "there" / "found.1", *found, file_format)
    for suffix, array in zip(suffixes, reversed(found), strict=True):
        np.testing.assert_array_equal(open_vectors(tmp_path / "there" / f"found.1{suffix}")[:], array)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("harm", "words"), [(damage, "does not match its checksum"), (Path.unlink, "is missing")])
def test_a_shard_that_is_not_whole_is_named_and_made_again(
    harm: Callable[[Path], None],
    words: str,
    codes: Path,
    run: Path,
    source: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = all_codes(codes)
    harm(codes / "000017.npy")
    np.save(tmp_path / "q.npy", clustered(3, DIM, 2))
    with pytest.raises(DamagedFile, match=rf"codes/000017\.npy {words}; repeat the src/encode.py command"):
        search(CodeShards.open(codes), tmp_path / "q.npy", 10)
    encode(run, source, codes, shard_size=128)
    assert re.search(rf"000017\.npy {words}", caplog.text)
    np.testing.assert_array_equal(all_codes(codes), whole)


def test_a_folder_of_something_else_is_left_alone(
    encode_command: Command, codes: Path, run: Path, source: Path, base: np.ndarray, tmp_path: Path
) -> None:
    other_run = make_run(tmp_path / "other", seed=1)
    steps = shutil.copytree(run, tmp_path / "steps") / "config.yaml"
    steps.write_text(steps.read_text().replace("steps: 2", "steps: 1"))
    other = write(tmp_path / "other.u8bin", base[:500])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photograph.jpg").touch()
    before = {path: path.stat().st_mtime_ns for path in codes.iterdir()}
    for arguments, words in (
        ((other_run, source, codes, 128), "holds codes of another run"),
        ((steps.parent, source, codes, 128), "holds codes of another run"),
        ((run, other, codes, 128), "holds codes of another input"),
        ((run, source, codes, 64), "holds shards of another size, shard_size=128"),
        ((run, source, tmp_path / "full", 128), "holds photograph.jpg, which src/encode.py did not make"),
        ((run, tmp_path / "none.u8bin", codes, 128), "none.u8bin: no such file"),
    ):
        with pytest.raises(InvalidInput, match=words):
            encode(*arguments)
    os.utime(source)
    refused(
        encode_command(f"run={run}", f"input={source}", "output=codes", "shard_size=128", expect=2),
        f"holds codes of another input, {source} of 160,008 bytes, changed ",
    )
    assert {path: path.stat().st_mtime_ns for path in codes.iterdir()} == before
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["photograph.jpg"]


def test_mistakes_of_a_search(codes: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", clustered(3, DIM, 2))
    np.save(tmp_path / "wide.npy", clustered(3, DIM + 1, 2))
    other_run, shards = make_run(tmp_path / "other", seed=1), CodeShards.open(codes)
    for arguments, words in (
        (("q.npy", 5001), "k must be an integer between 1 and 5,000, the number of codes; got 5,001"),
        (("wide.npy", 10), "expected vectors of dimension 32, as in the run; got 33"),
        (("q.npy", 10, None, other_run), "holds codes of another run than"),
    ):
        with pytest.raises(InvalidInput, match=words):
            search(shards, tmp_path / arguments[0], *arguments[1:])
    with pytest.raises(InvalidInput, match=r"nowhere has no manifest.json; expected a folder that src/encode.py made"):
        CodeShards.open(tmp_path / "nowhere")
    manifest = json.loads((codes / "manifest.json").read_text())
    for content, kind, words in (
        ({**manifest, "shards": {}}, InvalidInput, "is incomplete: 40 of its 40 shards are missing"),
        ({**manifest, "shards": {"0": manifest["shards"]["1"]}}, DamagedFile, "damaged (shard 0 contradicts the rest)"),
        ({**manifest, "rows": "many"}, DamagedFile, "manifest.json is damaged (rows: "),
        ({**manifest, "format": 2}, InvalidInput, "has format 2, but this version of catalyzer reads up to 1"),
        ({**manifest, "format": "1"}, DamagedFile, "manifest.json is damaged (format: "),
        ({}, DamagedFile, "manifest.json is damaged (format: "),
        ([], DamagedFile, "manifest.json is damaged (JSON: "),
    ):
        (codes / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(kind, match=re.escape(words)):
            CodeShards.open(codes).check_complete()
    (codes / "manifest.json").write_text("{")
    with pytest.raises(DamagedFile, match=r"manifest\.json is damaged \(JSON: "):
        CodeShards.open(codes)
    assert not [*tmp_path.glob("found*")]


def test_a_vector_that_is_none_stops_and_names_its_row(run: Path, tmp_path: Path) -> None:
    x = clustered(300, DIM, 1).astype(np.float32)
    x[200, 3] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(InvalidInput, match=r"x.npy: row 200 contains NaN"):
        encode(run, tmp_path / "x.npy", tmp_path / "codes", shard_size=100)
    assert [*CodeShards.open(tmp_path / "codes").manifest.shards] == [0, 1]
    with pytest.raises(InvalidInput, match="1 of its 3 shards are missing"):
        search(CodeShards.open(tmp_path / "codes"), tmp_path / "x.npy", 10)


def test_bad_days_of_the_command(
    run: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def encode_line(*arguments: str, room: int = resource.RLIM_INFINITY) -> str:
        """`python src/encode.py ARGUMENTS` in this process, on a disk that takes files of so many bytes."""
        monkeypatch.setattr(sys, "argv", ["encode.py", f"input={source}", "output=codes", *arguments])
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            with contextlib.suppress(SystemExit):
                runpy.run_path(str(ROOT / "src" / "encode.py"), run_name="__main__")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return capsys.readouterr().err

    (tmp_path / "photographs").mkdir()
    for folder in ("nowhere", "photographs"):
        error = encode_line(f"run={folder}")
        assert error == f"error: {tmp_path / folder} is not a run folder: it has no config.yaml\n"
    assert not (tmp_path / "codes").exists()

    error = encode_line(f"run={run}", room=20_000)  # of the 40,128 bytes that a shard of all takes
    assert re.search(r"^error: .*codes/000000.npy cannot be written \(File too large\); what was there is", error, re.MULTILINE)
    assert [path.name for path in (tmp_path / "codes").iterdir()] == ["manifest.json"]
    encode_line(f"run={run}")
    np.testing.assert_array_equal(all_codes(tmp_path / "codes"), TrainedRun.load(run).encode(open_vectors(source)))


def test_two_at_once_are_one_too_many(codes: Path, run: Path, source: Path) -> None:
    refused = pytest.raises(Unavailable, match="is being written by another process")
    with locked(codes / "manifest.json"), ThreadPoolExecutor() as others, refused:
        others.submit(encode, run, source, codes, shard_size=128).result()


def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackage, match=r'engine=ray needs Ray: pip install "catalyzer\[ray\]"'):
        dict(RayEngine()(abs, [-1]))


def test_an_address_is_that_of_ray() -> None:
    values = {"run": "r", "input": "i", "output": "o", "shard_size": 1, "trust": [], "engine": "local", "address": "auto"}
    with pytest.raises(InvalidInput, match="address=auto is for a Ray cluster; add engine=ray"):
        Encode.check(values)
