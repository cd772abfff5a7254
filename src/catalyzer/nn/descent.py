"""Gradient steps that lower the decoder's error of mapped vectors, before the nearest lattice point is taken.

Let J be the Jacobian of the decoder g. If g were linear, the step to the best point would be (JᵀJ)⁻¹ times the gradient of half
the squared error. JᵀJ is similar all over the sphere. So one damped matrix is used for all vectors, and a step costs one
forward and one backward pass through the decoder.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from catalyzer.errors import InvalidInput
from catalyzer.files.vectors import Vectors, as_float32
from catalyzer.nn.embedding import evaluating
from catalyzer.nn.transforms import Transform

DAMPING = 0.3  # of the mean of JᵀJ's diagonal
POINTS = 64  # a dimension, at least, at which JᵀJ is estimated
BLOCK = 1 << 11  # vectors that are moved together, which stay in the processor's cache


class Descent:
    """Gradient steps on the sphere that lower a decoder's error, for its current weights.

    JᵀJ is estimated at random points of the sphere, by gradients of random sums of the decoder's outputs.

    Args:
        decoder: decoder that is differentiable by its input.
        spheres: dimensions of the blocks of its input, each of which keeps its norm.
        damping: share of the mean of JᵀJ's diagonal that is added to the diagonal. More makes steps shorter.

    Raises:
        InvalidInput: the decoder has no gradient.

    >>> from catalyzer.nn import PCA, PCADecoder
    >>> x = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    >>> f, g = PCA(8, 4).adapt(x), PCADecoder(4, 8).adapt(x)
    >>> best, elsewhere = (f(torch.from_numpy(each)).numpy() for each in (x, x + 1))
    >>> distance = [float(np.linalg.norm(y - best)) for y in (elsewhere, Descent(g, spheres=[4])(elsewhere, x, steps=2))]
    >>> distance[1] < distance[0] / 5
    True
    """

    @torch.inference_mode(False)  # a validation by Lightning is in that mode, which knows no gradients
    def __init__(self, decoder: Transform, spheres: Sequence[int], damping: float = DAMPING) -> None:
        self.decoder, self.spheres = decoder, list(spheres)
        dim = decoder.d_in
        random = torch.Generator().manual_seed(0)
        norms = [(size / dim) ** 0.5 for size in self.spheres]
        blocks = -(-POINTS * dim // BLOCK)
        products = torch.zeros(dim, dim, dtype=torch.float64)
        for _ in range(blocks):
            y, decoded = self._decoded(self._of_norms(torch.randn(BLOCK, dim, generator=random), norms))
            weights = torch.randn(decoded.shape, generator=random).to(decoded.device)
            gradient = torch.autograd.grad(decoded, y, weights)[0].double()
            products += (gradient.T @ gradient).cpu()
        products /= blocks * BLOCK
        # A decoder that makes the same of all points, as one does whose units are all dead, moves none: any matrix does.
        added = damping * (float(products.diagonal().mean()) or 1.0)
        self.matrix = torch.linalg.inv(products + added * torch.eye(dim)).float()

    @torch.inference_mode(False)
    def __call__(self, latent: np.ndarray, vectors: Vectors, steps: int) -> np.ndarray:
        """Move points to where they decode closer to vectors.

        Args:
            latent: `(n, dim)` float32 points.
            vectors: `(n, d)`.
            steps: number of steps.

        Returns:
            `(n, dim)` float32.
        """
        moved = np.empty_like(latent)
        for first in range(0, len(latent), BLOCK):
            rows = slice(first, first + BLOCK)
            x, point = (torch.from_numpy(np.require(as_float32(each[rows]), requirements="W")) for each in (vectors, latent))
            norms = [block.norm(dim=1, keepdim=True) for block in point.split(self.spheres, dim=1)]
            for _ in range(steps):
                y, decoded = self._decoded(point)
                x = x.to(decoded.device)
                gradient = torch.autograd.grad(decoded, y, decoded.detach() - x)[0]
                point = self._of_norms(point - gradient @ self.matrix, norms)
            moved[rows] = point.numpy()
        return moved

    def _decoded(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points `(n, dim)` on the CPU, and their decoded vectors, `(n, d)` float32, differentiable by the points."""
        y = points.detach().requires_grad_()
        with evaluating(self.decoder) as (device, autocast), autocast:
            decoded = self.decoder(y.to(device)).float()
        if not decoded.requires_grad:
            raise InvalidInput(
                f"steps follow the gradient of a decoder, and {type(self.decoder).__name__} has none; use steps=0"
            )
        return y, decoded

    def _of_norms(self, y: Tensor, norms: Sequence[Tensor | float]) -> Tensor:
        """`y` with its blocks scaled to other norms."""
        blocks = zip(y.split(self.spheres, dim=1), norms, strict=True)
        return torch.cat([F.normalize(block) * norm for block, norm in blocks], dim=1)
