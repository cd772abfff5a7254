"""The stress program of benchmarks/ finds nothing in a few rounds that are the same each time."""

import subprocess
import sys

import pytest

from tests.helpers import ROOT


@pytest.mark.skipif(sys.platform == "win32", reason="it kills and holds processes by POSIX's signals")
def test_processes_that_are_killed_lose_nothing() -> None:
    arguments = [sys.executable, str(ROOT / "benchmarks/chaos.py"), "--operations", "30", "--processes", "2"]
    process = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.endswith("differences: 0\n")
