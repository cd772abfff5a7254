"""Runs of 256 bits, whose codes are products of spheres, with what was made for one sphere."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from catalyzer import Codec, InvalidInput, LatticeQuantizer, TrainedRun, knn, recall_at
from catalyzer.nn import Linear
from tests.helpers import FAST, Command, clustered, rows, settings_of

BASE, QUERIES = clustered(2000, 32, 1).astype(np.float32), clustered(200, 32, 2).astype(np.float32)
REFINED = ["decoder=mlp", "decoder.hidden=64", "rerank=100", "query=mlp", "refine=4"]


@pytest.mark.parametrize("overrides", [["end_to_end=true"], ["metric=ip"], REFINED], ids=lambda overrides: overrides[-1])
def test_a_run(overrides: list[str], train: Command, own_files: list[str], tmp_path: Path) -> None:
    train(*own_files, *FAST, "bits=256", "baselines=[]", *overrides, "hydra.run.dir=run")
    run, table = TrainedRun.load(tmp_path / "run"), rows(tmp_path / "run")
    codec, base = run.codec, run.metric.base(BASE)
    assert codec.transform.arguments["spheres"] == list(codec.quantizer.spheres) == [40] * 4
    codes, truth = run.encode(BASE), knn(run.metric.queries(QUERIES), base, 1)[1]
    assert codes.shape == (2000, 32)
    for rerank, row in zip([0, run.settings.rerank], table.values(), strict=False):
        found = recall_at(10, run.search(QUERIES, codes, 10, rerank)[1], truth)
        assert row["recall"]["10"] == pytest.approx(found)
        assert found > (0.3 if run.metric.name == "ip" else 0.7)
    if codec.refine > 1:
        nearest = replace(codec, refine=1).encode(base)
        assert ((codec.decode(codes) - base) ** 2).sum() < ((codec.decode(nearest) - base) ** 2).sum()


def test_other_settings_keep_what_a_run_has_chosen(tmp_path: Path) -> None:
    linear = ["catalyzer=linear", "decoder=linear", "rerank=0", "d_out=28"]
    settings = settings_of(*linear, "bits=108")
    codec = Codec(Linear(32, 28, gain=True).adapt(BASE), LatticeQuantizer(28, 108, gain=True))
    run = TrainedRun(tmp_path, settings, codec, 0.0)
    assert settings.quantizer["gain"] is None
    again = run.with_settings(settings.model_copy(update={"rerank": 50}), BASE)
    np.testing.assert_array_equal(again.encode(BASE[:50]), run.encode(BASE[:50]))
    smaller = run.with_settings(settings_of(*linear, "bits=64"), BASE).codec.quantizer
    assert (smaller.gain, smaller.code_size) == (True, 8)
    assert run.with_settings(settings_of(*linear, "bits=64", "quantizer.gain=false"), BASE).codec.quantizer.gain is None


def test_nested_blocks_are_those_of_the_run(tmp_path: Path) -> None:
    linear = ["catalyzer=linear", "decoder=linear", "rerank=0", "d_out=32", "catalyzer.nested=true"]
    settings = settings_of(*linear, "bits=128")
    codec = Codec(Linear(32, 32, nested=True, spheres=[16, 16]).adapt(BASE), LatticeQuantizer(32, 128))
    run = TrainedRun(tmp_path, settings, codec, 0.0)
    assert run.with_settings(settings.model_copy(update={"rerank": 50}), BASE).codec.quantizer is codec.quantizer
    with pytest.raises(InvalidInput, match="the blocks of a nested linear map are those of its own lattice"):
        run.with_settings(settings_of(*linear, "bits=64"), BASE)
    assert run.with_settings(settings_of(*linear, "quantizer=sign", "bits=32"), BASE).codec.quantizer.bits == 32
