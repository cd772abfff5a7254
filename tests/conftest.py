"""What the tests share: made vectors, a cache of their own, and the commands run as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest

if TYPE_CHECKING:  # imported where it is used: the tests of commands wait for no torch
    from catalyzer import Codec

ROOT = Path(__file__).parent.parent

# Tests run side by side; threads of one would only wait for those of the other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def clustered(n: int, dim: int, seed: int) -> np.ndarray:
    """Vectors that have neighbours: points around a few hundred centres that all seeds share; uint8."""
    centres = np.random.default_rng(99).normal(128, 40, (300, dim))
    random = np.random.default_rng(seed)
    return (centres[random.integers(300, size=n)] + random.normal(0, 15, (n, dim))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def own_files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small dataset in npy files, as the overrides that select it."""
    folder = tmp_path_factory.mktemp("vectors")
    overrides = ["dataset=files", "dataset.validation_base_size=1000", "dataset.validation_queries_size=200"]
    for seed, (part, n) in enumerate((("learn", 6000), ("base", 2000), ("queries", 200))):
        np.save(folder / f"{part}.npy", clustered(n, 32, seed))
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


Command = Callable[..., subprocess.CompletedProcess[str]]


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


def command(script: str, environment: dict[str, str], folder: Path) -> Command:
    """`python src/SCRIPT OVERRIDES` in `folder`.

    The first call for a script starts Python as it is typed, the others fork from a process that has imported already.
    """

    def run(*overrides: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        arguments = [str(ROOT / "src" / script), *overrides]
        if script in TYPED:
            process = Forking.started(environment).run(arguments, folder, environment)
        else:
            TYPED.add(script)
            process = subprocess.run(
                [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
        assert process.returncode == expect, process.stdout + process.stderr
        return process

    return run


TYPED: set[str] = set()
"""Scripts that have been run as they are typed."""


class Forking:
    """The process of tests/forking.py, which forks those of commands."""

    latest: ClassVar["Forking | None"] = None

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "forking.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            start_new_session=True,
        )

    @classmethod
    def started(cls, environment: dict[str, str]) -> "Forking":
        """The one of this session, which ends with it."""
        if cls.latest is None:
            cls.latest = Forking(environment)
        return cls.latest

    def run(self, arguments: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with tempfile.TemporaryDirectory() as printed:
            out, err = Path(printed, "out"), Path(printed, "err")
            asked = {"argv": arguments, "cwd": str(folder), "env": environment, "out": str(out), "err": str(err)}
            try:
                self.process.stdin.write(json.dumps(asked) + "\n")
                self.process.stdin.flush()
                code = int(self.process.stdout.readline())
            except BaseException:  # the time limit of a test, for one: what hangs is not to outlive it
                os.killpg(self.process.pid, signal.SIGKILL)
                Forking.latest = None
                raise
            return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


FAST = ["catalyzer.hidden=64", "trainer.max_epochs=2", "batch_size=64"]
"""Overrides that make a training on `own_files` a matter of seconds."""


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
    from catalyzer.index.metric import Metric

    path = tmp_path_factory.mktemp("index") / "listed.catalyzer"
    lists = InvertedLists.fit(codec, clustered(1500, 32, 0).astype(np.float32), 20)
    write(path, Contents(codec, Metric("l2"), np.empty(0, np.int64), np.empty((0, 8), np.uint8), lists=lists))
    return path
