"""The benchmark of a GPU runs without one as a dry run, says what fails in its row, and goes on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import ROOT, Finished, clustered


def gpu(*arguments: str) -> Finished:
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


@pytest.mark.timeout(900)  # half a minute of a processor in five processes, which a busy machine shares out
def test_a_dry_run_on_the_cpu(tmp_path: Path) -> None:
    steps = ["mining", "epoch", "step", "scan"]  # codes are below
    # Minutes are for a machine that is busy; what is left out would have a row that says so.
    process = gpu("--cpu-only", "--size", "3000", "--minutes", "60", "--json", str(tmp_path / "gpu.json"), "--only", *steps)
    assert process.returncode == 0, process.stderr
    found = rows(tmp_path / "gpu.json")
    assert {row["step"] for row in found} == {*steps}
    assert all(row["seconds"] > 0 and row["device"] == "cpu" and row["host_gib"] > 0 for row in found), found
    assert "3,000 made-up vectors" in process.stdout
    table = [line for line in process.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(found)
    assert len({line.count("|") for line in table}) == 1


def test_a_step_that_fails_says_so_and_the_others_go_on(tmp_path: Path) -> None:
    np.save(tmp_path / "learn.npy", clustered(200, 16, 0))
    out = ["--json", str(tmp_path / "gpu.json"), "--minutes", "60"]
    process = gpu("--cpu-only", "--data", str(tmp_path / "learn.npy"), *out, "--only", "epoch", "codes")
    assert process.returncode == 0, process.stderr
    (failed,) = (row for row in rows(tmp_path / "gpu.json") if row["step"] == "epoch")
    assert failed["seconds"] is None
    assert failed["note"].startswith("failed: InvalidInput: 200 training vectors are too few")
    codes = [row for row in rows(tmp_path / "gpu.json") if row["step"] == "codes"]
    assert [row["count"] for row in codes if row["seconds"]] == [400, 400]


def test_without_time_every_step_is_left_out(tmp_path: Path) -> None:
    process = gpu("--cpu-only", "--size", "100", "--minutes", "0", "--json", str(tmp_path / "gpu.json"))
    assert process.returncode == 0, process.stderr
    assert {row["note"] for row in rows(tmp_path / "gpu.json")} == {"left out: the time is over"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so() -> None:
    process = gpu()
    assert process.returncode == 1
    assert process.stderr == f"torch {torch.__version__} sees no GPU; --cpu-only --size 4000 is a dry run without one\n"
