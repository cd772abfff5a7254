"""Linear maps for products of spheres: principal axes, damped and rotated.

With the eigenvalues Λ of the covariance and the principal axes V, y = R Λ^-p Vᵀ (x - mean). A rotated lattice has the same
error in each coordinate of Λ^-p Vᵀ x, and Λ^p times that in x; the sum of the squares is smallest for p = 1/4. But the search
compares y, whose distances equal those of x only for p = 0.

R rotates all axes together, so that all blocks have equal shares of the norm. Nested, it rotates the axes of each block alone:
the first block has the axes of the largest variance and is a code by itself. It has the norm s_b on average. A quantizer with
a gain for each block is given s_b. Without gains, the lattice gives a block of d_b of d_out dimensions the norm
c_b = √(d_b / d_out); then y is multiplied by s_b / c_b block by block, and q · z is what it is for points with the norms s_b.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from catalyzer.errors import InvalidInput, integer
from catalyzer.files.vectors import Vectors
from catalyzer.nn.statistics import mean_and_covariance
from catalyzer.nn.transforms import Transform

DAMPING = 0.1
SUBSPACE = 64  # directions more than wanted, with which principal axes are iterated
ITERATIONS = 12
LEAST_VARIANCE = 1e-9  # of the largest; what has less is a constant, which damping would blow up


class Axes(NamedTuple):
    """Principal axes of vectors.

    Attributes:
        mean: `(d,)` float64.
        variances: `(count,)` float64, the largest first.
        directions: `(d, count)` float64, of norm 1.
    """

    mean: Tensor
    variances: Tensor
    directions: Tensor

    @classmethod
    def of(cls, x: Vectors, count: int) -> Self:
        """The first axes of at most 131,072 of the vectors `(n, d)`, without outliers.

        Raises:
            InvalidInput: all vectors are equal.
        """
        mean, covariance = mean_and_covariance(x)
        width = min(len(mean), count + SUBSPACE)
        # Of few of many axes, iterating a subspace takes a tenth of the time that all eigenvectors take.
        basis = torch.eye(len(mean), dtype=torch.float64)
        if width < len(mean):
            random = torch.Generator().manual_seed(0)
            basis = torch.randn(len(mean), width, dtype=torch.float64, generator=random)
            for _ in range(ITERATIONS):
                basis = torch.linalg.qr(covariance @ basis)[0]
        values, vectors = torch.linalg.eigh(basis.T @ covariance @ basis)
        if not values.max() > 0:
            raise InvalidInput("all training vectors are equal; there is nothing to learn from them")
        directions = (basis @ vectors).flip(1)[:, :count]
        # A sign of its own for each, so that the same data give the same map.
        signs = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
        variances = values.flip(0)[:count].clamp(min=float(values.max()) * LEAST_VARIANCE)
        return cls(mean, variances, directions * signs)

    def first(self, count: int) -> Self:
        """The first of these axes."""
        return self._replace(variances=self.variances[:count], directions=self.directions[:, :count])


class Linear(Transform):
    """PCA to d_out dimensions, damped and rotated at random, then L2 normalization: fitted in seconds.

    Args:
        d_in: dimension of the input.
        d_out: dimension of the output, at most d_in.
        damping: p, from 0 to 0.5: the power of their variance by which principal coordinates are divided; None is 0.1.
        nested: whether each of the `spheres` has the next principal axes, so that the first blocks of a code are codes
            themselves.
        spheres: dimensions of the blocks of the output, for `nested`.
        gain: whether mapped vectors keep their norms, in units of the root mean square, for a quantizer that codes them.
        seed: seed of the rotation.

    Raises:
        InvalidInput: d_out above d_in, another damping, or blocks that do not add up to d_out.

    >>> x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    >>> Linear(d_in=8, d_out=4).adapt(x.numpy())(x).norm(dim=1).allclose(torch.ones(1000))
    True
    """

    label = "linear"
    matrix: Tensor
    bias: Tensor

    def __init__(
        self,
        d_in: int,
        d_out: int,
        damping: float | None = None,
        seed: int = 0,
        nested: bool = False,
        spheres: Sequence[int] | None = None,
        gain: bool = False,
    ) -> None:
        super().__init__(d_in, d_out)
        self.damping = _checked_damping(d_in, d_out, damping)
        self.seed, self.gain = integer("seed", seed, 0), gain
        self.nested, self.spheres = nested, _blocks(nested, spheres, d_out)
        self.register_buffer("matrix", torch.zeros(d_out, d_in))
        self.register_buffer("bias", torch.zeros(d_out))

    @property
    def keeps_norm(self) -> bool:  # type: ignore[override]
        return self.gain

    @property
    def rotates(self) -> bool:  # type: ignore[override]
        return not self.nested

    def adapt(self, x: Vectors) -> Self:
        """Find the principal axes of at most 131,072 of the vectors, without outliers."""
        return self.take(Axes.of(x, self.d_out))

    def take(self, axes: Axes) -> Self:
        """`adapt` with d_out known principal axes."""
        rotation, norm = _rotation(axes, self.damping, self.spheres, self.gain, self.seed)
        matrix = rotation @ (axes.directions * axes.variances**-self.damping).T / norm
        self.matrix.copy_(matrix)
        self.bias.copy_(-matrix @ axes.mean)
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x.float(), self.matrix, self.bias)
        return y if self.gain else F.normalize(y)


class LinearDecoder(Transform):
    """Decodes the outputs of `Linear`: undoes rotation and damping, and restores the norm of centred vectors.

    Args:
        d_in: dimension of the latent space, at most d_out.
        d_out: dimension of the original space.
        damping: damping of the `Linear`, like the other arguments.
        seed: seed of the rotation.
        nested: whether each block has its own axes.
        spheres: dimensions of the blocks.
        gain: whether the quantizer codes norms.

    Raises:
        InvalidInput: d_in above d_out, another damping, or blocks that do not add up to d_in.

    >>> x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)).numpy()
    >>> f, g = Linear(d_in=8, d_out=8).adapt(x), LinearDecoder(d_in=8, d_out=8).adapt(x)
    >>> y = torch.from_numpy(x[:1])
    >>> bool(F.cosine_similarity(g(f(y)) - torch.from_numpy(x).mean(0), y - torch.from_numpy(x).mean(0)) > 0.9999)
    True
    """

    label = "linear decoder"
    matrix: Tensor
    mean: Tensor

    def __init__(
        self,
        d_in: int,
        d_out: int,
        damping: float | None = None,
        seed: int = 0,
        nested: bool = False,
        spheres: Sequence[int] | None = None,
        gain: bool = False,
    ) -> None:
        super().__init__(d_in, d_out)
        self.damping, self.seed = _checked_damping(d_out, d_in, damping), integer("seed", seed, 0)
        self.nested, self.spheres, self.gain = nested, _blocks(nested, spheres, d_in), gain
        self.register_buffer("matrix", torch.zeros(d_out, d_in))
        self.register_buffer("mean", torch.zeros(d_out))

    def adapt(self, x: Vectors) -> Self:
        """Find the principal axes; they are those of a `Linear` adapted to the same vectors."""
        return self.take(Axes.of(x, self.d_in))

    def take(self, axes: Axes) -> Self:
        """`adapt` with d_in known principal axes."""
        rotation, norm = _rotation(axes, self.damping, self.spheres, self.gain, self.seed)
        self.mean.copy_(axes.mean)
        self.matrix.copy_(norm * (axes.directions * axes.variances**self.damping) @ rotation.T)
        return self

    def check_decodes(self, transform: Transform) -> None:
        if not isinstance(transform, Linear):
            raise InvalidInput(f"decoder=linear decodes what catalyzer=linear maps; got {type(transform).__name__}")
        for name in ("damping", "seed", "nested", "spheres"):
            if getattr(transform, name) != getattr(self, name):
                raise InvalidInput(
                    f"catalyzer=linear has {name} {getattr(transform, name)}, and its decoder {getattr(self, name)}; "
                    "give both the same"
                )

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z.float(), self.matrix, self.mean)


def _checked_damping(d: int, count: int, damping: float | None) -> float:
    if count > d:
        raise InvalidInput(f"a linear map has at most as many dimensions as its input, {d}; got d_out = {count}")
    damping = DAMPING if damping is None else damping
    if not 0 <= damping <= 0.5:
        raise InvalidInput(f"damping must be between 0 and 0.5, got {damping}")
    return damping


def _blocks(nested: bool, spheres: Sequence[int] | None, dim: int) -> list[int] | None:
    if not nested:
        return None
    if spheres is None:
        raise InvalidInput("nested=true is for codes of several blocks, as those of more than 64 bits have; use nested=false")
    if sum(spheres) != dim:
        raise InvalidInput(f"spheres = {spheres} have {sum(spheres)} dimensions together, and the codes {dim}")
    return [integer("dimensions of a sphere", each, 1) for each in spheres]


def block_norms(variances: Tensor, damping: float, spheres: Sequence[int]) -> list[float]:
    """The norms of nested blocks of a `Linear` that keeps norms, as root mean squares.

    Args:
        variances: `(dim,)` float64 variances of the principal axes.
        damping: damping of the map.
        spheres: dimensions of the blocks.

    >>> block_norms(torch.tensor([9.0, 7.0, 5.0, 4.0], dtype=torch.float64), 0.0, [2, 2])
    [0.8, 0.6]
    """
    squares = variances ** (1 - 2 * damping)
    return [float(part.sum().sqrt() / squares.sum().sqrt()) for part in squares.split([*spheres])]


def _rotation(axes: Axes, damping: float, spheres: list[int] | None, gain: bool, seed: int) -> tuple[Tensor, Tensor]:
    """The rotation of damped coordinates, `(dim, dim)`, and their norm, as root mean square."""
    squares = axes.variances ** (1 - 2 * damping)
    dim, norm = len(squares), squares.sum().sqrt()
    random = torch.Generator().manual_seed(seed)
    blocks = [
        torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=random))[0]
        * (1.0 if gain else part.sum().sqrt() / norm / (width / dim) ** 0.5)
        for width, part in ((len(part), part) for part in squares.split(spheres or [dim]))
    ]
    return torch.block_diag(*blocks), norm
