"""ONNX files do what the index does, for all metrics; and what cannot be exported is one sentence and no file."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catalyzer import Catalyzer, Codec, Decoder, InvalidInput, LatticeQuantizer, ResidualDecoder, SphericalLattice, TrainedRun
from catalyzer.commands.cli import main
from catalyzer.index import onnx
from catalyzer.index.contents import Contents
from catalyzer.index.file import write
from catalyzer.metric import Metric, MetricName, norms
from catalyzer.nn import PCA, Identity, Linear, LinearDecoder, Transform, embed
from tests.helpers import clustered, make_run

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
    compared = Metric(metric, float(norms(BASE).max()) if metric == "ip" else None)
    x = compared.base(BASE)
    d = x.shape[1]
    catalyzer, decoder = Catalyzer(d, 24, 64).adapt(x).eval(), ResidualDecoder(24, d, 64).adapt(x).eval()
    own = Catalyzer(d, 24, 64).adapt(x).eval() if query else None
    codec = Codec(catalyzer, LatticeQuantizer(24, 64), decoder, query=own)
    return Contents(codec, compared, np.empty(0, np.int64), np.empty((0, 8), np.uint8))


def test_a_run(run: Run, tmp_path: Path) -> None:
    make_run(tmp_path / "outputs/RUN", "decoder=mlp", "decoder.hidden=64")
    printed = run("export outputs/RUN --onnx models/model.onnx --decoder decoder.onnx")
    assert printed.startswith("wrote models/model.onnx, with outputs that differ from torch's by at most ")
    assert [line.split()[1] for line in printed.splitlines()] == ["models/model.onnx,", "decoder.onnx,"]
    trained = TrainedRun.load("outputs/RUN").codec
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
    run("export a.catalyzer --onnx model.onnx --decoder decoder.onnx --query query.onnx")
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


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("trained", [False, True], ids=["linear", "network"])
def test_products_of_spheres(metric: MetricName, trained: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vectors, quantizer = clustered(500, 32, 1).astype(np.float32), LatticeQuantizer(28, 100)
    compared = Metric(metric, float(norms(vectors).max()) if metric == "ip" else None)
    x = compared.base(vectors)
    d = x.shape[1]
    transform, decoder = Linear(d, 28).adapt(x), LinearDecoder(28, d).adapt(x)
    if trained:
        transform, decoder = Catalyzer(d, 28, 64, quantizer.spheres).adapt(x).eval(), Decoder(28, d, 64).adapt(x).eval()
    codec, model, decoding = Codec(transform, quantizer, decoder), tmp_path / "model.onnx", tmp_path / "decoder.onnx"
    onnx.export(codec, compared, model, decoding)
    codes = quantizer.encode(computed(str(model), vectors))
    with torch.inference_mode():  # in float32, where `encode` may take bfloat16
        latent = transform(torch.from_numpy(x)).numpy()
        points = quantizer.decode(codes)
        expected = compared.restore(decoder(torch.from_numpy(points)).numpy())
    assert (codes == quantizer.encode(latent)).all(axis=1).mean() > 0.95
    if not trained:
        assert (codes == codec.encode(x)).all(axis=1).mean() > 0.95
    np.testing.assert_allclose(computed(str(decoding), points), expected, atol=1e-4 * abs(expected).max())


def test_what_cannot_be_exported(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--onnx FILE" in run("export --help")
    plain = contents("l2", query=False)
    write(Path("a.catalyzer"), replace(plain, codec=replace(plain.codec, decoder=None)))
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "run").mkdir()
    np.save("base.npy", BASE)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for line, sentence in (
        ("a.catalyzer", "the following arguments are required: --onnx"),
        ("--onnx m.onnx", "the following arguments are required: INDEX"),
        ("a.catalyzer --onnx m.onnx opset=9", "unrecognized arguments: opset=9"),
        ("a.catalyzer --onnx ./a.catalyzer", "each file needs a different name; got a.catalyzer a.catalyzer"),
        ("a.catalyzer --onnx m.onnx --query m.onnx", "each file needs a different name; got a.catalyzer m.onnx m.onnx"),
        ("a.catalyzer --onnx m.onnx --decoder d.onnx", "there is no decoder to export; leave out its file, or train one"),
        ("a.catalyzer --onnx m.onnx --query q.onnx", "there is no query network to export, since queries use the transform"),
        ("base.npy --onnx m.onnx", "base.npy is not an index"),
        ("missing.catalyzer --onnx m.onnx", "missing.catalyzer: no such file"),
        ("run --onnx m.onnx", "run"),
        ("a.catalyzer --onnx folder.onnx", "folder.onnx cannot be written (Is a directory)"),
    ):
        error = run(f"export {line}", expect=2)
        assert sentence in error
        assert error.splitlines()[-1].startswith("error: ")
    monkeypatch.setattr(onnx, "RELATIVE_TOLERANCE", 0)
    assert "compute different latent, by up to" in run("export a.catalyzer --onnx m.onnx", expect=2)
    for package in ("onnxruntime", "onnxscript"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            error = run("export a.catalyzer --onnx m.onnx", expect=2)
            assert error == f'error: ONNX files need {package}, which is not installed: pip install "catalyzer[onnx]"\n'
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_has_no_network(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="Identity has no weights to export"):
        onnx.export(Codec(Identity(24), LatticeQuantizer(24, 64)), Metric("l2"), tmp_path / "m.onnx")


class Foreign(Transform):
    """A network of a user's own."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out)
        self.layer = nn.Linear(d_in, d_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.layer(x.float()).tanh())


@pytest.mark.parametrize("transform", [Foreign(32, 24), PCA(32, 24).adapt(BASE)], ids=["foreign", "PCA"])
def test_any_transform_with_weights(run: Run, tmp_path: Path, transform: Transform) -> None:
    codec = Codec(transform, LatticeQuantizer(24, 64))
    nothing = np.empty(0, np.int64), np.empty((0, 8), np.uint8)
    write(tmp_path / "a.catalyzer", Contents(codec, Metric("l2"), *nothing))
    if isinstance(transform, Foreign):
        assert f"if you trust it, add trust={__name__.partition('.')[0]}" in run("export a.catalyzer --onnx m.onnx", expect=2)
    run(f"export a.catalyzer --onnx m.onnx --trust {__name__}")
    with torch.inference_mode():
        expected = transform(torch.from_numpy(BASE)).numpy()
    np.testing.assert_allclose(computed("m.onnx", BASE), expected, atol=1e-4)


class Inexpressible(Foreign):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.sort(super().forward(x).numpy()))


def test_a_network_that_onnx_cannot_express(tmp_path: Path) -> None:
    codec = Codec(Inexpressible(32, 24), LatticeQuantizer(24, 64))
    with pytest.raises(InvalidInput, match="torch cannot export Inexpressible as ONNX"):
        onnx.export(codec, Metric("l2"), tmp_path / "m.onnx")
    assert not any(tmp_path.iterdir())
