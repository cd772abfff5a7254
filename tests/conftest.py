"""The fixtures that all tests share: a cache and a home of their own, small data, the commands, fitted indexes."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import DIM, Command, clustered, command

# Tests run side by side; threads of one would only wait for those of the other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def own_files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small dataset in npy files, as the overrides that select it."""
    folder = tmp_path_factory.mktemp("vectors")
    overrides = ["dataset=files", "dataset.validation_base_size=1000", "dataset.validation_queries_size=200"]
    for seed, (part, n) in enumerate((("learn", 6000), ("base", 2000), ("queries", 200))):
        np.save(folder / f"{part}.npy", clustered(n, DIM, seed))
        overrides.append(f"dataset.{part}={folder / part}.npy")
    return overrides


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a new user: no cache yet, no W&B account, no data folder."""
    # With PYTHONDONTWRITEBYTECODE each of a hundred processes would compile all modules again.
    left_out = ("WANDB", "CATALYZER", "HYDRA", "PYTHONDONTWRITEBYTECODE")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
    home = tmp_path_factory.mktemp("home")
    return {**kept, "HOME": str(home), "CATALYZER_CACHE": str(home / "cache"), "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}


@pytest.fixture
def train(environment: dict[str, str], tmp_path: Path) -> Command:
    """`python src/train.py OVERRIDES` in an empty folder; `expect` is the exit code."""
    return command("train.py", environment, tmp_path)


@pytest.fixture
def evaluate(environment: dict[str, str], tmp_path: Path) -> Command:
    """The same for `src/evaluate.py`."""
    return command("evaluate.py", environment, tmp_path)


@pytest.fixture
def reproduce(environment: dict[str, str], tmp_path: Path) -> Command:
    """The same for `src/reproduce.py`."""
    return command("reproduce.py", environment, tmp_path)


@pytest.fixture
def prepare(environment: dict[str, str], tmp_path: Path) -> Command:
    """The same for `src/prepare.py`."""
    return command("prepare.py", environment, tmp_path)


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an index that holds no vectors yet, fitted to those of `clustered` in `DIM` dimensions; not to be changed."""
    from catalyzer import CatalyzerIndex

    path = tmp_path_factory.mktemp("index") / "fitted.catalyzer"
    CatalyzerIndex(d_out=24, hidden=64).fit(clustered(1500, DIM, 0), epochs=4).save(path)
    return path


@pytest.fixture(scope="session")
def listed(fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with 20 lists."""
    from dataclasses import replace

    from catalyzer.index.file import read, write
    from catalyzer.index.lists import InvertedLists

    path, contents = tmp_path_factory.mktemp("index") / "listed.catalyzer", read(fitted, mmap=False)
    lists = InvertedLists.fit(contents.codec, clustered(1500, DIM, 0).astype(np.float32), 20)
    write(path, replace(contents, lists=lists))
    return path
