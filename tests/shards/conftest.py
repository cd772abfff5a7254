"""A run with a decoder, made without training: what its networks do is of no account here, only that all do the same."""

from pathlib import Path

import numpy as np
import pytest
import torch

from catalyzer.commands.console import compose_config, register_resolvers, resolved
from catalyzer.nn import Catalyzer, Decoder, save_module
from catalyzer.runs.settings import Settings
from tests.conftest import ROOT, Command, clustered, command

DIM = 32


def make_run(folder: Path, *overrides: str, seed: int = 0) -> Path:
    """The folder of a run on `clustered` vectors, as `train.py OVERRIDES` would leave it but for the training."""
    register_resolvers()
    values = resolved(compose_config(ROOT / "conf", "train", ["catalyzer.hidden=64", *overrides]))
    del values["resume"]
    settings = Settings.check(values)
    settings.save(folder / "config.yaml")
    torch.manual_seed(seed)
    transform = Catalyzer(DIM, int(settings.d_out), 64)
    transform.fit(clustered(1000, DIM, 0))
    save_module(transform, folder, "catalyzer", 0.0)
    if settings.decoder.name == "mlp":
        decoder = Decoder(transform.d_out, DIM, 64)
        decoder.fit(transform)
        save_module(decoder, folder, "decoder", 0.0)
    return folder


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
