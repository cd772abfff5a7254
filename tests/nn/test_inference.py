"""Networks in whole numbers: near the network, and each row by itself, on every way through the code."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from catalyzer.nn import PCA, Catalyzer, Decoder, Identity, PCADecoder, ResidualDecoder, embed, row_wise
from catalyzer.nn import inference as module
from catalyzer.nn.inference import Int8Perceptron

KINDS: list[type[Catalyzer | Decoder]] = [Catalyzer, Decoder, ResidualDecoder]


def network(d_in: int, d_out: int, hidden: int, kind: type[Catalyzer | Decoder] = Catalyzer) -> Catalyzer | Decoder:
    """Random weights, and batch norm that has seen something."""
    torch.manual_seed(d_in + d_out + hidden)
    made = kind(d_in, d_out, hidden)
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 3)
            layer.weight.data.uniform_(0.5, 2)
            layer.bias.data.normal_()
    made.mean.normal_()
    made.scale.fill_(3.0)
    return made.eval()


@settings(deadline=None, max_examples=30)
@given(
    d_in=st.integers(1, 70), d_out=st.integers(1, 40), hidden=st.sampled_from([1, 7, 64, 65, 300]), n=st.integers(0, 200),
    kind=st.sampled_from(KINDS), at=st.integers(0, 10**6),
)  # fmt: skip
def test_a_row_alone_has_the_bits_that_it_has_among_others(
    d_in: int, d_out: int, hidden: int, n: int, kind: type[Catalyzer | Decoder], at: int
) -> None:
    whole = Int8Perceptron(network(d_in, d_out, hidden, kind))
    x = np.random.default_rng(at).normal(size=(n, d_in)).astype(np.float32)
    mapped = whole.map(x)
    assert (mapped.shape, mapped.dtype) == ((n, d_out), np.float32)
    for row in {0, at % n, n - 1} if n else ():
        np.testing.assert_array_equal(whole.map(x[row : row + 1])[0], mapped[row])
    part = slice(at % (n + 1), n)
    np.testing.assert_array_equal(whole.map(x[part]), mapped[part])
    np.testing.assert_array_equal(whole(torch.from_numpy(x)).numpy(), mapped)


def test_products_of_int8_and_of_float32_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hardware does not multiply int8: also at the largest sums, of 1,024 inputs at their limits."""
    x = np.random.default_rng(0).normal(size=(3000, 40)).astype(np.float32)
    for hidden in (1024, 1500):
        made = network(40, 24, hidden)
        nn.init.constant_(made.layers[3].weight, 1.0)
        here = Int8Perceptron(made).map(x)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_multiplies_int8", lambda: False)
            assert Int8Perceptron(made)._layers[1].weights.dtype == torch.float32
            np.testing.assert_array_equal(Int8Perceptron(made).map(x), here)
        np.testing.assert_array_equal(Int8Perceptron(made).map(x[5:6])[0], here[5])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [64, 512])
def test_it_is_near_the_network(kind: type[Catalyzer | Decoder], hidden: int) -> None:
    made = network(48, 24, hidden, kind)
    x = np.random.default_rng(0).normal(size=(500, 48)).astype(np.float32)
    with torch.no_grad():
        expected = made(torch.from_numpy(x)).numpy()
    error = Int8Perceptron(made).map(x) - expected
    assert (error**2).sum() < 1e-3 * (expected**2).sum()


def test_zeros_and_large_numbers() -> None:
    made = network(16, 8, 32)
    made.mean.zero_()
    whole = Int8Perceptron(made)
    for scale in (0.0, 1e-30, 1e15):
        mapped = whole.map(np.full((3, 16), scale, np.float32))
        np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1, rtol=1e-5)


def test_pca_row_by_row() -> None:
    x = np.random.default_rng(0).normal(size=(2000, 32)).astype(np.float32)
    for fitted, given_ in ((PCA(32, 8).adapt(x), x), (PCADecoder(8, 32).adapt(x), x[:, :8].copy())):
        whole = row_wise(fitted)
        mapped = embed(whole, given_)
        np.testing.assert_allclose(mapped, embed(fitted, given_), rtol=1e-4, atol=1e-5)
        for row in (0, 77, 1999):
            np.testing.assert_array_equal(embed(whole, given_[row : row + 1])[0], mapped[row])


def test_others_stay_as_they_are() -> None:
    identity = Identity(3)
    assert row_wise(identity) is identity
