"""Fixed quantizers as layers: quantized forward, identity backward (section 4.2)."""

from functools import cache

import torch
from torch import Tensor, nn

from catalyzer.lattice import ProductLattice, SphericalLattice


@cache
def _lattice(*numbers: int) -> SphericalLattice | ProductLattice:
    """The lattice of dimensions and squared radii, one after the other."""
    blocks = list(zip(numbers[::2], numbers[1::2], strict=True))
    return ProductLattice(blocks) if len(blocks) > 1 else SphericalLattice(*blocks[0])


class StraightThrough(nn.Module):
    """Replace each point by the nearest lattice point, of norm 1; the backward pass is the identity.

    Works under autocast, in the dtype of its input, and inside `torch.compile` without a graph break.

    Args:
        lattice: lattice whose points, divided by their radii, are the output.

    Shape:
        `(n, lattice.dim)` to the same.

    >>> layer = StraightThrough(SphericalLattice(dim=2, radius_sq=1))
    >>> x = torch.tensor([[0.6, 0.8]], requires_grad=True)
    >>> y = layer(x)
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([[0.0, 1.0]], [[1.0, 1.0]])
    """

    def __init__(self, lattice: SphericalLattice | ProductLattice) -> None:
        super().__init__()
        self.lattice = lattice
        self._numbers = [number for sphere in lattice.spheres for number in (sphere.dim, sphere.radius_sq)]

    def forward(self, x: Tensor) -> Tensor:
        return _nearest(x, self._numbers)


# An operator of its own, so that torch.compile takes it as one step instead of looking inside. Operators take numbers
# and tensors only, hence the dimensions and squared radii instead of the lattice.
@torch.library.custom_op("catalyzer::nearest", mutates_args=())
def _nearest(x: Tensor, numbers: list[int]) -> Tensor:
    return _lattice(*numbers).nearest_vectors(x).to(x.dtype)


_nearest.register_fake(lambda x, *_: torch.empty_like(x))
_nearest.register_autograd(lambda _, gradient: (gradient, None))


class StraightThroughSign(nn.Module):
    """Replace each coordinate by its sign over √d, so that points keep norm 1; the backward pass is the identity.

    Zero counts as negative, as in a code.

    Shape:
        `(n, d)` to the same.

    >>> x = torch.tensor([[0.6, 0.0, -0.8, 0.0]], requires_grad=True)
    >>> y = StraightThroughSign()(x)
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([[0.5, -0.5, -0.5, -0.5]], [[1.0, 1.0, 1.0, 1.0]])
    """

    def forward(self, x: Tensor) -> Tensor:
        signs = ((x > 0).to(x.dtype) * 2 - 1) / x.shape[1] ** 0.5
        return signs + (x - x.detach())  # exactly 0, with the gradient of x
