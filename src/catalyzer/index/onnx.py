"""Networks as ONNX files, for use without PyTorch, with the metric's transformations of vectors before and after them."""

import logging
import warnings
from operator import methodcaller
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catalyzer.codec import Codec
from catalyzer.errors import InvalidInput, MissingPackage
from catalyzer.files.atomic import write_atomically
from catalyzer.metric import Metric
from catalyzer.nn import Catalyzer, Transform

CHECKED_VECTORS = 100  # random ones, on which a file must compute what torch does
RELATIVE_TOLERANCE = 1e-4  # of the largest number that torch computes


def export(
    codec: Codec, metric: Metric, onnx: Path, decoder: Path | None = None, query: Path | None = None
) -> dict[Path, float]:
    """Write transform, decoder and query network as ONNX files with batches of any size; all float32, in the user's units.

    Before a file is written, outputs of onnxruntime and torch are compared on random vectors: with the mean and scale that a
    `Catalyzer` has learned, else standard normal ones.

    Args:
        codec: codec with the networks.
        metric: metric of the index or the run.
        onnx: file of the transform: `vectors` (batch, d), to be stored, to `latent` (batch, d_out).
        decoder: file of the decoder: `latent` (batch, d_out), rows of norm 1, to `vectors` (batch, d).
        query: file of the map of queries: `queries` (batch, d) to `latent` (batch, d_out).

    Returns:
        For each file the largest difference from torch.

    Raises:
        InvalidInput: the codec lacks a network to export, ONNX cannot express a network, or the outputs of onnxruntime and
            torch differ.
        MissingPackage: onnxruntime or onnxscript is not installed.
        Unavailable: a file cannot be written.
    """
    transform = codec.transform
    if not transform.state_dict():
        raise InvalidInput(f"{type(transform).__name__} has no weights to export; train a network, as with catalyzer=mlp")
    if decoder is not None and codec.decoder is None:
        raise InvalidInput("there is no decoder to export; leave out its file, or train one with decoder=mlp")
    if query is not None and codec.query is None and metric.name != "ip":
        raise InvalidInput("there is no query network to export, since queries use the transform; leave out its file")
    d = transform.d_in - metric.extra
    random = torch.Generator().manual_seed(0)
    x = torch.randn(CHECKED_VECTORS, d, generator=random)
    if isinstance(transform, Catalyzer):
        x = transform.mean[:d] + transform.scale * x
    z = F.normalize(torch.randn(CHECKED_VECTORS, transform.d_out, generator=random))

    made = {onnx: _checked(_Stored(metric, transform), "vectors", x, "latent", _torch(transform, metric.base(x.numpy())))}
    if query is not None:
        network = codec.query or transform
        expected = _torch(network, metric.queries(x.numpy()))
        made[query] = _checked(_Queries(metric, network), "queries", x, "latent", expected)
    if decoder is not None:
        assert codec.decoder is not None
        expected = metric.restore(_torch(codec.decoder, z.numpy()))
        made[decoder] = _checked(_Decoded(metric, codec.decoder), "latent", z, "vectors", expected)
    for path, (content, _) in made.items():
        write_atomically(path, methodcaller("write", content))
    return {path: difference for path, (_, difference) in made.items()}


class _Stored(nn.Module):
    """`Metric.base`, then the network."""

    def __init__(self, metric: Metric, network: Transform) -> None:
        super().__init__()
        self.metric, self.network = metric, network

    def forward(self, x: Tensor) -> Tensor:
        if self.metric.name == "cosine":
            x = x / _norms(x)
        elif self.metric.max_norm is not None:
            rest = (self.metric.max_norm**2 - _norms(x).square()).clamp(min=0).sqrt()
            x = torch.cat([x, rest], 1)
        return self.network(x.float())


class _Queries(_Stored):
    """`Metric.queries`, then the network."""

    def forward(self, x: Tensor) -> Tensor:
        if self.metric.max_norm is None:
            return super().forward(x)
        norms = _norms(x)
        scaled = x * (self.metric.max_norm / torch.where(norms == 0, 1, norms))
        return self.network(F.pad(scaled, (0, 1)).float())


class _Decoded(_Stored):
    """The decoder, then `Metric.restore`."""

    def forward(self, x: Tensor) -> Tensor:
        decoded = self.network(x)
        if self.metric.name == "cosine":
            return (decoded / _norms(decoded)).float()
        return decoded[:, : decoded.shape[1] - self.metric.extra]


def _norms(x: Tensor) -> Tensor:
    """`(n, 1)` float64, as `Metric` takes them: M² - |x|² of inner products cancels."""
    return x.double().square().sum(1, keepdim=True).sqrt()


@torch.inference_mode()
def _torch(network: nn.Module, x: np.ndarray) -> np.ndarray:
    return network.eval()(torch.from_numpy(x)).numpy()


def _checked(module: _Stored, takes: str, x: Tensor, gives: str, expected: np.ndarray) -> tuple[bytes, float]:
    """The content of an ONNX file, and how far onnxruntime's numbers are from those expected."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch needs it, and would say so in many lines)
    except ModuleNotFoundError as error:
        raise MissingPackage(f'ONNX files need {error.name}, which is not installed: pip install "catalyzer[onnx]"') from None

    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)  # it warns of torchvision, which is not needed
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                (x[:2],),
                input_names=[takes],
                output_names=[gives],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise InvalidInput(f"torch cannot export {type(module.network).__name__} as ONNX ({reason})") from None
    finally:
        exporter.setLevel(level)
    assert program is not None
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    difference = float(np.abs(session.run([gives], {takes: x.numpy()})[0] - expected).max())
    if not difference <= RELATIVE_TOLERANCE * np.abs(expected).max():
        raise InvalidInput(
            f"onnxruntime {onnxruntime.__version__} and torch {torch.__version__} compute different {gives}, by up to "
            f"{difference:.2g}, so nothing was written; install the versions in constraints.txt"
        )
    return content, difference
