"""A run with a decoder, made without training: what its networks do is of no account here, only that all do the same."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers import DIM, Command, clustered, command, make_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a decoder and the lattice; reranks 50."""
    return make_run(tmp_path_factory.mktemp("run"), "decoder=mlp", "decoder.hidden=64", "rerank=50")


@pytest.fixture(scope="session")
def base() -> np.ndarray:
    """`(5000, 32)` uint8, some of them twice, so that there are ties between shards."""
    x = clustered(5000, DIM, 1)
    x[4000:4100] = x[:100]
    return x


@pytest.fixture(scope="session")
def queries() -> np.ndarray:
    return clustered(40, DIM, 2)


@pytest.fixture
def encode_command(environment: dict[str, str], tmp_path: Path) -> Command:
    """`python src/encode.py OVERRIDES` in an empty folder."""
    return command("encode.py", environment, tmp_path)
