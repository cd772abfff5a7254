"""A quantizer as a layer: quantized forward, identity backward (section 4.2)."""

from functools import cache

import torch
from torch import Tensor, nn

from catalyzer.lattice import SphericalLattice

_lattice = cache(SphericalLattice)


class StraightThrough(nn.Module):
    """Replace each point by the nearest lattice point, of norm 1; the gradient passes as if nothing had happened.

    Works under autocast, in the dtype that it is given, and inside `torch.compile` without a graph break.

    Args:
        lattice: whose points divided by r are the output.

    Shape:
        `(n, lattice.dim)` to the same.

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
        return _nearest(x, self.lattice.dim, self.lattice.radius_sq)


# An operator of its own, so that torch.compile takes it as one step instead of looking inside. Operators take numbers
# and tensors only, hence the dimensions instead of the lattice.
@torch.library.custom_op("catalyzer::nearest", mutates_args=())
def _nearest(x: Tensor, dim: int, radius_sq: int) -> Tensor:
    return _lattice(dim, radius_sq).quantize(x).to(x.dtype) / radius_sq**0.5


_nearest.register_fake(lambda x, *_: torch.empty_like(x))
_nearest.register_autograd(lambda _, gradient: (gradient, None, None))
