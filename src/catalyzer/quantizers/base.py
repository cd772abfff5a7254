"""The interface of all quantizers, and the search of all that decode."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self, SupportsIndex

import numpy as np
import torch
from torch import Tensor, nn

from catalyzer._faiss import faiss
from catalyzer.errors import InvalidInput
from catalyzer.files.vectors import BLOCK, as_float32, check_finite
from catalyzer.neighbors import knn_of_blocks
from catalyzer.parts import Part
from catalyzer.progress import progress
from catalyzer.scan import check_search

MIN_TRAINING = 256  # codebooks of 256 entries cannot be learned from fewer vectors
MAX_TRAINING = 100_000  # faiss's own limit is 65,536; the baselines shall not suffer from ours


class Quantizer(Part, ABC):
    """Turns `(n, dim)` float32 vectors into `(n, code_size)` uint8 codes, and finds the codes nearest to a query.

    A subclass takes `dim`, keeps its arguments as attributes (see `Part`), sets `bits`, and defines `encode` and `decode`.
    Optional methods add features: `fit` learns, `straight_through` allows training through it, `nearest` enables `refine`,
    `search_lists` enables inverted lists. Files store what `fit` learns if it is arrays or numbers whose names end in an
    underscore, or if `state_dict` and `load_state_dict` return and restore it.

    Attributes:
        dim: dimension of the vectors.
        bits: bits of a code that carry information.
        code_size: bytes of a code, `ceil(bits / 8)`; a product of spheres gives each block whole bytes.
        symmetric: whether search quantizes the query as well.
        gain: whether a code keeps the norm of a vector, or with "blocks" those of its blocks. Without it, a transform may make
            all norms 1.

    >>> class Rounding(Quantizer):  # a byte a coordinate
    ...     def __init__(self, dim: int) -> None:
    ...         self.dim, self.bits = dim, 8 * dim
    ...     def encode(self, x: np.ndarray) -> np.ndarray:
    ...         return (127.5 * (x + 1)).round().astype(np.uint8)
    ...     def decode(self, codes: np.ndarray) -> np.ndarray:
    ...         return codes.astype(np.float32) / 127.5 - 1
    >>> quantizer = Rounding(dim=2)
    >>> codes = quantizer.encode(np.array([[0.6, 0.8], [1.0, 0.0]], np.float32))
    >>> quantizer.search(np.array([[0.0, 1.0]], np.float32), codes, k=1)[1].tolist()
    [[0]]
    """

    dim: int
    bits: int
    symmetric: bool = False
    gain: bool | Literal["blocks"] | None = None

    @classmethod
    def default_dim(cls, bits: int) -> int:  # noqa: ARG003 (some depend on it)
        """The default dimension of mapped vectors."""
        return 24

    @property
    def code_size(self) -> int:
        return -(-self.bits // 8)

    @property
    def spheres(self) -> tuple[int, ...]:
        """Dimensions of the blocks that are coded by their direction; one block, unless the quantizer is a product."""
        return (self.dim,)

    @classmethod
    def can(cls, method: str) -> bool:
        """Whether the class defines one of the optional methods.

        >>> from catalyzer.quantizers import ProductQuantizer
        >>> ProductQuantizer.can("fit"), ProductQuantizer.can("straight_through")
        (True, False)
        """
        return getattr(cls, method) is not getattr(Quantizer, method)

    @property
    def is_learned(self) -> bool:
        """Whether `fit` learns anything; a quantizer without a codebook does not."""
        return self.can("fit")

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` has been called, or nothing needs to be learned."""
        return not self.is_learned or bool(self.state_dict())

    def fit(self, x: np.ndarray) -> Self:
        """Learn from `(n, dim)` float32 training vectors; fixed quantizers learn nothing."""
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """The learned state, by name."""
        kinds = (np.ndarray, np.number, float, int)
        learned = {name: value for name, value in vars(self).items() if name.endswith("_") and isinstance(value, kinds)}
        return {name: torch.from_numpy(np.require(value, requirements="C")) for name, value in learned.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the learned state of an equal quantizer.

        Raises:
            InvalidInput: tensors of another quantizer.
        """
        if not self.is_learned and state:
            raise InvalidInput(f"{self.label} learns nothing, but there is {next(iter(state))}")
        for name, tensor in state.items():
            if name.startswith("_") or not name.endswith("_"):
                raise InvalidInput(f"{self.label}: {name} is not the name of what a quantizer has learned")
            setattr(self, name, tensor.numpy())

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        # As in a file: faiss's objects can be neither pickled nor copied, and other processes need them.
        if not self.is_learned:
            return super().__reduce_ex__(protocol)
        return _remade, (type(self), self.arguments, self.state_dict())

    def straight_through(self) -> nn.Module:
        """Quantization as a layer whose backward pass is the identity; for fixed quantizers.

        Raises:
            InvalidInput: no network can be trained through this quantizer.
        """
        raise InvalidInput(f"no network can be trained through {type(self).__name__}: it has no straight_through")

    def nearest(self, x: np.ndarray, k: int) -> np.ndarray:
        """The k decoded points nearest to each vector, `(n, k, dim)` float32, nearest first.

        Raises:
            InvalidInput: this quantizer finds only the nearest one.
        """
        raise InvalidInput(
            f"refine needs lattice points, but {type(self).__name__} has none; use quantizer=lattice, or refine=1"
        )

    def first(self, blocks: int) -> "Quantizer":
        """The quantizer of the first blocks of these codes, for a search that reads only these.

        It codes the first `dim` coordinates, in the first `code_size` bytes.

        Raises:
            InvalidInput: codes without blocks, or with fewer blocks.
        """
        raise InvalidInput(f"blocks = {blocks} is for codes of quantizer=lattice, and {type(self).__name__} made these")

    def of_rotated(self) -> "Quantizer":
        """A copy whose search may assume that vectors were rotated at random, if that makes it faster."""
        return self

    @abstractmethod
    def encode(self, x: np.ndarray) -> np.ndarray:
        """Encode `(n, dim)` float32 vectors to `(n, code_size)` uint8 codes."""

    @abstractmethod
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decode the codes to `(n, dim)` float32 vectors."""

    def checked(self, x: np.ndarray) -> np.ndarray:
        """`(n, dim)` float32 vectors to encode.

        Raises:
            InvalidInput: another shape, NaN or infinity, or a quantizer that is not fitted.
        """
        if not self.is_fitted:
            raise InvalidInput(f"{type(self).__name__} is not fitted; call fit(train) first")
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise InvalidInput(f"expected vectors of shape (n, {self.dim}), got {x.shape}")
        x = as_float32(x)
        check_finite(x, "vectors")
        return x

    def check_codes(self, codes: np.ndarray, first_row: int = 0) -> None:
        """Raise `InvalidInput`, with the row's number, if a row of `(n, code_size)` uint8 is not a code.

        Args:
            codes: codes from any source.
            first_row: row number of the first code in an error.
        """

    def search(self, queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k codes nearest to each query by asymmetric distance: queries are not quantized (section 4.2).

        Args:
            queries: `(nq, dim)` float32.
            codes: `(n, code_size)` uint8.
            k: number of codes per query, at most n.

        Returns:
            `D` `(nq, k)` float32 squared L2 distances to the decoded vectors, ascending, and `I` `(nq, k)` int64 rows.
        """
        k = self.check_search(queries, codes, k)

        def decoded() -> Iterator[np.ndarray]:
            with progress("searching", len(codes), "codes") as advance:
                for start in range(0, len(codes), BLOCK):
                    block = codes[start : start + BLOCK]
                    yield self.decode(block)
                    advance(len(block))

        return knn_of_blocks(queries, decoded(), k)

    def search_part(self, queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """`search` with unrounded distances, so that the results of several parts of the codes merge exactly."""
        return self.search(queries, codes, k)

    def search_lists(
        self, queries: np.ndarray, codes: np.ndarray, offsets: np.ndarray, probed: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """`search` in some lists of codes for each query; see `catalyzer.scan.search_lists`.

        Raises:
            InvalidInput: this quantizer can only search all codes.
        """
        raise InvalidInput(f"expected quantizer=lattice for inverted lists, got {type(self).__name__}; use ivf=0")

    def check_search(self, queries: np.ndarray, codes: np.ndarray, k: int) -> int:
        """k as a Python integer; raises `InvalidInput` unless shapes and k fit together."""
        return check_search(queries, codes, k, self.dim, self.code_size)


class FaissQuantizer(Quantizer):
    """Base of quantizers whose state is in faiss's vectors."""

    @abstractmethod
    def _learned(self) -> dict[str, tuple[Any, int]]:
        """faiss's vectors by name, and the number of float32 in each after training."""

    @abstractmethod
    def _trained(self) -> Sequence[Any]:
        """faiss's objects with a flag for trained ones."""

    @property
    def is_fitted(self) -> bool:
        return all(each.is_trained for each in self._trained())

    def state_dict(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(faiss.vector_to_array(vector)) for name, (vector, _) in self._learned().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        learned = self._learned()
        check_state(self, state, **{name: (size,) for name, (_, size) in learned.items()})
        for name, (vector, _) in learned.items():
            faiss.copy_array_to_vector(state[name].numpy(), vector)
        for each in self._trained():
            each.is_trained = True


def check_state(quantizer: Quantizer, state: Mapping[str, Tensor], **shapes: tuple[int, ...]) -> None:
    """Raise `InvalidInput` unless `state` has exactly these float32 tensors with these shapes."""
    given = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    if given != {name: (shape, torch.float32) for name, shape in shapes.items()}:
        expected = ", ".join(f"{name} {shape} float32" for name, shape in shapes.items())
        raise InvalidInput(f"{quantizer.label}: expected {expected}; got {given or 'nothing'}")


def _remade(cls: type[Quantizer], arguments: dict[str, Any], state: dict[str, Tensor]) -> Quantizer:
    quantizer = cls(**arguments)
    quantizer.load_state_dict(state)
    return quantizer
