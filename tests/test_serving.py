"""docs/serving.md as typed, by a real server with two processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests

from catalyzer import CatalyzerIndex
from tests.helpers import blocks, clustered

QUERIES = clustered(40, 32, 2).astype(np.float32)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.parametrize("server", ["uvicorn", "gunicorn"])
def test_an_index_behind_a_server(server: str, fitted: Path, tmp_path: Path) -> None:
    (tmp_path / "serve.py").write_text(next(content for language, content in blocks("docs/serving.md") if language == "python"))
    line = next(line for _, content in blocks("docs/serving.md") for line in content.splitlines() if f" {server} serve" in line)
    port = free_port()
    command = line.replace("8000", str(port)).replace("--workers 4", "--workers 2").split()
    assert command[:2] == ["INDEX=photos.catalyzer", server]
    index = CatalyzerIndex.load(fitted)
    index.add(clustered(300, 32, 1))
    index.save(tmp_path / "photos.catalyzer")
    environment = os.environ | {"INDEX": "photos.catalyzer", "PYTHONPATH": str(tmp_path)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command[1:]],
            cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}/search"
        ask(url, QUERIES[0], process, tmp_path / "log")
        with ThreadPoolExecutor(8) as pool:
            answers = list(
                pool.map(lambda query: requests.post(url, json={"vector": query.tolist(), "k": 5}, timeout=60), QUERIES)
            )
        distances, ids = index.search(QUERIES, 5)
        for answer, d, i in zip(answers, distances, ids, strict=True):
            assert answer.json()["ids"] == i.tolist()
            np.testing.assert_array_equal(np.float32(answer.json()["distances"]), d)
        some = post(url, QUERIES[0], k=3, ids=[7, 8]).json()["ids"]
        assert {*some} == {7, 8, -1}
        wrong = post(url, np.ones(2))
        assert (wrong.status_code, wrong.json()["detail"]) == (
            422, "expected vectors of dimension 32, like the training vectors, got 2",
        )  # fmt: skip
        # Another file takes the place of this one, as after `catalyzer add`; every worker finds what is new.
        index.add(QUERIES, ids=range(1000, 1040))
        index.save(tmp_path / "photos.catalyzer")
        fresh = index.search(QUERIES, 5)[1]
        for _ in range(4):
            for query, i in zip(QUERIES[:5], fresh, strict=False):
                assert post(url, query, k=5).json()["ids"] == i.tolist()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def post(url: str, query: np.ndarray, **more: object) -> requests.Response:
    return requests.post(url, json={"vector": query.tolist(), **more}, timeout=60)


def ask(url: str, query: np.ndarray, process: subprocess.Popen, log: Path) -> None:
    """Wait until the server answers."""
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            if post(url, query).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.3)
    pytest.fail(log.read_text())
