"""What is cached is computed once, and a cache that cannot be used costs time and nothing else."""

import logging
import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np
import pytest

from catalyzer.errors import InvalidInput
from catalyzer.files.array_cache import ArrayCache
from tests.helpers import Command, only_run, refused, rows


def test_the_key_decides(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    one = cache.get("x", (1,), lambda: np.array([1]))
    two = cache.get("x", (2,), lambda: np.array([2]))
    again = ArrayCache(tmp_path).get("x", (1,), lambda: np.array([3]))
    assert (one, two, again) == ([1], [2], [1])


def _slow() -> np.ndarray:
    time.sleep(0.3)
    return np.arange(100_000)


def _get(folder: str) -> bool:
    return bool((ArrayCache(folder).get("x", (), _slow) == np.arange(100_000)).all())


def test_several_processes_computing_the_same_all_get_it_whole(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert all(pool.map(_get, [str(tmp_path)] * 6))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_damaged_file_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x = np.arange(1000)
    ArrayCache(tmp_path).get("x", (), lambda: x)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    cut, no_array, no_header = whole[:200], b"PK\x05\x06" + bytes(18), whole.replace(b"(1000,)", b"((1000,")
    for content in (cut, no_array, no_header, b"", b"\x80\x04N."):  # the last is a pickle
        file.write_bytes(content)
        np.testing.assert_array_equal(ArrayCache(tmp_path).get("x", (), lambda: x), x)
        assert file.read_bytes() == whole
    assert len(caplog.records) == 5
    assert all("cannot be read, so it is computed again (" in record.message for record in caplog.records)


def test_a_full_disk_is_a_warning(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache, x = ArrayCache(small_disk / "cache"), np.zeros(1 << 20)
    assert cache.get("x", (), lambda: x) is x
    assert cache.get("x", (), lambda: None) is x  # still there, as long as the cache lives
    assert cache.has("x", ())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "cannot be written (No space left on device)" in record.message
    assert not ArrayCache(small_disk / "cache").has("x", ())
    assert cache.get("y", (), lambda: np.arange(10)).sum() == 45  # which has room
    assert [path.name[:2] for path in (small_disk / "cache").iterdir()] == ["y-"]


def test_a_run_whose_cache_has_no_room(train: Command, own_files: list[str], small_disk: Path, tmp_path: Path) -> None:
    (small_disk / "full").write_bytes(bytes((1 << 20) - (32 << 10)))
    line = [*own_files, "catalyzer=pca", "baselines=[]"]
    run = train(*line, f"cache={small_disk}/cache")  # with room for nothing of a search's true neighbours
    assert run.stderr.count("cannot be written (No space left on device)") == 1, run.stderr
    assert "Traceback" not in run.stderr
    assert "PCA + lattice" in rows(only_run(tmp_path))
    refused(
        train(*line, f"cache={small_disk}/full", expect=2),
        f"{small_disk}/full cannot be a folder, since {small_disk}/full is a file; give another folder",
    )


def test_a_folder_that_takes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        for name in ("cache", "/proc/cache"):
            assert ArrayCache(tmp_path / name).get("x", (), lambda: np.arange(100)).sum() == 4950
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(caplog.records) == 2


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("file", "file/below"):
        with pytest.raises(InvalidInput, match=f"{folder} cannot be a folder, since .*file is a file; give another folder"):
            ArrayCache(tmp_path / folder)
