"""Runs by cosine and by inner product, by the real commands: trained, evaluated, encoded, searched, resumed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from catalyzer import InvalidInput, TrainedRun, open_vectors, recall_at
from catalyzer.errors import DamagedFile
from catalyzer.index.recipe import learn_codec
from catalyzer.metric import Metric, norms
from catalyzer.shards import CodeShards
from tests.datasets.test_annbenchmarks import ann_file
from tests.datasets.test_metrics import best
from tests.helpers import DIM, FAST, Command, clustered, command, make_run, only_run, refused, rows

SIZES = ["dataset=files", "dataset.validation_base_size=1000", "dataset.validation_queries_size=200"]
PARTS = (("learn", 6000), ("base", 2000), ("queries", 200))


def vectors(n: int, seed: int) -> np.ndarray:
    """Clusters around the origin, each vector of a length of its own, so that the metrics disagree."""
    lengths = np.random.default_rng(seed).uniform(0.5, 2, (n, 1))
    return ((clustered(n, DIM, seed).astype(np.float32) - 128) * lengths).astype(np.float32)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    for seed, (part, n) in enumerate(PARTS):
        np.save(folder / f"{part}.npy", vectors(n, seed))
    return folder


def dataset(folder: Path) -> list[str]:
    return [*SIZES, *(f"dataset.{part}={folder / part}.npy" for part, _ in PARTS)]


@pytest.fixture(scope="module", params=["cosine", "ip"])
def trained_once(
    given: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    small = [*FAST, "decoder=mlp", "decoder.hidden=64", "rerank=100", "trainer.max_epochs=4"]
    command("train.py", environment, folder)(*dataset(given), *small, f"metric={request.param}", "baselines=[pq]")
    return only_run(folder)


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "outputs" / trained_once.name
    shutil.copytree(trained_once, folder)
    return folder


def similarities(queries: np.ndarray, base: np.ndarray, ids: np.ndarray, name: str) -> np.ndarray:
    products = np.take_along_axis(queries.astype(np.float64) @ base.T, ids, 1)
    return (
        products / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(base, axis=1)[ids]
        if name == "cosine"
        else products
    )


def test_a_run_finds_what_is_best_by_its_metric(
    trained: Path, given: Path, evaluate: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    run, base, queries = TrainedRun.load(trained), np.load(given / "base.npy"), np.load(given / "queries.npy")
    name = run.metric.name
    longest = max(norms(np.load(given / f"{part}.npy")).max() for part in ("learn", "base"))
    assert run.metric == Metric(name, longest if name == "ip" else None)
    results = json.loads((trained / "results.json").read_text())
    assert results["metric"] == {"name": name, "max_norm": run.metric.max_norm}
    assert results["title"].endswith(f", by {name}")
    assert run.d == DIM

    truth = best(queries, base, name)
    codes = run.encode(base)
    for rerank, row in ((0, "catalyzer + lattice"), (100, "catalyzer + lattice (rerank 100)")):
        scores, ids = run.search(queries, codes, 10, rerank)
        assert recall_at(10, ids, truth) == pytest.approx(rows(trained)[row]["recall"]["10"])
        assert recall_at(10, ids, truth) > 0.3  # by chance 0.005
        assert (np.diff(scores, axis=1) <= 0).all()
    assert rows(trained)["PQ"]["recall"]["10"] > 0.3
    decoded = run.decode(codes)
    assert decoded.shape == base.shape
    exact = replace(run, codec=run.codec.plain)  # whose scores are those of decoded vectors
    scores, ids = exact.search(queries, codes, 10, 100)
    if name == "cosine":
        np.testing.assert_allclose(norms(decoded), 1, rtol=1e-5)
    assert np.corrcoef(scores.ravel(), similarities(queries, base, ids, name).ravel())[0, 1] > 0.8

    evaluate(f"run={trained}", "quantizer=pq", "rerank=0")
    measured = rows(trained / "evaluations" / "pq-64bits-rerank0")
    assert measured["PQ"]["recall"] == rows(trained)["PQ"]["recall"]

    command("encode.py", environment, tmp_path)(
        f"run={trained}", f"input={given / 'base.npy'}", "output=codes", "shard_size=600"
    )
    shards = CodeShards.open(tmp_path / "codes")
    np.testing.assert_array_equal(np.concatenate([shards.read(number) for number in range(shards.count)]), codes)
    search = command("search.py", environment, tmp_path)
    for rerank in (0, 100):
        search("codes=codes", f"queries={given / 'queries.npy'}", "k=10", f"rerank={rerank}", "output=found", "format=npy")
        scores, ids = run.search(open_vectors(given / "queries.npy"), codes, 10, rerank)
        np.testing.assert_array_equal(np.load(tmp_path / "found.ids.npy"), ids)
        np.testing.assert_array_equal(np.load(tmp_path / "found.distances.npy"), scores)
    (trained / "metric.json").write_text(json.dumps({"name": "cosine" if name == "ip" else "l2", "max_norm": None}))
    process = search("codes=codes", f"queries={given / 'queries.npy'}", "output=found", expect=2)
    refused(process, "codes holds codes of another run than")


def test_what_a_run_cannot_compare(trained: Path, given: Path) -> None:
    run, x = TrainedRun.load(trained), np.load(given / "base.npy")[:5]
    zeros, long = x.copy(), x.copy()
    zeros[3], long[4] = 0, 1000
    if run.metric.name == "cosine":
        with pytest.raises(InvalidInput, match="vectors: row 3 contains only zeros"):
            run.encode(zeros)
        with pytest.raises(InvalidInput, match="queries: row 3 contains only zeros"):
            run.search(zeros, run.encode(x), 1)
        np.testing.assert_array_equal(run.encode(long[4:] * 2), run.encode(long[4:]))
    else:
        with pytest.raises(
            InvalidInput, match=r"vectors: row 4 has the norm 5656\.85, above the run's limit for inner products"
        ):
            run.encode(long)
        assert run.search(zeros, run.encode(zeros), 1)[1].shape == (5, 1)
        np.testing.assert_array_equal(run.search(long, run.encode(x), 5)[1], run.search(long / 7, run.encode(x), 5)[1])
    with pytest.raises(InvalidInput, match=rf"expected vectors as numbers of shape \(n, {DIM}\), got \(5, {DIM - 1}\)"):
        run.encode(x[:, 1:])
    with pytest.raises(InvalidInput, match=r"expected vectors as an array \(n, 32\), got list"):
        run.search(x.tolist(), run.encode(x), 1)  # type: ignore[arg-type]
    for content, error in (("{", DamagedFile), ('{"name": "dot"}', DamagedFile), (None, InvalidInput)):
        (trained / "metric.json").unlink()
        if content is not None:
            (trained / "metric.json").write_text(content)
        with pytest.raises(error, match=r"metric.json"):
            TrainedRun.load(trained)
        (trained / "metric.json").touch()


def test_cosine_of_normalized_vectors_is_l2(train: Command, tmp_path: Path) -> None:
    metric = Metric("cosine")
    for seed, (part, n) in enumerate(PARTS):
        x = vectors(n, seed)
        while not np.array_equal(x, y := metric.base(x)):  # until rounding leaves them as they are
            x = y
        np.save(tmp_path / f"{part}.npy", x)
    for name in ("l2", "cosine"):
        train(*dataset(tmp_path), *FAST, f"metric={name}", "baselines=[pq]", f"hydra.run.dir={name}")
    base, queries = np.load(tmp_path / "base.npy"), np.load(tmp_path / "queries.npy")
    l2, cosine = (TrainedRun.load(tmp_path / name) for name in ("l2", "cosine"))
    codes = l2.encode(base)
    np.testing.assert_array_equal(cosine.encode(base), codes)
    distances, ids = l2.search(queries, codes, 50)
    found = cosine.search(queries, codes, 50)
    np.testing.assert_array_equal(found[1], ids)
    np.testing.assert_allclose(found[0], 1 - distances / 2, atol=1e-6)
    assert {key: row["recall"] for key, row in rows(tmp_path / "l2").items()} == {
        key: row["recall"] for key, row in rows(tmp_path / "cosine").items()
    }


def test_metrics_that_are_refused(train: Command, given: Path, tmp_path: Path) -> None:
    refused(train(*dataset(given), "metric=dot", expect=2), "metric=dot: input should be 'l2', 'cosine' or 'ip'; change it")
    angular = ann_file(tmp_path / "x.hdf5", "angular")
    process = train("dataset=annbenchmarks", f"dataset.path={angular}", "metric=ip", expect=2)
    refused(process, "metric=ip contradicts annbenchmarks, which comes with true neighbours for cosine; leave out metric=")
    zeros = np.load(given / "base.npy")
    zeros[11] = 0
    np.save(tmp_path / "zeros.npy", zeros)
    process = train(*dataset(given), f"dataset.base={tmp_path / 'zeros.npy'}", "metric=cosine", expect=2)
    refused(process, "zeros.npy: row 11 contains only zeros, so it has no direction to compare by cosine")


def test_the_metric_of_the_dataset_is_the_run_s(train: Command, evaluate: Command, tmp_path: Path) -> None:
    angular = ann_file(tmp_path / "x.hdf5", "angular")
    train("dataset=annbenchmarks", f"dataset.path={angular}", "catalyzer=pca", "d_out=8", "bits=24", "baselines=[]")
    folder = only_run(tmp_path)
    assert TrainedRun.load(folder).metric == Metric("cosine")
    evaluate(f"run={folder}", "quantizer=sign")


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_an_index_has_its_metric_from_its_own_argument(metric: Literal["cosine", "ip"], tmp_path: Path) -> None:
    options = {"bits": 64, "d_out": 24, "hidden": 32, "decoder": False, "epochs": 1, "seconds": None, "folder": tmp_path}
    with pytest.raises(
        InvalidInput, match=rf'metric={metric} cannot be an override of an index; give CatalyzerIndex\(metric="{metric}"\)'
    ):
        learn_codec(vectors(600, 0), overrides=[f"metric={metric}"], **options)  # type: ignore[arg-type]


def test_a_run_from_before_there_were_metrics(tmp_path: Path) -> None:
    run = TrainedRun.load(make_run(tmp_path))
    assert not (tmp_path / "metric.json").exists()
    assert run.metric == Metric("l2")
