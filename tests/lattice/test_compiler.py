"""Compiled loops are kept between processes, and never outlive the sources that they were compiled from."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT

DECODED = """
import numpy as np
from catalyzer import SphericalLattice
from catalyzer.scan.kernels import decode_columns

lattice, columns = SphericalLattice(2, 1), np.zeros((2, 4), np.float32)
decode_columns(np.arange(4, dtype=np.uint64), np.zeros(0, np.uint64), lattice.tables, columns, 0)
print(columns.tolist(), sum(decode_columns.on_one_thread.stats.cache_hits.values()))
"""


def decoded(package: Path) -> str:
    """The four points of a tiny lattice by a loop of the scan, and how many loops came from the cache."""
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    environment |= {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", DECODED], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_loop_is_compiled_anew_when_what_it_calls_in_another_module_has_changed(tmp_path: Path) -> None:
    package = tmp_path / "catalyzer"
    shutil.copytree(ROOT / "src" / "catalyzer", package, ignore=shutil.ignore_patterns("__pycache__"))
    points = "[[-1.0, 0.0, 0.0, 1.0], [0.0, -1.0, 1.0, 0.0]]"
    assert decoded(package) == f"{points} 0"
    assert decoded(package) == f"{points} 1"

    called = package / "lattice" / "kernels.py"
    source, stat = called.read_text(), called.stat()
    changed = source.replace("packed[i, leaves - U(1)] = tables", "packed[i, leaves - U(1)] = ~tables")
    assert changed != source
    called.write_text(changed)
    os.utime(called, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert decoded(package) == "[[0.0, -1.0, -1.0, -2.0], [-1.0, 0.0, -2.0, -1.0]] 0"

    called.write_text(source)
    os.utime(called, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert decoded(package) == f"{points} 1"
