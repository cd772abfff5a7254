"""Maps from the input space to the space that is quantized: the catalyzer (section 5.2), PCA (section 5.4), identity.

All are `Transform`s: modules from `(n, d_in)` to `(n, d_out)` float32 with `adapt`, which learns from training vectors without
gradients. The decoder is one too, from the sphere to the original space.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catalyzer._faiss import faiss
from catalyzer.errors import InvalidInput, integer
from catalyzer.files.vectors import Vectors
from catalyzer.nn.batch_norm import BatchNorm
from catalyzer.nn.statistics import mean_and_deviation, sampled
from catalyzer.parts import Part

MAX_RESIDUAL_LAYERS = 64
ERROR_BLOCK = 1 << 12  # points whose features are held
ERROR_DAMPING = 1e-3  # of the ridge regression, as a share of its mean diagonal


class Transform(Part, nn.Module, ABC):
    """Base of all maps, and of all decoders.

    A subclass calls `super().__init__(d_in, d_out)`, keeps its other arguments as attributes (see `Part`), and defines
    `forward`. A map without parameters is not trained: `adapt` learns all of it.

    Args:
        d_in: dimension of the input.
        d_out: dimension of the output.

    Raises:
        InvalidInput: a dimension below 1.

    >>> class Linear(Transform):
    ...     def __init__(self, d_in: int, d_out: int) -> None:
    ...         super().__init__(d_in, d_out)
    ...         self.layer = nn.Linear(d_in, d_out)
    ...     def forward(self, x: Tensor) -> Tensor:
    ...         return F.normalize(self.layer(x.float()))
    >>> Linear(8, 2).is_trained, Linear(8, 2)(torch.ones(3, 8)).shape
    (True, torch.Size([3, 2]))
    """

    keeps_norm = False
    """Whether the norms of mapped vectors tell something; most maps make all of them 1."""

    rotates = False
    """Whether mapped vectors were rotated at random, so that what holds for some of their coordinates holds for the others."""

    estimates_error = False
    """Whether this, as a decoder, estimates the squared error of what it decodes; `Codec.fit` then calls its `fit_error`."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.d_in, self.d_out = integer("d_in", d_in, 1), integer("d_out", d_out, 1)

    @property
    def is_trained(self) -> bool:
        """Whether there are parameters that gradients change."""
        return any(weight.requires_grad for weight in self.parameters())

    def adapt(self, x: Vectors) -> Self:
        """Learn from training vectors without gradients, such as their mean and scale; by default nothing.

        Args:
            x: `(n, d)` vectors of the original space, also for a decoder, which maps to it.

        Raises:
            InvalidInput: vectors from which nothing can be learned.
        """
        return self

    def with_error(self) -> "Transform":
        """This as a decoder with one more output, the estimated squared error; itself where it estimates none."""
        return self

    def fit_error(self, points: Tensor, errors: Tensor) -> None:
        """Learn to estimate the squared error, where `estimates_error`.

        Args:
            points: `(n, d_in)` float32, quantized.
            errors: `(n,)` float32 squared distances between what the points are decoded to and the vectors that were coded.
        """

    def check_decodes(self, transform: "Transform") -> None:
        """Raise `InvalidInput` unless this decoder fits the transform's output; by default any does."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, d_in)` of any real dtype to `(n, d_out)` float32; for the lattice, rows of L2 norm 1."""


class _Perceptron(Transform):
    """Base of the catalyzer and the decoder: three layers with batch norm and ReLU, and the mean and scale of the data."""

    mean: Tensor
    scale: Tensor

    def __init__(self, d_in: int, d_out: int, hidden: int, d_data: int) -> None:
        super().__init__(d_in, d_out)
        self.hidden = hidden = integer("hidden", hidden, 1)
        self.register_buffer("mean", torch.zeros(d_data))
        self.register_buffer("scale", torch.ones(()))
        self.layers = nn.Sequential(
            nn.Linear(d_in, hidden),
            BatchNorm(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            BatchNorm(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, d_out),
        )

    def adapt(self, x: Vectors) -> Self:
        """Learn the units of the data from `x`: a mean for each dimension, one standard deviation for all.

        Raises:
            InvalidInput: all vectors are equal.
        """
        mean, deviation = mean_and_deviation(x)
        self.mean.copy_(mean)
        self.scale.copy_(deviation)
        return self


class Catalyzer(_Perceptron):
    """The network f of section 5.2: a 3-layer MLP with batch norm and ReLU, its output on the unit sphere.

    Args:
        d_in: dimension of the input.
        d_out: dimension of the output.
        hidden: width of the two hidden layers.
        spheres: for a product of spheres, the dimension of each block of the output; None is one sphere.

    Shape:
        `(n, d_in)` of any real dtype to `(n, d_out)`, rows of L2 norm 1. A block of d dimensions has the squared norm
        d / d_out.

    Raises:
        InvalidInput: blocks that do not add up to d_out.

    >>> f = Catalyzer(d_in=128, d_out=24).eval()
    >>> torch.allclose(f(torch.rand(5, 128)).norm(dim=1), torch.ones(5))
    True
    >>> f = Catalyzer(d_in=128, d_out=48, spheres=[24, 24]).eval()
    >>> torch.allclose(f(torch.rand(5, 128))[:, :24].norm(dim=1), torch.tensor(0.5).sqrt())
    True
    """

    label = "catalyzer"

    def __init__(self, d_in: int, d_out: int, hidden: int = 1024, spheres: Sequence[int] | None = None) -> None:
        super().__init__(d_in, d_out, hidden, d_data=d_in)
        self.spheres = None if spheres is None else [integer("dimensions of a sphere", dim, 1) for dim in spheres]
        if self.spheres is not None and sum(self.spheres) != d_out:
            raise InvalidInput(
                f"spheres = {self.spheres} have {sum(self.spheres)} dimensions together, but d_out = {d_out}; make them equal"
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers((x.float() - self.mean) / self.scale).float()
        if self.spheres is None:
            return F.normalize(y)
        parts = y.split(self.spheres, dim=1)
        return torch.cat([F.normalize(part) * (part.shape[1] / self.d_out) ** 0.5 for part in parts], dim=1)


class Decoder(_Perceptron):
    """An MLP like the catalyzer, from the sphere to the original space. The paper has no decoder.

    Args:
        d_in: dimension of the sphere's space.
        d_out: dimension of the original space.
        hidden: width of the two hidden layers.
        estimates_error: estimate the squared error of each decoded vector, linearly from the last hidden layer. Reranking
            adds a share of it to distances, see `catalyzer.Codec`.

    Shape:
        `(n, d_in)`, quantized points of norm 1, to `(n, d_out)` float32 in the original units.

    >>> g = Decoder(d_in=24, d_out=128, estimates_error=True).eval()
    >>> z = F.normalize(torch.rand(5, 24))
    >>> g(z).shape, g.with_error()(z).shape
    (torch.Size([5, 128]), torch.Size([5, 129]))
    """

    label = "decoder"
    error_weight: Tensor
    error_bias: Tensor

    def __init__(self, d_in: int, d_out: int, hidden: int = 1024, estimates_error: bool = False) -> None:
        super().__init__(d_in, d_out, hidden, d_data=d_out)
        self.estimates_error = estimates_error
        if estimates_error:
            self.register_buffer("error_weight", torch.zeros(hidden))
            self.register_buffer("error_bias", torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        return self._output(self._features(z))

    def with_error(self) -> Transform:
        return WithError(self) if self.estimates_error else self

    @torch.no_grad()
    def fit_error(self, points: Tensor, errors: Tensor) -> None:
        """Learn the estimate by ridge regression, in evaluation mode; see `Transform.fit_error`."""
        size = self.hidden + 1  # with a constant
        products, sums = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        for block, of_block in zip(points.split(ERROR_BLOCK), errors.split(ERROR_BLOCK), strict=True):
            features = F.pad(self._features(block.to(self.mean.device)).float(), (0, 1), value=1.0).cpu()
            products += (features.T @ features).double()
            sums += (features.T @ of_block.float()).double()
        mean = products.diagonal()[:-1].mean().clamp(min=1e-9)  # 0 if all units are dead
        damping = ERROR_DAMPING * mean * torch.eye(size)
        damping[-1, -1] = 0
        *weight, bias = torch.linalg.solve(products + damping, sums)
        self.error_weight.copy_(torch.stack(weight))
        self.error_bias.copy_(bias)

    def _features(self, z: Tensor) -> Tensor:
        return self.layers[:-1](z)

    def _output(self, features: Tensor) -> Tensor:
        return self.layers[-1](features).float() * self.scale + self.mean


class _Residual(nn.Sequential):
    """Layers whose inputs are added to their outputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class ResidualDecoder(Decoder):
    """A deeper `Decoder`, more accurate and slower: residual layers lie between its first layer and its last.

    Each of them has batch norm and ReLU before the weights (He et al., arXiv 1603.05027).

    Args:
        d_in: dimension of the sphere's space.
        d_out: dimension of the original space.
        hidden: width of all hidden layers.
        residual_layers: number of residual layers, at most 64.
        estimates_error: see `Decoder`.

    Shape:
        That of `Decoder`.

    Raises:
        InvalidInput: a number of layers out of range.

    >>> g = ResidualDecoder(d_in=24, d_out=128, hidden=256, residual_layers=2).eval()
    >>> g(F.normalize(torch.rand(5, 24))).shape
    torch.Size([5, 128])
    """

    label = "residual decoder"

    def __init__(
        self, d_in: int, d_out: int, hidden: int = 1024, residual_layers: int = 2, estimates_error: bool = False
    ) -> None:
        super().__init__(d_in, d_out, hidden, estimates_error)
        self.residual_layers = integer("residual_layers", residual_layers, 1, MAX_RESIDUAL_LAYERS)
        first, norm, relu, *_, last = self.layers
        residual = (_Residual(BatchNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden)) for _ in range(residual_layers))
        self.layers = nn.Sequential(first, *residual, norm, relu, last)


class WithError(Transform):
    """A decoder that estimates errors: `(n, d_in)` to `(n, d_out + 1)`, whose last column is the estimate."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder.d_in, decoder.d_out + 1)
        self.decoder = decoder
        self.training = decoder.training

    def forward(self, z: Tensor) -> Tensor:
        decoder = self.decoder
        features = decoder._features(z)
        error = features.float() @ decoder.error_weight + decoder.error_bias
        return torch.cat([decoder._output(features), error[:, None]], dim=1)


class PCA(Transform):
    """Principal component analysis to d_out dimensions, then L2 normalization: the ablation of section 5.4.

    Args:
        d_in: dimension of the input.
        d_out: dimension of the output, at most d_in.

    Raises:
        InvalidInput: d_out above d_in.

    >>> x = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    >>> PCA(d_in=8, d_out=4).adapt(x)(torch.from_numpy(x)).shape
    torch.Size([1000, 4])
    """

    label = "PCA"
    matrix: Tensor
    bias: Tensor

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out)
        if d_out > d_in:
            raise InvalidInput(f"PCA cannot map {d_in} dimensions to more, d_out = {d_out}; choose d_out of at most {d_in}")
        self.register_buffer("matrix", torch.zeros(d_out, d_in))
        self.register_buffer("bias", torch.zeros(d_out))

    def adapt(self, x: Vectors) -> Self:
        """Find the principal axes of `x` without outliers (faiss's PCA)."""
        pca = faiss.PCAMatrix(self.d_in, self.d_out)
        pca.train(np.concatenate([*sampled(x)]))
        self.matrix.copy_(torch.from_numpy(faiss.vector_to_array(pca.A).reshape(-1, self.d_in)[: self.d_out]))
        self.bias.copy_(torch.from_numpy(faiss.vector_to_array(pca.b)[: self.d_out]))
        return self

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(F.linear(x.float(), self.matrix, self.bias))


class PCADecoder(Transform):
    """Decodes the outputs of PCA: to the point in the span of its axes that is in this direction from the mean.

    `PCA` keeps only the direction, so all decoded vectors have the same distance from the mean: the average of the training
    vectors. Reranking by decoded vectors does not change the order of a search's candidates.

    Args:
        d_in: dimension of the sphere's space, PCA's output; at most d_out.
        d_out: dimension of the original space.

    Raises:
        InvalidInput: d_in above d_out.

    >>> x = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    >>> PCADecoder(d_in=4, d_out=8).adapt(x)(torch.eye(4)).shape
    torch.Size([4, 8])
    """

    label = "PCA decoder"
    matrix: Tensor
    mean: Tensor

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out)
        if d_in > d_out:
            raise InvalidInput(f"PCA cannot map {d_out} dimensions to more, d_in = {d_in}; choose d_in of at most {d_out}")
        self.register_buffer("matrix", torch.zeros(d_out, d_in))
        self.register_buffer("mean", torch.zeros(d_out))

    def adapt(self, x: Vectors) -> Self:
        """Find the principal axes of `x`, which are those of a `PCA` adapted to the same vectors, and the mean distance."""
        pca = PCA(self.d_out, self.d_in).adapt(x)
        sample = torch.from_numpy(np.concatenate([*sampled(x)]))
        size = F.linear(sample, pca.matrix, pca.bias).norm(dim=1).mean()
        self.mean.copy_(sample.mean(dim=0))
        self.matrix.copy_(size * pca.matrix.T)
        return self

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z.float(), self.matrix, self.mean)


class Identity(Transform):
    """The unchanged vectors, for plain baselines with the same commands; d_out is d_in.

    >>> Identity(d_in=2)(torch.tensor([[3, 4]], dtype=torch.uint8))
    tensor([[3., 4.]])
    """

    label = ""
    keeps_norm = True

    def __init__(self, d_in: int) -> None:
        super().__init__(d_in, d_in)

    def forward(self, x: Tensor) -> Tensor:
        return x.float()
