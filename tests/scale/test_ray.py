"""The same two jobs over a real Ray of two workers, one of which is killed in the middle."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from catalyzer import scale
from catalyzer.scale import CodeShards
from tests.conftest import ROOT, clustered, command
from tests.scale.conftest import DIM
from tests.test_vectors import write

if not Path("/proc").is_dir():
    pytest.skip("workers are found in /proc", allow_module_level=True)


@pytest.fixture(scope="module")
def ray_environment(environment: dict[str, str]) -> dict[str, str]:
    return {**environment, "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def cluster(ray_environment: dict[str, str]) -> Iterator[tuple[str, int]]:
    """A cluster of two workers: its address, and the process that all of its own descend from."""
    folder = tempfile.mkdtemp(prefix="ray")  # the path of a socket in it has to be short
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        f"--port={port}",
        "--include-dashboard=false",
        f"--temp-dir={folder}",
    ]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), *arguments, "--node-ip-address=127.0.0.1"],
        env=ray_environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    yield f"127.0.0.1:{port}", process.pid
    process.terminate()
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0


def at_work(ancestor: int) -> list[int]:
    """The workers of the cluster that have a shard in work."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            working = path.read_bytes().startswith(b"ray::shard")
        except (FileNotFoundError, ProcessLookupError):
            continue
        pid = above = int(path.parent.name)
        while working and above > 1 and above != ancestor:
            above = parent(above)
        if working and above == ancestor:
            found.append(pid)
    return found


def test_a_killed_worker_costs_time_only(
    run: Path, cluster: tuple[str, int], ray_environment: dict[str, str], base: np.ndarray, tmp_path: Path
) -> None:
    address, ancestor = cluster
    source = write(tmp_path / "base.u8bin", base)
    write(tmp_path / "q.fvecs", clustered(40, DIM, 2).astype(np.float32))
    arguments = [f"run={run}", "input=base.u8bin", "output=codes", "shard_size=20", "engine=ray", f"address={address}"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "src" / "encode.py"), *arguments],
        cwd=tmp_path, env=ray_environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    victims: list[int] = []
    while not victims:
        assert process.poll() is None, process.communicate()
        if (tmp_path / "codes" / "manifest.json").exists() and len(CodeShards.open(tmp_path / "codes").manifest.shards) > 5:
            victims = at_work(ancestor)
    os.kill(victims[0], signal.SIGKILL)
    made = len(CodeShards.open(tmp_path / "codes").manifest.shards)
    assert process.wait() == 0, process.communicate()
    assert made < 250

    here = scale.encode(run, source, tmp_path / "here", shard_size=20)
    there = CodeShards.open(tmp_path / "codes")
    assert there.manifest == here.manifest  # and with it all checksums
    assert {path.name for path in there.folder.iterdir()} == {path.name for path in here.folder.iterdir()}

    search = command("search.py", ray_environment, tmp_path)
    search("codes=codes", "queries=q.fvecs", "k=10", "output=found", "engine=ray", f"address={address}")
    scale.write_neighbours(tmp_path / "expected", *scale.search(here, tmp_path / "q.fvecs", 10), "vecs")
    for suffix in (".ivecs", ".fvecs"):
        assert (tmp_path / f"found{suffix}").read_bytes() == (tmp_path / f"expected{suffix}").read_bytes()

    # What is wrong in a worker is said as if it had been wrong here.
    (there.folder / "000003.npy").unlink()
    process_ = search("codes=codes", "queries=q.fvecs", "output=x", "engine=ray", f"address={address}", expect=2)
    assert f"error: {there.folder}/000003.npy is missing; src/encode.py, started as before, makes it again\n" in process_.stderr
    assert "Traceback" not in process_.stderr
