"""Writes are atomic, files keep what belongs to them, and one process at a time holds a lock."""

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from catalyzer import CatalyzerIndex
from catalyzer.commands.cli import main
from catalyzer.errors import InvalidInput, Unavailable
from catalyzer.files.atomic import locked, write_atomically
from catalyzer.files.vectors import write_npy
from tests.helpers import DIM, clustered


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


def test_a_killed_writer_leaves_the_old_file_and_nothing_that_stays(tmp_path: Path) -> None:
    target = tmp_path / "a[1].bin"
    target.write_bytes(b"old")
    code = (
        "import sys, time; from pathlib import Path; from catalyzer.files.atomic import write_atomically\n"
        "def write(file): file.write(b'x' * 1_000_000); file.flush(); print('writing', flush=True); time.sleep(60)\n"
        f"write_atomically(Path({str(target)!r}), write)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    write_atomically(target, lambda file: file.write(b"of another"))
    assert len([*tmp_path.iterdir()]) == 2  # what a living process is at stays
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert target.read_bytes() == b"of another"
    bystanders = [tmp_path / name for name in (f".a[1].bin.{'g' * 16}", f".a1.bin.{'0' * 16}", f".b.bin.{'0' * 16}")]
    for path in bystanders:
        path.write_bytes(b"not of a writer of this file")
    write_atomically(target, lambda file: file.write(b"new"))
    assert sorted(tmp_path.iterdir()) == sorted([target, *bystanders])


def _write_often(path: str) -> None:
    content = os.urandom(1000)
    for _ in range(200):
        write_atomically(Path(path), lambda file: file.write(content * 3))


def test_writers_of_one_file_leave_each_other_alone(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.map(_write_often, [str(target)] * 3, chunksize=1)
    assert target.read_bytes()[:1000] * 3 == target.read_bytes()
    assert [*tmp_path.iterdir()] == [target]


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


def test_a_file_keeps_its_mode_and_owner_and_a_new_one_has_that_of_the_umask(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    seen = []

    def write(file: BinaryIO) -> None:
        seen.append(os.fstat(file.fileno()).st_mode & 0o777)  # before anybody could have read a word
        file.write(b"x")

    mask = os.umask(0o027)
    try:
        write_atomically(target, write)
        for mode in (0o600, 0o664, 0o640):
            target.chmod(mode)
            write_atomically(target, write)
            assert target.stat().st_mode & 0o777 == mode
        if os.geteuid() == 0:
            os.chown(target, 65534, 65533)
            write_atomically(target, write)
            assert (target.stat().st_uid, target.stat().st_gid) == (65534, 65533)
    finally:
        os.umask(mask)
    assert seen[:4] == [0o640, 0o600, 0o664, 0o640]


def test_what_may_not_be_written_is_not_replaced() -> None:
    folder = Path(tempfile.mkdtemp())  # other users cannot look into tmp_path
    target = folder / "a.bin"
    target.write_bytes(b"old")
    target.chmod(0o444)
    folder.chmod(0o777)
    with someone_else(), pytest.raises(Unavailable, match=r"a\.bin cannot be written \(Permission denied\)"):
        write_atomically(target, lambda file: file.write(b"new"))
    assert target.read_bytes() == b"old"
    os.mkfifo(folder / "pipe")
    for path in (folder / "pipe", Path(os.devnull)):
        with pytest.raises(Unavailable, match=rf"{path.name} cannot be written \(it is a device or a pipe\)"):
            write_atomically(path, lambda file: file.write(b"new"))
    assert {path.name for path in folder.iterdir()} == {"a.bin", "pipe"}
    shutil.rmtree(folder)


@contextlib.contextmanager
def someone_else() -> Iterator[None]:
    """Where root runs the tests, whom no file refuses: be nobody."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


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
    refused = r"a\.catalyzer is being written by another process; wait until it has ended"
    with held(file), pytest.raises(Unavailable, match=refused), locked(file):
        pass
    assert (tmp_path / "a.catalyzer.lock").exists()  # of the process, which has been killed
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
    no_folder = r"a\.bin cannot be written: there is no folder .*no; create it first"
    with pytest.raises(InvalidInput, match=no_folder), locked(tmp_path / "no" / "a.bin"):
        pass
    folder = Path(tempfile.mkdtemp())  # other users cannot look into tmp_path
    folder.chmod(0o555)
    denied = r"a\.bin cannot be written: .*a\.bin\.lock cannot be created \(Permission denied\)"
    with someone_else(), pytest.raises(Unavailable, match=denied), locked(folder / "a.bin"):
        pass
    folder.rmdir()
    if sys.platform == "linux":  # whose /proc takes no file, for anybody
        denied = r"/proc/a\.bin cannot be written: /proc/a\.bin\.lock cannot be created"
        with pytest.raises(Unavailable, match=denied), locked(Path("/proc/a.bin")):
            pass


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
    with pytest.raises(Unavailable, match=r"link\.bin cannot be written \(Too many levels of symbolic links\)"):
        write_atomically(link, lambda file: file.write(b"a link to itself has no target"))
    assert link.is_symlink()


def test_adding_by_any_name_of_an_index(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    shutil.copy(fitted, tmp_path / "disk/a.catalyzer")
    (tmp_path / "disk/a.catalyzer").chmod(0o640)
    np.save(tmp_path / "base.npy", clustered(10, DIM, 1))
    for name, target in (
        ("disk/beside", "a.catalyzer"),
        ("relative", "disk/a.catalyzer"),
        ("absolute", tmp_path / "disk/a.catalyzer"),
        ("link-to-link", "relative"),
        ("disk/up", "../link-to-link"),
        ("folder", "disk"),
        ("dangling", "disk/missing"),
    ):
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path / "disk")  # so that no name is relative to the right folder by chance
    names = [
        "up",
        "../relative",
        "../absolute",
        "../link-to-link",
        "beside",
        "../folder/beside",
        "../disk/../folder/a.catalyzer",
    ]
    for count, name in enumerate(names, 1):
        main(["add", name, "../base.npy"])
        assert CatalyzerIndex.load("a.catalyzer").ntotal == 10 * count
    assert all(path.is_symlink() for path in map(Path, names[:-2]))
    assert Path("a.catalyzer").stat().st_mode & 0o777 == 0o640
    for one, other in ((Path("a.catalyzer"), "../link-to-link"), (Path("up"), "a.catalyzer"), (Path("../relative"), "beside")):
        with held(one), pytest.raises(SystemExit, match="2"):
            main(["add", other, "../base.npy"])
    with pytest.raises(SystemExit, match="2"):
        main(["add", "../dangling", "../base.npy"])
    assert not Path("missing").exists()
    CatalyzerIndex.load("a.catalyzer").save("../dangling")  # makes what a dangling link leads to
    assert Path("missing").read_bytes() == Path("a.catalyzer").read_bytes()

    before = Path("a.catalyzer").read_bytes()
    os.link("a.catalyzer", "hard")
    main(["add", "hard", "../base.npy"])
    assert Path("a.catalyzer").read_bytes() == before  # a hard link is a copy from then on
    assert CatalyzerIndex.load("hard").ntotal == 10 * len(names) + 10


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    target = small_disk / "a.bin"
    write_atomically(target, lambda file: file.write(b"old"))
    full = r"a\.(bin|npy) cannot be written \(No space left on device\); what was there is unchanged"
    with pytest.raises(Unavailable, match=full):
        write_atomically(target, lambda file: file.write(bytes(2 << 20)))
    with pytest.raises(Unavailable, match=full):
        write_npy(small_disk / "a.npy", np.zeros(2 << 20))
    assert [*small_disk.iterdir()] == [target]
    assert target.read_bytes() == b"old"
    write_atomically(target, lambda file: file.write(b"new"))  # there is room again
    assert target.read_bytes() == b"new"
