"""Shards against all at once, kills at any moment, folders that do not fit: on one machine."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from catalyzer import InvalidInput, TrainedRun, open_vectors
from catalyzer.scale import CodeShards, encode, local, search, write_neighbours
from catalyzer.vectors import EXTENSIONS
from tests.conftest import ROOT, Command, clustered
from tests.scale.conftest import DIM, make_run
from tests.test_commands import refused
from tests.test_vectors import write


def all_codes(folder: Path) -> np.ndarray:
    shards = CodeShards.open(folder)
    return np.concatenate([shards.read(number) for number in range(shards.count)])


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_format_is_encoded_as_all_at_once(extension: str, run: Path, tmp_path: Path) -> None:
    x = clustered(300, DIM, 1)
    x = x.astype({".fvecs": np.float32, ".fbin": np.float32, ".ivecs": np.int32}.get(extension, np.uint8))
    source = write(tmp_path / f"base{extension}", x // 2 if extension == ".i8bin" else x)
    encode(run, source, tmp_path / "codes", shard_size=128)
    np.testing.assert_array_equal(all_codes(tmp_path / "codes"), TrainedRun.load(run).encode(open_vectors(source)))
    assert sorted(path.name for path in (tmp_path / "codes").iterdir()) == [
        "000000.npy", "000001.npy", "000002.npy", "manifest.json",
    ]  # fmt: skip


@pytest.mark.parametrize("quantizer", ["lattice", "sign"])
@pytest.mark.parametrize("rerank", [0, 70])
@pytest.mark.parametrize("shard_size", [5000, 60, 128])
def test_shards_are_searched_as_all_at_once(
    quantizer: str, rerank: int, shard_size: int, base: np.ndarray, queries: np.ndarray, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", "decoder=mlp", "decoder.hidden=64", f"quantizer={quantizer}")
    np.save(tmp_path / "base.npy", base)
    np.save(tmp_path / "q.npy", queries)
    shards = encode(run, tmp_path / "base.npy", tmp_path / "codes", shard_size)
    distances, ids = search(shards, tmp_path / "q.npy", 30, rerank)
    expected = TrainedRun.load(run).search(queries, all_codes(tmp_path / "codes"), 30, rerank)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_array_equal(distances, expected[0])
    assert distances.dtype == np.float32
    assert ids.dtype == np.int64
