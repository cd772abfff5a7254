"""The paper's tables and figures, one function each: from an output folder to the files written there."""

from collections.abc import Callable
from pathlib import Path

from catalyzer.reproduce.lattice_size import figure6

TARGETS: dict[str, Callable[[Path], list[Path]]] = {"figure6": figure6}
"""What `python src/reproduce.py` can make, by its name in the paper."""

__all__ = ["TARGETS", "figure6"]
