"""From where a transform puts vectors to where they decode better: steps down the decoder's error, before the nearest point.

With J the Jacobian of the decoder g, the step to the best place, were g linear, is (JᵀJ)⁻¹ times the gradient of half the
squared error. JᵀJ is much the same all over the sphere. So one matrix, damped, serves all vectors, and a step costs a way
through the decoder and back.
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
    """Steps on the sphere to where a decoder's error is smaller, by the decoder as it is now.

    JᵀJ is estimated at random points of the sphere, by gradients of random sums of what the decoder makes of them.

    Args:
        decoder: differentiable by its input.
        spheres: dimensions of the blocks of its input, each of which keeps its norm.
        damping: this share of the mean of JᵀJ's diagonal is added to the diagonal. More makes steps shorter.

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
        """Move points towards where they are decoded to vectors.

        Args:
            latent: `(n, dim)` float32 points.
            vectors: `(n, d)`.
            steps: how many.

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
        """Points `(n, dim)` on the CPU, and what they are decoded to, `(n, d)` float32, which has a gradient by them."""
        y = points.detach().requires_grad_()
        with evaluating(self.decoder) as (device, autocast), autocast:
            decoded = self.decoder(y.to(device)).float()
        if not decoded.requires_grad:
            raise InvalidInput(
                f"steps follow the gradient of a decoder, and {type(self.decoder).__name__} has none; use steps=0"
            )
        return y, decoded

    def _of_norms(self, y: Tensor, norms: Sequence[Tensor | float]) -> Tensor:
        """`y` with other norms of its blocks."""
        blocks = zip(y.split(self.spheres, dim=1), norms, strict=True)
        return torch.cat([F.normalize(block) * norm for block, norm in blocks], dim=1)
