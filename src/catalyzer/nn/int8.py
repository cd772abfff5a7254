"""Networks in whole numbers: weights and activations of 8 bits, for searches, where one query waits.

Each weight is a whole number times a step of its output, each activation one times a step of its row (dynamic quantization).
All sums of their products are below 2^24, which int32 and float32 hold exactly: so they are the same in any order, on any
processor, of a row alone and of a row in a batch. Batch norm is part of the weights.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from llvmlite.binding import get_host_cpu_features
from torch import Tensor, nn

from catalyzer.nn.transforms import Catalyzer, Decoder, Transform

MOST_LEVELS = 127  # of int8
EXACT = 1 << 24  # whole numbers below it are exact in float32
FEW_ROWS = 2  # that go through the network one by one


class _Layer(NamedTuple):
    """A layer of `n` inputs and `m` outputs.

    Attributes:
        weights: `(n, m)` int8, or float32 where the hardware multiplies these.
        tiles: `(ceil(m / TILE), n, TILE)` int8, the same for one row.
        steps: `(m,)` float32, unit of each output's weights.
        bias: `(m,)` float32.
        levels: of its inputs.
    """

    weights: Tensor
    tiles: np.ndarray
    steps: np.ndarray
    bias: np.ndarray
    levels: np.float32


@cache
def _multiplies_int8() -> bool:
    """Whether products of int8 are exact here and fast; older processors let sums of two of them overflow."""
    features = get_host_cpu_features()
    if not any(features.get(name) for name in ("avx512vnni", "avxvnni", "amx-int8")):
        return False
    a, b = torch.full((64, 64), -MOST_LEVELS, dtype=torch.int8), torch.full((64, 64), MOST_LEVELS, dtype=torch.int8)
    return bool((torch._int_mm(a, b) == -64 * MOST_LEVELS**2).all())


def _layers(network: Catalyzer | Decoder) -> list[_Layer]:
    from catalyzer.nn.int8_kernels import TILE

    layers: list[_Layer] = []
    modules = list(network.layers)
    for at, module in enumerate(modules):
        if not isinstance(module, nn.Linear):
            continue
        weight, bias = module.weight.detach().double().cpu(), module.bias.detach().double().cpu()
        norm = modules[at + 1] if at + 1 < len(modules) else None
        if isinstance(norm, nn.BatchNorm1d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            mean, variance = norm.running_mean.double().cpu(), norm.running_var.double().cpu()
            factor = norm.weight.detach().double().cpu() / (variance + norm.eps).sqrt()
            weight, bias = weight * factor[:, None], (bias - mean) * factor + norm.bias.detach().double().cpu()
        m, n = weight.shape
        levels = min(MOST_LEVELS, int((EXACT / n) ** 0.5 - 1e-9))
        steps = weight.abs().amax(dim=1) / levels
        whole = (weight / torch.where(steps == 0, 1, steps)[:, None]).round().to(torch.int8)
        tiles = np.zeros((-(-m // TILE), n, TILE), np.int8)
        for j in range(m):
            tiles[j // TILE, :, j % TILE] = whole[j].numpy()
        of_batch = whole if _multiplies_int8() else whole.float()
        layers.append(_Layer(of_batch.T, tiles, steps.float().numpy(), bias.float().numpy(), np.float32(levels)))
    return layers


class Int8(Transform):
    """A trained perceptron in whole numbers, as it is now: what it maps differs from the network's by some percent of its noise.

    Args:
        network: a `Catalyzer` or a `Decoder`, whose weights are copied.

    >>> f = Catalyzer(d_in=16, d_out=8, hidden=64).eval()
    >>> x = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
    >>> whole = Int8(f)
    >>> bool(np.array_equal(whole.map(x)[7], whole.map(x[7:8])[0]))
    True
    """

    def __init__(self, network: Catalyzer | Decoder) -> None:
        super().__init__(network.d_in, network.d_out)
        self._layers = _layers(network)
        mean, scale = network.mean.float().cpu().numpy(), np.float32(network.scale.item())
        self._normalized = isinstance(network, Catalyzer)
        inputs, outputs = (mean, np.float32(1) / scale), (np.float32(1), np.zeros(network.d_out, np.float32))
        if not self._normalized:
            inputs, outputs = (np.zeros(network.d_in, np.float32), np.float32(1)), (scale, mean)
        self._inputs, self._outputs = inputs, (*outputs, self._normalized)
        self._of_row = tuple((layer.tiles, layer.steps, layer.bias) for layer in self._layers)
        self._levels = tuple(layer.levels for layer in self._layers)

    def map(self, x: np.ndarray) -> np.ndarray:
        """Map `(n, d_in)` float32 to `(n, d_out)` float32, each row as if it were alone."""
        from catalyzer.nn.int8_kernels import map_row, quantize_hidden, quantize_inputs, write_outputs

        out = np.empty((len(x), self.d_out), np.float32)
        if len(x) <= FEW_ROWS:
            for row in range(len(x)):
                map_row(x[row], *self._inputs, self._levels, self._of_row, *self._outputs, out[row])
            return out
        steps, q = np.empty(len(x), np.float32), np.empty((len(x), self.d_in), np.int8)
        quantize_inputs(x, *self._inputs, self._levels[0], q, steps)
        for layer, following in zip(self._layers, self._layers[1:], strict=False):
            sums = _product(q, layer.weights)
            q = np.empty(sums.shape, np.int8)
            quantize_hidden(sums, steps, layer.steps, layer.bias, following.levels, q, steps)
        last = self._layers[-1]
        write_outputs(_product(q, last.weights), steps, last.steps, last.bias, *self._outputs, out)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.map(np.ascontiguousarray(x.float().numpy())))


def _product(q: np.ndarray, weights: Tensor) -> np.ndarray:
    """The exact product of `(n, k)` int8 and `(k, m)` whole numbers, `(n, m)`."""
    rows = torch.from_numpy(q)
    with torch.inference_mode():
        return (torch._int_mm(rows, weights) if weights.dtype == torch.int8 else rows.float() @ weights).numpy()
