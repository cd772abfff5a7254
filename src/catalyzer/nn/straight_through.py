"""A quantizer as a layer: quantized forward, identity backward (section 4.2)."""

from torch import Tensor, nn

from catalyzer.lattice import SphericalLattice


class StraightThrough(nn.Module):
    """Replace each point by the nearest lattice point, of norm 1; the gradient passes as if nothing had happened.

    Args:
        lattice: whose points divided by r are the output.

    Shape:
        `(n, lattice.dim)` to the same.

    >>> import torch
    >>> layer = StraightThrough(SphericalLattice(dim=2, radius_sq=1))
    >>> x = torch.tensor([[0.6, 0.8]], requires_grad=True)
    >>> y = layer(x)
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([[0.0, 1.0]], [[1.0, 1.0]])
    """

    def __init__(self, lattice: SphericalLattice) -> None:
        super().__init__()
        self.lattice = lattice

    def forward(self, x: Tensor) -> Tensor:
        quantized = self.lattice.quantize(x.detach().float()).to(x.dtype) / self.lattice.radius_sq**0.5
        return x + (quantized - x).detach()
