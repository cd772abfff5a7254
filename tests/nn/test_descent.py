"""Steps to where a vector decodes better: what they minimize, what they keep, and by which decoders they can go."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from catalyzer import Codec, Decoder, InvalidInput
from catalyzer.nn import Descent, PCADecoder, Transform, embed, row_wise
from tests.helpers import clustered


class Bent(Transform):
    """A decoder of somebody else's: smooth, and without a layer of ours."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out)
        self.weight = torch.nn.Parameter(torch.randn(d_out, d_in, dtype=torch.float64) * torch.linspace(1, 3, d_in))

    def forward(self, z: Tensor) -> Tensor:
        y = z.double() @ self.weight.T
        return y + 0.1 * torch.sin(y)


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    # Compared are numbers, and not roundings that depend on the processor.
    monkeypatch.setattr("catalyzer.nn.embedding.multiplies_bfloat16", lambda _: False)


def points(n: int, dims: list[int], norms: list[float]) -> np.ndarray:
    blocks = [norm * F.normalize(torch.randn(n, dim)) for dim, norm in zip(dims, norms, strict=True)]
    return torch.cat(blocks, dim=1).numpy()


def errors(decoder: Transform, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return ((embed(decoder, y) - x) ** 2).sum(axis=1)


def test_a_step_is_that_of_gauss_and_newton() -> None:
    decoder, y, damping = Bent(6, 20), points(200, [6], [1.0]), 0.2
    x = embed(decoder, points(200, [6], [1.0]))
    # JᵀJ point by point, at points of our own.
    jacobian = torch.vmap(torch.func.jacrev(lambda z: decoder(z[None])[0]))(torch.from_numpy(points(4000, [6], [1.0])))
    products = torch.einsum("nji,njk->nik", jacobian, jacobian).mean(0).detach().double().numpy()
    matrix = np.linalg.inv(products + damping * products.diagonal().mean() * np.eye(6))
    descent = Descent(decoder, [6], damping)
    np.testing.assert_allclose(descent.matrix, matrix, atol=0.1 * matrix.max())  # which is estimated

    here = torch.from_numpy(y).requires_grad_()
    (0.5 * (decoder(here) - torch.from_numpy(x)).square().sum()).backward()
    assert here.grad is not None
    moved = y - here.grad.numpy() @ descent.matrix.numpy()
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    np.testing.assert_allclose(descent(y, x, steps=1), moved, atol=1e-5)
    np.testing.assert_allclose(descent(y, x, steps=3), descent(descent(y, x, steps=2), x, steps=1), atol=1e-5)


def test_steps_find_what_was_decoded() -> None:
    decoder, there = Bent(8, 30), points(500, [8], [1.0])
    x = embed(decoder, there)
    start = there + 0.15 * points(500, [8], [1.0])
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    before, after = (errors(decoder, y, x).mean() for y in (start, Descent(decoder, [8])(start, x, steps=8)))
    assert after < before / 100


@pytest.mark.parametrize("dims", [[12], [4, 8], [3, 3, 3, 3]])
def test_each_block_keeps_its_norm(dims: list[int]) -> None:
    norms = [0.5 + 0.25 * i for i in range(len(dims))]
    decoder, y = Decoder(12, 16, hidden=32).eval(), points(3000, dims, norms)
    x = np.random.default_rng(0).normal(size=(3000, 16)).astype(np.float32)
    moved = Descent(decoder, dims)(y, x, steps=2)
    assert np.abs(moved - y).max(axis=1).min() > 1e-3
    for block, norm in zip(np.split(moved, np.cumsum(dims)[:-1], axis=1), norms, strict=True):
        np.testing.assert_allclose(np.linalg.norm(block, axis=1), norm, rtol=1e-5)


def test_modes_of_torch_make_no_difference() -> None:
    decoder, y = Decoder(8, 16, hidden=32), points(50, [8], [1.0])
    x = clustered(50, 16, 0)
    expected = Descent(copy.deepcopy(decoder).eval(), [8])(y, x, steps=2)
    assert decoder.training
    for mode in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        with mode:
            np.testing.assert_array_equal(Descent(decoder, [8])(y, x, steps=2), expected)
    assert decoder.training
    assert all(weight.grad is None for weight in decoder.parameters())


def test_nothing_to_move_and_what_was_given_stays() -> None:
    descent, y = Descent(Decoder(8, 16, hidden=32).eval(), [8]), points(5, [8], [1.0])
    x, given = clustered(5, 16, 0), y.copy()
    assert descent(y[:0], x[:0], steps=2).shape == (0, 8)
    np.testing.assert_array_equal(descent(y, x, steps=0), y)
    assert (descent(y, x, steps=1) != y).any()
    np.testing.assert_array_equal(y, given)


def test_a_decoder_without_a_gradient_is_refused(codec: Codec) -> None:
    assert codec.decoder is not None
    for decoder in (row_wise(codec.decoder), row_wise(PCADecoder(8, 32).adapt(clustered(500, 32, 0)))):
        with pytest.raises(InvalidInput, match=rf"{type(decoder).__name__} has none; use steps=0"):
            Descent(decoder, [decoder.d_in])


def test_a_decoder_that_makes_the_same_of_all_points_moves_none() -> None:
    decoder, y = Decoder(6, 16, hidden=32).eval(), points(50, [6], [1.0])
    for weight in decoder.parameters():
        torch.nn.init.zeros_(weight)
    np.testing.assert_allclose(Descent(decoder, [6])(y, clustered(50, 16, 0), steps=2), y, atol=1e-6)
