"""Linear maps against principal components by NumPy, and networks whose output is several spheres."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catalyzer import Catalyzer, Codec, InvalidInput, LatticeQuantizer, open_vectors
from catalyzer.nn import PCA, Axes, Linear, LinearDecoder, row_wise
from catalyzer.nn.linear import block_norms
from catalyzer.nn.statistics import mean_and_covariance, mean_and_deviation


def correlated(n: int, d: int, rank: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=(n, rank)) @ random.normal(size=(rank, d)) + 5 + random.normal(0, 0.01, (n, d))).astype(
        np.float32
    )


def of(transform: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    return transform(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize(("d", "count"), [(20, 20), (20, 6), (300, 20)])  # all axes, some of few, and some of many
def test_axes_are_those_of_the_covariance(d: int, count: int) -> None:
    x = correlated(4000, d, 30)
    axes = Axes.of(x, count)
    values = np.linalg.eigvalsh(np.cov(x.T.astype(np.float64), bias=True))[::-1][:count]
    np.testing.assert_allclose(axes.mean, x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(axes.variances, values, rtol=2e-3)
    np.testing.assert_allclose(axes.directions.T @ axes.directions, np.eye(count), atol=1e-9)
    np.testing.assert_allclose((x @ axes.directions.numpy()).var(0), values, rtol=2e-3)


def test_without_damping_distances_are_those_of_pca() -> None:
    x = correlated(3000, 40, 12)
    ours, theirs = of(Linear(40, 12, damping=0).adapt(x), x[:200]), of(PCA(40, 12).adapt(x), x[:200])
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-4)


def test_blocks_have_equal_shares() -> None:
    x = correlated(3000, 96, 60)
    y = of(Linear(96, 64).adapt(x), x).reshape(-1, 4, 16)
    np.testing.assert_allclose((y**2).sum(2).mean(0), 0.25, atol=0.05)


@settings(deadline=None, max_examples=20)
@given(damping=st.floats(0, 0.5), count=st.integers(2, 16))
def test_decoding_gives_the_direction_from_the_mean(damping: float, count: int) -> None:
    x = correlated(1000, 16, 16)
    f, g = Linear(16, count, damping).adapt(x), LinearDecoder(count, 16, damping).adapt(x)
    centred, decoded = x[:50] - x.mean(0), of(g, of(f, x[:50])) - x.mean(0)
    axes = Axes.of(x, count).directions.numpy()
    kept = centred @ axes @ axes.T
    cosine = (kept * decoded).sum(1) / np.linalg.norm(kept, axis=1) / np.linalg.norm(decoded, axis=1)
    np.testing.assert_allclose(cosine, 1, atol=1e-4)


def test_nested_blocks_have_axes_of_their_own() -> None:
    x = correlated(3000, 40, 40)
    f = Linear(40, 12, damping=0, nested=True, spheres=[4, 8], gain=True).adapt(x)
    g = LinearDecoder(12, 40, damping=0, nested=True, spheres=[4, 8]).adapt(x)
    axes = Axes.of(x, 12)
    for block, columns in ((slice(0, 4), slice(0, 4)), (slice(4, 12), slice(4, 12))):
        # All of a block is in the span of its axes, so distances within it are those there, times a constant.
        ours, theirs = of(f, x)[:, block], (x - axes.mean.numpy()) @ axes.directions.numpy()[:, columns]
        ratio = np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    squares = (of(f, x) ** 2).mean(0)
    np.testing.assert_allclose(
        [squares[:4].sum(), squares[4:].sum()], np.square(block_norms(axes.variances, 0, [4, 8])), rtol=0.02
    )
    # Points whose blocks have the norms of the lattice's are decoded with the norms that blocks have in the data.
    z = np.eye(12, dtype=np.float32)[[0, 4]]
    norms = np.linalg.norm(of(g, z) - axes.mean.numpy(), axis=1) * np.sqrt([4 / 12, 8 / 12])
    np.testing.assert_allclose(norms**2, [axes.variances[:4].sum(), axes.variances[4:].sum()], rtol=1e-3)


def test_with_gain_distances_are_kept_but_for_their_unit() -> None:
    x = correlated(3000, 40, 12)
    y = of(Linear(40, 12, damping=0, gain=True).adapt(x), x)
    np.testing.assert_allclose((y**2).sum(1).mean(), 1, rtol=1e-3)
    ours, theirs = np.linalg.norm(y[1:200] - y[0], axis=1), np.linalg.norm(x[1:200] - x[0], axis=1)
    np.testing.assert_allclose(ours / theirs, ours[0] / theirs[0], rtol=1e-2)


def test_what_never_varies_is_no_axis() -> None:
    x = correlated(1000, 8, 8)
    x[:, 3:] = x[:, :1]  # four dimensions of eight
    y = of(Linear(8, 8, damping=0.5).adapt(x), x)
    assert np.isfinite(y).all()
    assert np.linalg.matrix_rank(np.cov(y.T), tol=1e-3) == 3


def test_few_vectors_of_many_dimensions() -> None:
    x = correlated(50, 400, 30)
    assert np.isfinite(of(Linear(400, 64).adapt(x), x)).all()


def test_a_file_is_read_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = correlated(5000, 16, 16)
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr("catalyzer.nn.statistics.ADAPT_SAMPLE", 64 * 100)
    mean, covariance = mean_and_covariance(open_vectors(tmp_path / "x.npy"))
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(covariance, np.cov(x.T, bias=True), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(mean_and_deviation(x)[1], x.std(axis=0).mean(), rtol=1e-4)


@pytest.mark.parametrize(
    "transform",
    [
        Linear(16, 12).adapt(correlated(500, 16, 16)),
        Linear(16, 12, gain=True).adapt(correlated(500, 16, 16)),
        LinearDecoder(12, 16).adapt(correlated(500, 16, 16)),
        Catalyzer(16, 12, hidden=64, spheres=[5, 7]).eval(),
    ],
    ids=["linear", "gain", "decoder", "spheres"],
)
def test_searches_map_as_the_transform_does(transform: torch.nn.Module) -> None:
    x = np.random.default_rng(0).normal(size=(40, transform.d_in)).astype(np.float32)
    fast = row_wise(transform)
    alone = np.concatenate([of(fast, x[row : row + 1]) for row in range(len(x))])
    np.testing.assert_array_equal(of(fast, x), alone)
    with torch.no_grad():
        np.testing.assert_allclose(alone, of(transform, x), atol=0.05)


def test_each_sphere_has_its_share() -> None:
    with torch.no_grad():
        y = Catalyzer(16, 12, hidden=64, spheres=[3, 9]).eval()(torch.randn(50, 16))
    np.testing.assert_allclose(y[:, :3].norm(dim=1), 0.5, atol=1e-6)
    np.testing.assert_allclose(y.norm(dim=1), 1, atol=1e-6)


def test_refusals() -> None:
    for call, message in [
        (lambda: Linear(8, 9), "at most as many dimensions as its input, 8; got d_out = 9"),
        (lambda: Linear(8, 8, damping=0.6), "damping must be between 0 and 0.5, got 0.6"),
        (lambda: LinearDecoder(9, 8), "at most as many dimensions"),
        (lambda: Linear(8, 4).adapt(np.ones((100, 8), np.float32)), "all training vectors are equal"),
        (
            lambda: Codec(Linear(32, 24, seed=1), LatticeQuantizer(24), LinearDecoder(24, 32)),
            "catalyzer=linear has seed 1, and its decoder 0; give both the same",
        ),
        (
            lambda: Codec(PCA(32, 24), LatticeQuantizer(24), LinearDecoder(24, 32)),
            "decoder=linear decodes what catalyzer=linear maps",
        ),
        (lambda: Linear(8, 4, nested=True), "nested=true is for codes of several blocks"),
        (lambda: Linear(8, 4, nested=True, spheres=[2, 3]), r"spheres = \[2, 3\] have 5 dimensions together, and the codes 4"),
        (lambda: Codec(Linear(32, 24), LatticeQuantizer(24, gain=True)), "Linear makes all of them equal; use gain=false"),
        (lambda: Catalyzer(8, 12, spheres=[6, 5]), r"spheres = \[6, 5\] have 11 dimensions together, but d_out = 12"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            call()
