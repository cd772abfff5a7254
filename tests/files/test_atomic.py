"""Files are whole or not there; what is cached is computed once."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from catalyzer.files.array_cache import ArrayCache
from catalyzer.files.atomic import locked, write_atomically
from catalyzer.errors import InvalidInput


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def fail(file) -> None:
        file.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, fail)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    code = (
        "import sys, time; from pathlib import Path; from catalyzer.files.atomic import write_atomically\n"
        "def write(file): file.write(b'x' * 1_000_000); file.flush(); print('writing', flush=True); time.sleep(60)\n"
        f"write_atomically(Path({str(target)!r}), write)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert target.read_bytes() == b"old"


def test_the_key_decides(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    one = cache.get("x", (1,), lambda: np.array([1]))
    two = cache.get("x", (2,), lambda: np.array([2]))
    again = ArrayCache(tmp_path).get("x", (1,), lambda: np.array([3]))
    assert (one, two, again) == ([1], [2], [1])


def test_a_damaged_file_is_computed_again(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    cache.get("x", (), lambda: np.arange(1000))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:200])
    np.testing.assert_array_equal(cache.get("x", (), lambda: np.arange(1000)), np.arange(1000))
    np.testing.assert_array_equal(np.load(file), np.arange(1000))


def _slow() -> np.ndarray:
    time.sleep(0.3)
    return np.arange(100_000)


def _get(folder: str) -> bool:
    return bool((ArrayCache(folder).get("x", (), _slow) == np.arange(100_000)).all())


def test_several_processes_computing_the_same_all_get_it_whole(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert all(pool.map(_get, [str(tmp_path)] * 6))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_lock_ends_with_who_held_it(tmp_path: Path) -> None:
    file = tmp_path / "a.catalyzer"
    code = (
        "import sys, time; from pathlib import Path; from catalyzer.files.atomic import locked\n"
        f"with locked(Path({str(file)!r})): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with (
        pytest.raises(InvalidInput, match=f"is being written by process {process.pid} on .*; wait until that has ended"),
        locked(file),
    ):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(2):
        with locked(file):
            assert (tmp_path / "a.catalyzer.lock").read_text().startswith(f"process {os.getpid()} on ")
    assert not any(tmp_path.iterdir())
    with pytest.raises(InvalidInput, match="No such file or directory"), locked(tmp_path / "no" / "a.catalyzer"):
        pass
