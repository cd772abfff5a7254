"""The fixtures that all tests share: a cache and a home of their own, small data, the commands, fitted indexes."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.helpers import DIM, Command, clustered, command

if TYPE_CHECKING:  # imported where it is used: the tests of commands wait for no torch
    from catalyzer import Codec

# Tests run side by side; threads of one would only wait for those of the other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray starts its workers with the least priority, so they would wait for all other tests.
os.environ.setdefault("RAY_worker_niceness", "0")


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


class Fixed(dict[str, str]):
    """An environment that tests share: what one of them added in place, all that follow would have too."""

    def __setitem__(self, key: str, value: str) -> None:
        raise TypeError("this environment is shared; make another: environment | {...}")

    def __ior__(self, other: Any) -> "Fixed":  # type: ignore[misc,override]
        raise TypeError("this environment is shared; make another: environment | {...}")


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a new user: no cache yet, no W&B account, no data folder."""
    # With PYTHONDONTWRITEBYTECODE each of a hundred processes would compile all modules again.
    left_out = ("WANDB", "CATALYZER", "HYDRA", "PYTHONDONTWRITEBYTECODE")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
    home = tmp_path_factory.mktemp("home")
    return Fixed(kept, HOME=str(home), CATALYZER_CACHE=str(home / "cache"), PYTHONUNBUFFERED="1", COLUMNS="120")


@pytest.fixture
def train(environment: dict[str, str], tmp_path: Path) -> Command:
    """`python src/train.py OVERRIDES` in an empty folder; `expect` is the exit code; see `command`."""
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
def codec() -> "Codec":
    """Small networks that learned vectors of `clustered` in 32 dimensions, in a second; not to be changed."""
    import torch

    from catalyzer import Catalyzer, Codec, Decoder, LatticeQuantizer

    torch.manual_seed(0)
    x = torch.from_numpy(clustered(1500, 32, 0)).float()
    transform, decoder = Catalyzer(32, 24, hidden=64).adapt(x.numpy()), Decoder(24, 32, hidden=64).adapt(x.numpy())
    quantizer = LatticeQuantizer(24, bits=64)
    layer = quantizer.straight_through()
    optimizer = torch.optim.AdamW([*transform.parameters(), *decoder.parameters()], lr=3e-3)
    for _ in range(300):
        batch = x[torch.randint(len(x), (128,))]
        loss = ((decoder(layer(transform(batch))) - batch) / decoder.scale).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    query = Catalyzer(32, 24, hidden=64)
    query.load_state_dict(transform.state_dict())
    query.layers[0].bias.data += 0.01  # nearly the same, so that both are seen to be used where they are to be
    return Codec(transform.eval(), quantizer, decoder.eval(), latent_share=0.2, query=query.eval())


@pytest.fixture(scope="session")
def fitted(codec: "Codec", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an index of `codec` that holds no vectors yet; not to be changed."""
    from catalyzer import CatalyzerIndex

    path = tmp_path_factory.mktemp("index") / "fitted.catalyzer"
    CatalyzerIndex.from_codec(codec).save(path)
    return path


@pytest.fixture(scope="session")
def listed(codec: "Codec", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with 20 lists."""
    from catalyzer.index.contents import Contents
    from catalyzer.index.file import write
    from catalyzer.index.lists import InvertedLists
    from catalyzer.metric import Metric

    path = tmp_path_factory.mktemp("index") / "listed.catalyzer"
    lists = InvertedLists.fit(codec, clustered(1500, 32, 0).astype(np.float32), 20)
    write(path, Contents(codec, Metric("l2"), np.empty(0, np.int64), np.empty((0, 8), np.uint8), lists=lists))
    return path
