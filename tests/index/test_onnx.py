"""ONNX files do what the index does, for all metrics; and what cannot be exported is one sentence and no file."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from catalyzer import Catalyzer, Codec, Decoder, InvalidInput, LatticeQuantizer, SphericalLattice, TrainedRun, export
from catalyzer.commands.cli import main
from catalyzer.index.contents import Contents
from catalyzer.index.file import write
from catalyzer.index.metric import Metric, MetricName
from catalyzer.nn import Identity, embed
from tests.conftest import clustered
from tests.shards.conftest import make_run

BASE = clustered(50, 32, 1).astype(np.float32)
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`catalyzer LINE` in an empty folder: what it prints, or the sentence where `expect` is 2."""
    monkeypatch.chdir(tmp_path)

    def call(line: str, expect: int = 0) -> str:
        code = 0
        try:
            main(line.split())
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        assert code == expect, captured
        return captured.err if expect else captured.out

    return call


def computed(path: str, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    takes, gives = session.get_inputs()[0], session.get_outputs()[0]
    assert (takes.shape, gives.shape) == (["batch", x.shape[1]], ["batch", gives.shape[1]])
    return session.run([gives.name], {takes.name: x})[0]


def contents(metric: MetricName, query: bool) -> Contents:
    """An index without vectors, of networks that have learned nothing but the vectors' mean and scale."""
    torch.manual_seed(0)
    compared = Metric(metric).fit(BASE)
    x = compared.base(BASE)
    catalyzer, decoder = Catalyzer(x.shape[1], 24, 64).fit(x), Decoder(24, x.shape[1], 64)
    decoder.fit(catalyzer)
    own = Catalyzer(x.shape[1], 24, 64).fit(x).eval() if query else None
    codec = Codec(catalyzer.eval(), LatticeQuantizer(24, 64), decoder.eval(), query=own)
    return Contents(codec, compared, 64, np.empty(0, np.int64), np.empty((0, 8), np.uint8))


def test_a_run(run: Run, tmp_path: Path) -> None:
    make_run(tmp_path / "outputs/RUN", "decoder=mlp", "decoder.hidden=64")
    printed = run("export run=outputs/RUN onnx=models/model.onnx decoder=decoder.onnx")
    assert printed.startswith("wrote models/model.onnx, whose outputs differ from torch's by at most ")
    assert [line.split()[1] for line in printed.splitlines()] == ["models/model.onnx,", "decoder.onnx,"]
    trained = TrainedRun.load("outputs/RUN")
    for n in (1, 50):
        latent = computed("models/model.onnx", BASE[:n])
        np.testing.assert_allclose(latent, embed(trained.transform, BASE[:n]), atol=0.05)  # embed may take bfloat16
        np.testing.assert_allclose(np.linalg.norm(latent, axis=1), 1, rtol=1e-5)
    decoded = computed("decoder.onnx", latent)
    assert trained.decoder is not None
    np.testing.assert_allclose(decoded, embed(trained.decoder, latent), atol=5)  # of values around 128


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_an_index_by_what_its_metric_does(metric: MetricName, run: Run) -> None:
    index = contents(metric, query=metric == "cosine")  # of inner products, queries are mapped otherwise also without one
    write(Path("a.catalyzer"), index)
    run("export index=a.catalyzer onnx=model.onnx decoder=decoder.onnx query=query.onnx")
    codec, x = index.codec, BASE * np.linspace(0.5, 1, len(BASE), dtype=np.float32)[:, None]
    latent = computed("model.onnx", x)
    np.testing.assert_allclose(latent, embed(codec.transform, index.metric.base(x)), atol=0.05)
    codes = SphericalLattice(24, 79).encode(latent)
    points = codec.quantizer.decode(codes)
    assert codec.decoder is not None
    expected = index.metric.restore(embed(codec.decoder, points))
    np.testing.assert_allclose(computed("decoder.onnx", points), expected, atol=0.03 * abs(expected).max())
    mapped = computed("query.onnx", x)
    np.testing.assert_allclose(mapped, codec.map_queries(index.metric.queries(x)), atol=0.05)
    assert abs(mapped - latent).max() > 0.05
    if metric == "ip":
        assert np.isfinite(computed("query.onnx", np.zeros((1, 32), np.float32))).all()


def test_what_cannot_be_exported(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "KEY=PATH" in run("export --help")
    plain = contents("l2", query=False)
    write(Path("a.catalyzer"), replace(plain, codec=replace(plain.codec, decoder=None)))
    (tmp_path / "folder.onnx").mkdir()
    make_run(tmp_path / "run")
    (tmp_path / "run/catalyzer.json").unlink()
    np.save("base.npy", BASE)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for line, sentence in (
        ("index=a.catalyzer", "expected index=FILE or run=FOLDER; onnx=FILE for the catalyzer; where wanted, decoder=FILE"),
        ("index=a.catalyzer run=run onnx=m.onnx", "expected index=FILE or run=FOLDER"),
        ("onnx=m.onnx", "expected index=FILE or run=FOLDER"),
        ("a.catalyzer onnx=m.onnx", "; got a.catalyzer onnx=m.onnx"),
        ("index=a.catalyzer onnx=", "; got index=a.catalyzer onnx="),
        ("index=a.catalyzer onnx=m.onnx onnx=n.onnx", "; got index=a.catalyzer onnx=m.onnx onnx=n.onnx"),
        ("index=a.catalyzer onnx=m.onnx opset=9", "; got index=a.catalyzer onnx=m.onnx opset=9"),
        ("index=a.catalyzer onnx=./a.catalyzer", "each of the files needs a name of its own; got index=a.catalyzer onnx=./a."),
        (
            "index=a.catalyzer onnx=m.onnx decoder=d.onnx",
            "there is no decoder to export; leave out decoder=, or train with one",
        ),
        ("index=a.catalyzer onnx=m.onnx query=q.onnx", "queries have no network of their own here: onnx= has what maps them"),
        ("index=base.npy onnx=m.onnx", "base.npy is not an index"),
        ("index=missing.catalyzer onnx=m.onnx", "missing.catalyzer: no such file"),
        ("run=missing onnx=m.onnx", "missing"),
        ("run=a.catalyzer onnx=m.onnx", "a.catalyzer"),
        ("run=run onnx=m.onnx", "run/catalyzer.json: no such file; expected a run folder whose run has ended"),
        ("index=a.catalyzer onnx=folder.onnx", "folder.onnx cannot be written (Is a directory)"),
    ):
        error = run(f"export {line}", expect=2)
        assert sentence in error
        assert error.count("\n") == 1
    monkeypatch.setattr(export, "TOLERANCE", 0)
    assert "comes to other latent than torch" in run("export index=a.catalyzer onnx=m.onnx", expect=2)
    for package in ("onnxruntime", "onnxscript"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            error = run("export index=a.catalyzer onnx=m.onnx", expect=2)
            assert error == f"error: ONNX files need {package}, which is not installed: pip install 'catalyzer[onnx]'\n"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_has_no_network(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="there is no network to export: vectors are mapped without one"):
        export.export(Codec(Identity(24), LatticeQuantizer(24, 64)), Metric("l2"), tmp_path / "m.onnx")
