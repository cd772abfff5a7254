"""The straight-through layers: what comes out is what codes stand for, what goes back is unchanged."""

import numpy as np
import pytest
import torch

from catalyzer import InvalidInput, SphericalLattice
from catalyzer.nn import StraightThrough, StraightThroughSign
from catalyzer.quantizers import ProductQuantizer, SignQuantizer

LATTICE = SphericalLattice(24, 79)


def run(layer: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    weights = torch.arange(y.numel()).reshape(y.shape).to(y.dtype)
    (y * weights).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weights, rtol=0, atol=0)
    return y.detach(), x.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_forward_is_the_lattice_and_backward_the_identity(dtype: torch.dtype) -> None:
    x = torch.randn(50, 24, dtype=dtype)
    y, _ = run(StraightThrough(LATTICE), x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, LATTICE.decode(LATTICE.encode(x)).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_signs_are_those_of_the_code(dtype: torch.dtype) -> None:
    x = torch.randn(50, 16, dtype=dtype)
    x[0] = 0
    quantizer = SignQuantizer(16)
    y, _ = run(quantizer.straight_through(), x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.float().numpy(), quantizer.decode(quantizer.encode(x.float().numpy())))


def test_no_training_through_what_is_learned() -> None:
    with pytest.raises(InvalidInput, match="no network can be trained through ProductQuantizer"):
        ProductQuantizer(16, 32).straight_through()


@pytest.mark.parametrize("layer", [StraightThrough(LATTICE), StraightThroughSign()])
def test_under_autocast(layer: torch.nn.Module) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 24), layer)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(torch.randn(10, 8))
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert model[0].weight.grad is not None
    assert model[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("layer", [StraightThrough(LATTICE), StraightThroughSign()])
def test_compiles_without_a_graph_break(layer: torch.nn.Module) -> None:
    x = torch.randn(10, 24)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, x)[0], layer(x))
