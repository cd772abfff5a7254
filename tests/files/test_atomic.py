"""Writes are atomic, one process at a time holds a lock, and what is cached is computed once."""

import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from catalyzer.errors import InvalidInput, Unavailable
from catalyzer.files.array_cache import ArrayCache
from catalyzer.files.atomic import locked, write_atomically


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


def test_a_write_that_finds_no_room_names_the_file(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(Unavailable, match=r"a\.bin cannot be written \(File too large\); what was there is unchanged"):
            write_atomically(target, lambda file: file.write(bytes(2000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_takes_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"old")
    for target, reason in (
        ("folder", "Is a directory"),
        ("file/a.bin", "File exists"),
        ("file/b/a.bin", "Not a directory"),
    ):
        with pytest.raises(Unavailable, match=rf"{target} cannot be written \({reason}\)"):
            write_atomically(tmp_path / target, lambda file: file.write(b"new"))
    with pytest.raises(FileNotFoundError, match=r"input\.bin"):  # of what is read, not written
        write_atomically(tmp_path / "a.bin", lambda file: file.write((tmp_path / "input.bin").read_bytes()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a.bin", lambda file: file.write(b"x"))
    finally:
        os.umask(mask)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o640


@contextlib.contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lock of `path`."""
    code = (
        "import sys, time; from pathlib import Path; from catalyzer.files.atomic import locked\n"
        f"with locked(Path({str(path)!r})): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_lock_ends_with_the_process_that_held_it(tmp_path: Path) -> None:
    file = tmp_path / "a.catalyzer"
    refused = r"a\.catalyzer is being written by another process; wait until that has ended"
    with held(file), pytest.raises(Unavailable, match=refused), locked(file):
        pass
    for _ in range(2):
        with locked(file), locked(file):  # its holder may take it again
            pass
        with locked(file), ThreadPoolExecutor() as others, pytest.raises(Unavailable, match=refused):
            others.submit(locked(file).__enter__).result()
    assert not any(tmp_path.iterdir())


def _count(path: str) -> int:
    """Add one to the number in a file, as often as the lock is free in a hundred attempts."""
    done = 0
    for _ in range(100):
        with contextlib.suppress(Unavailable), locked(Path(path)):
            number = int(Path(path).read_text())
            time.sleep(0.001)
            Path(path).write_text(str(number + 1))
            done += 1
    return done


def test_only_one_process_at_a_time_holds_the_lock(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert sum(pool.map(_count, [str(counter)] * 3, chunksize=1)) == int(counter.read_text())
    assert [*tmp_path.iterdir()] == [counter]


def test_a_lock_needs_a_folder_to_write_to(tmp_path: Path) -> None:
    no_folder = r"a\.bin cannot be written: there is no folder .*no; make it first"
    with pytest.raises(InvalidInput, match=no_folder), locked(tmp_path / "no" / "a.bin"):
        pass
    folder = Path(tempfile.mkdtemp())  # other users cannot look into tmp_path
    folder.chmod(0o555)
    root = os.geteuid() == 0  # whom no folder refuses
    try:
        if root:
            os.seteuid(65534)
        denied = r"a\.bin cannot be written: .*a\.bin\.lock cannot be made \(Permission denied\)"
        with pytest.raises(Unavailable, match=denied), locked(folder / "a.bin"):
            pass
    finally:
        if root:
            os.seteuid(0)
        folder.rmdir()


def test_a_symbolic_link_stays_and_shares_the_lock_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "a.bin", tmp_path / "link.bin"
    link.symlink_to("disk/a.bin")
    for content in (b"first", b"second"):  # at first the link leads nowhere
        write_atomically(link, lambda file, content=content: file.write(content))
        assert link.is_symlink()
        assert target.read_bytes() == content
    for one, other in ((target, link), (link, target)):
        with held(one), pytest.raises(Unavailable, match=f"{other.name} is being written by another process"), locked(other):
            pass
    link.unlink()
    link.symlink_to(link)
    write_atomically(link, lambda file: file.write(b"a link to itself is no target"))
    assert not link.is_symlink()
