"""Maps from the input space to the space that is quantized: the catalyzer (section 5.2), PCA (section 5.4), identity.

All are `torch.nn.Module`s from `(n, d_in)` to `(n, d_out)` float32 with `d_in`, `d_out` and `fit`, which takes from
training vectors what needs no gradient. They are saved as safetensors beside a JSON of their shape.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
import torch
from llvmlite.binding import get_host_cpu_features
from torch import Tensor, nn
from torch.nn import functional as F

from catalyzer._faiss import faiss
from catalyzer.cache import write_atomically
from catalyzer.errors import InvalidInput
from catalyzer.nn.batch_norm import BatchNorm
from catalyzer.vectors import BLOCK, Vectors, as_float32, float_blocks

FIT_SAMPLE = 1 << 17  # vectors that means, scales and principal axes are computed from


class Catalyzer(nn.Module):
    """The network f of section 5.2: a 3-layer perceptron with batch norm and ReLU, its output on the unit sphere.

    Args:
        d_in: dimension of the input.
        d_out: dimension of the output.
        hidden: width of the two hidden layers.

    Shape:
        `(n, d_in)` of any real dtype to `(n, d_out)`, rows of L2 norm 1.

    >>> f = Catalyzer(d_in=128, d_out=24).eval()
    >>> torch.allclose(f(torch.rand(5, 128)).norm(dim=1), torch.ones(5))
    True
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, d_in: int, d_out: int, hidden: int = 1024) -> None:
        super().__init__()
        self.d_in, self.d_out, self.hidden = d_in, d_out, hidden
        self.register_buffer("mean", torch.zeros(d_in))
        self.register_buffer("scale", torch.ones(()))
        self.layers = _perceptron(d_in, hidden, d_out)

    def fit(self, x: Vectors) -> Self:
        """Centre and scale the input by what `x` shows: one mean a dimension, one standard deviation for all.

        Raises:
            InvalidInput: all vectors are equal.
        """
        sample = _sample(x)
        self.mean.copy_(torch.from_numpy(sample.mean(axis=0)))
        deviation = float(sample.std(axis=0).mean())
        if deviation == 0:
            raise InvalidInput("all training vectors are equal; there is nothing to learn from them")
        self.scale.fill_(deviation)
        return self

    def normalize(self, x: Tensor) -> Tensor:
        """The input as the network sees it: centred, and of a standard deviation of 1 on average over the dimensions."""
        return (x.float() - self.mean) / self.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.layers(self.normalize(x)).float())


class Decoder(nn.Module):
    """The way back from the sphere to the original space: a perceptron of the catalyzer's kind. The paper has none.

    Args:
        d_in: dimension of the sphere's space.
        d_out: dimension of the original space.
        hidden: width of the two hidden layers.

    Shape:
        `(n, d_in)`, quantized points of norm 1, to `(n, d_out)` float32 in the original units.

    >>> g = Decoder(d_in=24, d_out=128).eval()
    >>> g(F.normalize(torch.rand(5, 24))).shape
    torch.Size([5, 128])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, d_in: int, d_out: int, hidden: int = 1024) -> None:
        super().__init__()
        self.d_in, self.d_out, self.hidden = d_in, d_out, hidden
        self.register_buffer("mean", torch.zeros(d_out))
        self.register_buffer("scale", torch.ones(()))
        self.layers = _perceptron(d_in, hidden, d_out)

    def fit(self, catalyzer: Catalyzer) -> Self:
        """Take over the units that `catalyzer` has found."""
        self.mean.copy_(catalyzer.mean)
        self.scale.copy_(catalyzer.scale)
        return self

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z).float() * self.scale + self.mean


def _perceptron(d_in: int, hidden: int, d_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(d_in, hidden),
        BatchNorm(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden),
        BatchNorm(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, d_out),
    )


class PCA(nn.Module):
    """Principal component analysis to d_out dimensions, then L2 normalization: the ablation of section 5.4.

    Args:
        d_in: dimension of the input.
        d_out: dimension of the output, at most d_in.

    Raises:
        InvalidInput: d_out above d_in.

    >>> x = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    >>> PCA(d_in=8, d_out=4).fit(x)(torch.from_numpy(x)).shape
    torch.Size([1000, 4])
    """

    matrix: Tensor
    bias: Tensor

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        if d_out > d_in:
            raise InvalidInput(f"PCA cannot map {d_in} dimensions to more, d_out = {d_out}; choose d_out of at most {d_in}")
        self.d_in, self.d_out = d_in, d_out
        self.register_buffer("matrix", torch.zeros(d_out, d_in))
        self.register_buffer("bias", torch.zeros(d_out))

    def fit(self, x: Vectors) -> Self:
        """Find the principal axes of `x` (faiss's PCA)."""
        pca = faiss.PCAMatrix(self.d_in, self.d_out)
        pca.train(_sample(x))
        self.matrix.copy_(torch.from_numpy(faiss.vector_to_array(pca.A).reshape(-1, self.d_in)[: self.d_out]))
        self.bias.copy_(torch.from_numpy(faiss.vector_to_array(pca.b)[: self.d_out]))
        return self

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(F.linear(x.float(), self.matrix, self.bias))


class Identity(nn.Module):
    """The vectors as they are, for plain baselines through the same door; d_out is d_in.

    >>> Identity(d_in=2)(torch.tensor([[3, 4]], dtype=torch.uint8))
    tensor([[3., 4.]])
    """

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.d_in = self.d_out = d_in

    def fit(self, x: Vectors) -> Self:
        """Nothing to fit."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def _sample(x: Vectors) -> np.ndarray:
    # Evenly spaced blocks: the file may be sorted, and only whole slices are cheap to read from it.
    if len(x) <= FIT_SAMPLE:
        return as_float32(x[:])
    step, size = 64, FIT_SAMPLE // 64
    starts = np.linspace(0, len(x) - size, step).astype(int)
    return as_float32(np.concatenate([x[start : start + size] for start in starts]))


@cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16, which then is about twice as fast as float32; emulated it would be slower.

    >>> multiplies_bfloat16(torch.device("meta"))
    False
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    features = get_host_cpu_features()  # as LLVM names them, on x86 and ARM
    return any(features.get(name) for name in ("avx512bf16", "amx-bf16", "bf16"))


@torch.inference_mode()
def embed(transform: nn.Module, vectors: Vectors, description: str | None = None) -> np.ndarray:
    """Map all vectors through `transform` in evaluation mode, block by block, on the device its tensors are on.

    Networks multiply in bfloat16 where the hardware does, as their training: codes have the same error then, and a few
    differ. PCA and identity stay in float32.

    Args:
        transform: fitted.
        vectors: `(n, d_in)`.
        description: what the progress display says; None shows none.

    Returns:
        `(n, d_out)` float32.

    >>> embed(Identity(d_in=2), np.eye(2, dtype=np.uint8)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    was_training = transform.training
    if was_training:  # asked first, since it takes longer than a single vector's way through the network
        transform.eval()
    tensors = [*transform.parameters(), *transform.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    out: np.ndarray | None = None
    first = 0
    fast = isinstance(transform, (Catalyzer, Decoder)) and multiplies_bfloat16(device)
    for block in float_blocks(vectors, description, BLOCK // 32):  # small blocks stay in the processor's cache
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            mapped = transform(torch.from_numpy(block).to(device)).cpu().numpy()
        if out is None:
            out = np.empty((len(vectors), mapped.shape[1]), np.float32)
        out[first : first + len(mapped)] = mapped
        first += len(mapped)
    if was_training:
        transform.train()
    return out if out is not None else np.empty((0, int(transform.d_out)), np.float32)  # type: ignore[arg-type]


_KINDS: dict[str, Callable[..., nn.Module]] = {"mlp": Catalyzer, "pca": PCA, "identity": Identity, "decoder": Decoder}
_SHAPE_KEYS = {
    "mlp": ("d_in", "d_out", "hidden"),
    "pca": ("d_in", "d_out"),
    "identity": ("d_in",),
    "decoder": ("d_in", "d_out", "hidden"),
}


def save_module(module: nn.Module, folder: Path, name: str, training_seconds: float) -> None:
    """Write `<name>.safetensors` and `<name>.json` (kind, shape, seconds of training) into `folder`, each whole or not at
    all."""
    from safetensors.torch import save

    kind = next(kind for kind, cls in _KINDS.items() if type(module) is cls)
    shape = {"kind": kind} | {key: getattr(module, key) for key in _SHAPE_KEYS[kind]}
    shape["training_seconds"] = training_seconds
    tensors = {key: t.detach().cpu().contiguous() for key, t in module.state_dict().items()}
    write_atomically(folder / f"{name}.safetensors", lambda file: file.write(save(tensors)))
    write_atomically(folder / f"{name}.json", lambda file: file.write(json.dumps(shape, indent=1).encode()))


def load_module(folder: str | Path, name: str) -> tuple[nn.Module, float]:
    """What `save_module` wrote into `folder` under `name`, in evaluation mode on the CPU, and the seconds of its training.

    Raises:
        InvalidInput: a file is missing or damaged, or weights and shape do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    weights, shape_file = Path(folder) / f"{name}.safetensors", Path(folder) / f"{name}.json"
    for path in (weights, shape_file):
        if not path.is_file():
            raise InvalidInput(f"{path}: no such file; expected a run folder whose run has ended")
    try:
        shape = json.loads(shape_file.read_text())
        kind, seconds = shape["kind"], float(shape["training_seconds"])
        module = _KINDS[kind](**{key: int(shape[key]) for key in _SHAPE_KEYS[kind]})
        module.load_state_dict(load(weights.read_bytes()))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(f"{folder}: {name}.safetensors and {name}.json cannot be loaded ({reason})") from None
    return module.eval(), seconds
