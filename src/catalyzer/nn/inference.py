"""Transforms for searches: fast for one query, and with the same bits for a row alone and in a batch.

An MLP computes in 8-bit integers. Each weight is an integer times a step of its output, and each activation an integer
times a step of its row (dynamic quantization). All sums of their products are below 2^24, and so exact in int32 and float32:
they are the same in any order, on any processor and in any batch. Batch norm is folded into the weights.
"""

from abc import ABC, abstractmethod
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from llvmlite.binding import get_host_cpu_features
from torch import Tensor, nn

from catalyzer.nn.linear import Linear, LinearDecoder
from catalyzer.nn.transforms import PCA, Catalyzer, Decoder, PCADecoder, ResidualDecoder, Transform, WithError

MOST_LEVELS = 127  # of int8
EXACT = 1 << 24  # whole numbers below it are exact in float32
FEW_ROWS = 2  # that go through the network one by one
BLOCK = 1 << 11  # rows that go through it together, which the processor's cache holds


class _Layer(NamedTuple):
    """A layer of `n` inputs and `m` outputs.

    Attributes:
        weights: `(n, m)` int8, or float32 if the hardware multiplies these; both padded to multiples of TILE.
        tiles: `(ceil(m / TILE), n, TILE)` int8, the same weights for one row.
        steps: `(m,)` float32, unit of each output's weights.
        bias: `(m,)` float32.
        levels: number of levels of its inputs.
        norm: `(2, m)` float32, factors and summands of the batch norm that follows a residual layer; else `(2, 0)`.
    """

    weights: Tensor
    tiles: np.ndarray
    steps: np.ndarray
    bias: np.ndarray
    levels: np.float32
    norm: np.ndarray


@cache
def _multiplies_int8() -> bool:
    """Whether products of int8 are exact here and fast; older processors let sums of two of them overflow."""
    features = get_host_cpu_features()
    if not any(features.get(name) for name in ("avx512vnni", "avxvnni", "amx-int8")):
        return False
    a, b = torch.full((64, 64), -MOST_LEVELS, dtype=torch.int8), torch.full((64, 64), MOST_LEVELS, dtype=torch.int8)
    return bool((torch._int_mm(a, b) == -64 * MOST_LEVELS**2).all())


def _layers(network: Catalyzer | Decoder, more: tuple[Tensor, Tensor] | None = None) -> list[_Layer]:
    """The layers of a network, with the weights `(hidden,)` and bias of one more output, if there is one."""
    from catalyzer.nn.inference_kernels import TILE

    layers: list[_Layer] = []
    modules = [module for module in network.layers.modules() if not isinstance(module, nn.Sequential)]
    for at, module in enumerate(modules):
        if not isinstance(module, nn.Linear):
            continue
        weight, bias = module.weight.detach().double().cpu(), module.bias.detach().double().cpu()
        follows = modules[at + 1] if at + 1 < len(modules) else None
        norm = np.empty((2, 0), np.float32)
        if isinstance(follows, nn.BatchNorm1d):
            assert follows.running_mean is not None
            assert follows.running_var is not None
            mean, variance = follows.running_mean.double().cpu(), follows.running_var.double().cpu()
            factor = follows.weight.detach().double().cpu() / (variance + follows.eps).sqrt()
            summand = follows.bias.detach().double().cpu() - mean * factor
            if isinstance(network, ResidualDecoder):  # the sum that is normalized is also passed on
                norm = torch.stack([factor, summand]).float().numpy()
            else:
                weight, bias = weight * factor[:, None], bias * factor + summand
        if more is not None and at + 1 == len(modules):
            of_more, bias_of_more = (each.detach().double().cpu() for each in more)
            weight, bias = torch.cat([weight, of_more[None]]), torch.cat([bias, bias_of_more[None]])
        m, n = weight.shape
        levels = min(MOST_LEVELS, int((EXACT / n) ** 0.5 - 1e-9))
        steps = weight.abs().amax(dim=1) / levels
        whole = (weight / torch.where(steps == 0, 1, steps)[:, None]).round().to(torch.int8)
        rows = nn.functional.pad(whole, (0, 0, 0, -m % TILE))
        tiles = np.ascontiguousarray(rows.reshape(-1, TILE, n).transpose(1, 2).numpy())
        padded = nn.functional.pad(rows, (0, -n % TILE)).T  # torch's product of int8 is wrong for some other shapes
        weights = padded if _multiplies_int8() else padded.float()
        layers.append(_Layer(weights, tiles, steps.float().numpy(), bias.float().numpy(), np.float32(levels), norm))
    return layers


class RowWise(Transform, ABC):
    """A transform with its weights at construction; `map` is faster than `forward`, with the same bits for each row."""

    @abstractmethod
    def map(self, x: np.ndarray) -> np.ndarray:
        """Map `(n, d_in)` float32 to `(n, d_out)` float32, with the same result for a row alone and in a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.map(np.ascontiguousarray(x.detach().float().numpy())))


class Int8Perceptron(RowWise):
    """A trained MLP in 8-bit integers, with its current weights. Outputs differ by about 1%.

    Args:
        network: `Catalyzer` or `Decoder`, with or without an estimate of its error, whose weights are copied.

    >>> f = Catalyzer(d_in=16, d_out=8, hidden=64).eval()
    >>> x = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
    >>> whole = Int8Perceptron(f)
    >>> bool(np.array_equal(whole.map(x)[7], whole.map(x[7:8])[0]))
    True
    """

    def __init__(self, network: Catalyzer | Decoder | WithError) -> None:
        super().__init__(network.d_in, network.d_out)
        estimate = None
        if isinstance(network, WithError):
            network = network.decoder
            estimate = network.error_weight / network.scale, network.error_bias / network.scale  # `scale` comes after
        self._layers = _layers(network, estimate)
        mean, scale = network.mean.float().cpu().numpy(), np.float32(network.scale.item())
        spheres = (network.spheres or [network.d_out]) if isinstance(network, Catalyzer) else []
        inputs, outputs = (mean, np.float32(1) / scale), (np.float32(1), np.zeros(network.d_out, np.float32))
        if isinstance(network, Decoder):
            offsets = mean if estimate is None else np.append(mean, np.float32(0))
            inputs, outputs = (np.zeros(network.d_in, np.float32), np.float32(1)), (scale, offsets)
        self._inputs, self._outputs = inputs, (*outputs, np.cumsum(spheres, dtype=np.int64))
        self._of_row = tuple((layer.tiles, layer.steps, layer.bias, layer.norm) for layer in self._layers)
        self._levels = tuple(layer.levels for layer in self._layers)

    def map(self, x: np.ndarray) -> np.ndarray:
        from catalyzer.nn.inference_kernels import map_row

        out = np.empty((len(x), self.d_out), np.float32)
        if len(x) <= FEW_ROWS:
            for row in range(len(x)):
                map_row(x[row], *self._inputs, self._levels, self._of_row, *self._outputs, out[row])
        else:
            for first in range(0, len(x), BLOCK):
                self._map_block(x[first : first + BLOCK], out[first : first + BLOCK])
        return out

    def _map_block(self, x: np.ndarray, out: np.ndarray) -> None:
        from catalyzer.nn.inference_kernels import quantize_hidden, quantize_inputs, write_outputs

        steps, q = np.empty(len(x), np.float32), np.zeros((len(x), len(self._layers[0].weights)), np.int8)
        carried = np.zeros((len(x), self._layers[0].norm.shape[1]), np.float32)
        quantize_inputs(x, *self._inputs, self._levels[0], q, steps)
        for layer, following in zip(self._layers, self._layers[1:], strict=False):
            sums = _product(q, layer.weights)
            q = np.zeros(sums.shape, np.int8)
            quantize_hidden(sums, steps, layer.steps, layer.bias, layer.norm, carried, following.levels, q, steps)
        last = self._layers[-1]
        write_outputs(_product(q, last.weights), steps, last.steps, last.bias, *self._outputs, out)


class _Affine(RowWise):
    """A linear map, or its decoder."""

    def __init__(self, linear: PCA | Linear | PCADecoder | LinearDecoder) -> None:
        super().__init__(linear.d_in, linear.d_out)
        normalizes = isinstance(linear, PCA | Linear) and not linear.keeps_norm
        offset = linear.bias if isinstance(linear, PCA | Linear) else linear.mean
        self._matrix, self._offset = np.ascontiguousarray(linear.matrix.cpu().numpy().T), offset.cpu().numpy()
        self._ends = np.array([linear.d_out] if normalizes else [], np.int64)

    def map(self, x: np.ndarray) -> np.ndarray:
        from catalyzer.nn.inference_kernels import map_affine

        out = np.empty((len(x), self.d_out), np.float32)
        map_affine(x, self._matrix, self._offset, self._ends, out)
        return out


def row_wise(transform: Transform) -> Transform:
    """The transform for searches: `RowWise` for those of this package, unchanged for others."""
    if type(transform) in (Catalyzer, Decoder, ResidualDecoder, WithError):
        return Int8Perceptron(transform)  # type: ignore[arg-type]
    affine = type(transform) in (PCA, PCADecoder, Linear, LinearDecoder)
    return _Affine(transform) if affine else transform  # type: ignore[arg-type]


def _product(q: np.ndarray, weights: Tensor) -> np.ndarray:
    """The exact product of `(n, k)` int8 and `(k, m)` integers, `(n, m)` int32 or float32."""
    rows = torch.from_numpy(q)
    return (torch._int_mm(rows, weights) if weights.dtype == torch.int8 else rows.float() @ weights).numpy()
