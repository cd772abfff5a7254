"""An index measured on queries of its user."""

import json
from pathlib import Path

import numpy as np
import pytest

from catalyzer import CatalyzerIndex, InvalidInput, knn
from catalyzer.commands.cli import main
from catalyzer.index.evaluation import Evaluation, Measured
from catalyzer.metric import MetricName
from tests.helpers import clustered, write

BASE, QUERIES = clustered(900, 32, 1).astype(np.float32), clustered(60, 32, 2).astype(np.float32)


def made(metric: MetricName, ivf: int) -> CatalyzerIndex:
    index = CatalyzerIndex(metric=metric, d_out=24, hidden=64, ivf=ivf).fit(clustered(800, 32, 0), epochs=1)
    index.add(BASE)
    return index


@pytest.fixture(scope="module")
def index() -> CatalyzerIndex:
    return made("l2", 16)


def test_recalls_are_those_of_the_searches(index: CatalyzerIndex) -> None:
    found = index.evaluate(QUERIES, BASE, k=5, rerank=[0, 50], nprobe=[1, 16])
    truth = knn(QUERIES, BASE, 5)[1]
    assert [(row.rerank, row.nprobe) for row in found.rows] == [(0, 1), (0, 16), (50, 1), (50, 16)]
    for row in found.rows:
        ids = index.search(QUERIES, 5, row.rerank, row.nprobe, blocks=row.blocks)[1]
        assert row.recall_at_1 == (ids[:, 0] == truth[:, 0]).mean()
        assert row.recall_at_k == (ids == truth[:, :1]).any(axis=1).mean()
        assert row.overlap == pytest.approx(np.mean([len({*a} & {*b}) / 5 for a, b in zip(ids, truth, strict=True)]))
        assert row.alone > 0
        assert row.together > 0
    for side in found.figure().axes:  # each point of the line of rerank=50 names its nprobe
        assert [text.get_text() for text in side.texts] == ["1", "16"]
        assert [text.xy[0] for text in side.texts] == [*side.lines[1].get_xdata()]
    assert index.evaluate(QUERIES, truth=truth, k=5, rerank=[50], nprobe=[16]).rows[0].overlap == found.rows[3].overlap
    assert (found.vectors, found.queries, found.code_size) == (900, 60, 8)


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_truth_is_that_of_the_metric(metric: MetricName) -> None:
    similar = QUERIES @ BASE.T / (np.linalg.norm(BASE, axis=1) if metric == "cosine" else 1)
    truth = np.argsort(-similar, axis=1)[:, :10]
    index = made(metric, 0)
    by_base = index.evaluate(QUERIES, BASE, rerank=[0])
    by_truth = index.evaluate(QUERIES, truth=truth, rerank=[0])
    assert by_base.rows[0].overlap == pytest.approx(by_truth.rows[0].overlap, abs=0.01)
    assert {(row.nprobe, row.blocks) for row in by_base.rows} == {(None, None)}


def test_the_cheapest_is_above_the_wanted_recall_by_two_errors() -> None:
    rows = [Measured(0, 4, None, 0.3, 0.89, 0.5, 100.0, 9.0), Measured(0, 8, None, 0.3, 0.93, 0.5, 300.0, 10.0)]
    rows += [Measured(50, 4, None, 0.4, 0.94, 0.5, 250.0, 30.0), Measured(50, 8, None, 0.4, 0.905, 0.5, 50.0, 5.0)]
    found = Evaluation(10, 1000, 5000, 8, rows)
    assert found.cheapest(0.9) == rows[2]
    assert found.cheapest(0.9, "together") == rows[1]
    assert found.cheapest(0.85) == rows[3]
    assert found.cheapest(0.45, share="overlap") == rows[3]
    with pytest.raises(
        InvalidInput, match=r"reliably reaches 10 of 10 60.0% on 1,000 queries; the best is .* with 50.0% ± 3.2%"
    ):
        found.cheapest(0.6, share="overlap")
    with pytest.raises(InvalidInput, match=r"reliably reaches R@10 95.0% on 1,000 queries; the best is rerank=50, nprobe=4"):
        found.cheapest(0.95)
    with pytest.raises(InvalidInput, match=r"recall must be a share between 0 and 1, such as 0.9; got 90"):
        found.cheapest(90)


def test_what_does_not_fit_is_refused_before_the_work(index: CatalyzerIndex) -> None:
    for options, message in (
        ({"base": BASE[:800]}, "expected the vectors of the index, 900 with ids from 0 to 899; got 800"),
        ({"base": BASE, "ids": np.arange(1, 901)}, "got 900 with ids from 1 to 900"),
        ({}, "give either base"),
        ({"truth": np.zeros((60, 3), int)}, r"truth must be integers of shape \(60, at least 10\), got \(60, 3\)"),
        ({"base": BASE, "nprobe": [17]}, "nprobe must be an integer between 1 and 16"),
        ({"base": BASE, "rerank": [-1]}, "rerank must be an integer"),
        ({"base": BASE, "k": 901}, "k must be an integer between 1 and 900"),
        ({"base": BASE, "rerank": []}, r"rerank must be a list of at least one number, got \[\]"),
        ({"base": BASE, "blocks": []}, r"blocks must be a list of at least one number, got \[\]"),
        ({"base": BASE, "blocks": np.array(2)}, r"blocks must be a list of at least one number, got array\(2\)"),
        ({"base": BASE, "rerank": [None]}, r"rerank must be a list of at least one number, got \[None\]"),
        ({"base": BASE, "nprobe": [None, 2]}, r"nprobe must be a list of at least one number, got \[None, 2\]"),
        ({"base": BASE, "nprobe": 4}, "nprobe must be a list of at least one number, got 4"),
        (
            {"truth": np.full((60, 10), 10**9)},
            "truth has 600 ids that are not in the index, the first of them 1,0",
        ),
        ({"truth": np.zeros((60, 10), int), "ids": range(900)}, "ids belong to base, but truth was given instead of base"),
    ):
        with pytest.raises(InvalidInput, match=message):
            index.evaluate(QUERIES, **options)


def test_the_command(index: CatalyzerIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index.save(tmp_path / "a.catalyzer")
    files = {"q": write(tmp_path / "q.fvecs", QUERIES), "b": write(tmp_path / "b.hdf5", BASE)}
    line = ["evaluate", str(tmp_path / "a.catalyzer"), "--queries", str(files["q"]), "--base", str(files["b"])]
    grid = ["--rerank", "0", "50", "--nprobe", "4", "16", "--figure", str(tmp_path / "f.png"), "--recall", "0.2"]
    main([*line, *grid])
    out = capsys.readouterr().out
    assert "900 vectors in 8 bytes each and 8 for an id, 60 queries" in out
    assert "fastest with R@10 ≥ 20%, one query at a time: rerank=" in out
    assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"
    main([*line, *grid[:-2], "--overlap", "0.1"])
    assert "fastest with 10 of 10 ≥ 10%, many at once: rerank=" in capsys.readouterr().out
    main([*line, *grid, "--json", "--threads", "1"])
    printed = json.loads(capsys.readouterr().out)
    assert [row["nprobe"] for row in printed["rows"]] == [4, 16, 4, 16]
    assert printed["fastest"]["alone"] in printed["rows"]
    with pytest.raises(SystemExit) as end:
        main([*line, "--rerank", "0", "--nprobe", "1", "--json", "--recall", "0.999"])
    assert end.value.code == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["fastest"] == {}
    assert "no setting reliably reaches R@10 99.9%" in captured.err
    for more, sentence in (
        (["--recall", "90"], "--recall must be a share between 0 and 1"),
        (["--overlap", "90"], "--overlap must be a share between 0 and 1"),
        (["--overlap", "0.5", "--recall", "0.5"], "not allowed with argument"),
        (["--figure", str(tmp_path / "f.txt")], "expected a name that ends in .png, .svg or .pdf"),
        (["--figure", str(tmp_path / "none" / "f.png")], "expected a file in an existing folder"),
    ):
        with pytest.raises(SystemExit) as end:
            main([*line, "--rerank", "0", "--nprobe", "1", *more])
        assert end.value.code == 2
        assert sentence in capsys.readouterr().err
