"""The same two jobs over a real Ray of two workers, one of which is killed in the middle."""

import os
import runpy
import shlex
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
import ray

from catalyzer import shards
from catalyzer.errors import DamagedFile, Unavailable
from catalyzer.files.vectors import open_vectors
from catalyzer.shards import CodeShards
from tests.helpers import DIM, ROOT, blocks, clustered, serving, write
from tests.helpers import u8bin as binary

if not Path("/proc").is_dir():
    pytest.skip("workers are found in /proc", allow_module_level=True)


@pytest.fixture(scope="module")
def ray_environment(environment: dict[str, str]) -> dict[str, str]:
    # Where another test left a token in this home, a cluster would ask for it, and Ray does not send it unless told to.
    return {**environment, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


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
        env={**ray_environment, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    # Its port accepts connections earlier, but who joins then may be told that there is no cluster.
    assert any("Ray runtime started" in line for line in process.stdout), "Ray did not start"
    yield f"127.0.0.1:{port}", process.pid
    ray.shutdown()  # of this process, which has joined it
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


def test_a_cluster_that_cannot_be_joined() -> None:
    with pytest.raises(Unavailable, match="address=nowhere: no Ray cluster can be reached there"):
        dict(shards.RayEngine("nowhere")(abs, [-1]))


def test_a_killed_worker_costs_time_only(
    run: Path, cluster: tuple[str, int], ray_environment: dict[str, str], base: np.ndarray, tmp_path: Path
) -> None:
    address, ancestor = cluster
    source = write(tmp_path / "base.u8bin", base)
    write(tmp_path / "q.fvecs", clustered(40, DIM, 2).astype(np.float32))
    arguments = [f"run={run}", "input=base.u8bin", "output=codes", "shard_size=40", "engine=ray", f"address={address}"]
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
    assert made < 125

    here = shards.encode(run, source, tmp_path / "here", shard_size=40)
    there = CodeShards.open(tmp_path / "codes")
    assert there.manifest == here.manifest  # and with it all checksums
    assert {path.name for path in there.folder.iterdir()} == {path.name for path in here.folder.iterdir()}

    engine, q = shards.RayEngine(address), tmp_path / "q.fvecs"
    for rerank in (0, 50):
        expected = shards.search(here, q, 10, rerank)
        for found, as_here in zip(shards.search(there, q, 10, rerank, engine=engine), expected, strict=True):
            np.testing.assert_array_equal(found, as_here)

    # What is wrong in a worker is said as if it had been wrong here.
    (there.folder / "000003.npy").unlink()
    with pytest.raises(DamagedFile, match=r"codes/000003.npy is missing; repeat the src/encode.py command"):
        shards.search(there, q, 10, engine=engine)


def page_commands(kind: str) -> list[str]:
    return [line for language, content in blocks("docs/shards.md") if language == kind for line in content.splitlines()]


def test_the_page_does_what_it_says(
    run: Path, cluster: tuple[str, int], base: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command of docs/shards.md, in its order, on tiny files and with a server of our own."""
    ray.shutdown()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("CATALYZER_DATA", str(tmp_path / "data"))
    Path("DIR").mkdir()
    Path("outputs").mkdir()
    Path("outputs/RUN").symlink_to(run)
    write(tmp_path / "base.u8bin", base)
    write(tmp_path / "q.fvecs", clustered(40, DIM, 2).astype(np.float32))
    results = []
    with serving() as server:
        for dtype, (learn, base_, queries) in {
            np.uint8: ("learn.100M.u8bin", "base.1B.u8bin", "query.public.10K.u8bin"),
            np.float32: ("learn.350M.fbin", "base.1B.fbin", "query.public.10K.fbin"),
        }.items():
            for name, n in ((learn, 2000), (base_, 1500), (queries, 20)):
                server.files[name] = binary(clustered(n, DIM, 3).astype(dtype))
        tiny = ["dataset.base_size=1_000", "dataset.train_size=1000", f"source={server.url}"]
        tiny += ["dataset.validation_base_size=500", "dataset.validation_queries_size=100"]
        for line in page_commands(""):
            python, script, *arguments = shlex.split(line.replace("HOST:6379", cluster[0]))
            assert python == "python"
            if script == "src/prepare.py":
                arguments += tiny
            elif script == "src/encode.py":
                shutil.rmtree("codes", ignore_errors=True)  # else Ray would find all done
            elif script == "benchmarks/shards.py":
                arguments += ["--n", "3000", "--queries", "20"]
            monkeypatch.setattr(sys, "argv", [script, *arguments])
            runpy.run_path(str(ROOT / script), run_name="__main__")
            if ray.is_initialized() and "address" in line:
                ray.shutdown()
            if script == "src/search.py" and "rerank=500" in line:
                results.append(Path("found.ivecs").read_bytes() + Path("found.fvecs").read_bytes())
    assert len(results) == 2
    assert results[0] == results[1]  # of both engines
    assert len(open_vectors("data/bigann/bigann_base.bvecs")) == 1000
    assert len(open_vectors("data/deep1b/base.fvecs")) == 1000
    names: dict[str, np.ndarray] = {}
    exec("\n".join(page_commands("python")), names)
    np.testing.assert_array_equal(names["I"], open_vectors("found.ivecs")[:])
