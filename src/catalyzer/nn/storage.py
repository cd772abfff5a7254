"""Parts in a run's folder: class and arguments as JSON, learned state as safetensors."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from catalyzer.errors import CatalyzerError, DamagedFile, InvalidInput
from catalyzer.files.atomic import write_atomically
from catalyzer.parts import Part, Trust, describe, make


class Stateful(Protocol):
    """An object with a learned state: a network or a quantizer."""

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> object: ...


Kind = TypeVar("Kind", bound=Part)


def tensors(part: Stateful, prefix: str = "") -> dict[str, Tensor]:
    """The learned state of a part, by name, as tensors on the CPU with their own memory."""
    return {f"{prefix}{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in part.state_dict().items()}


def digest(parts: Mapping[str, Part | None]) -> str:
    """BLAKE2b-256, in hexadecimal, of parts by name: equal if they are identical, to the last bit."""
    from safetensors.torch import save

    made = {name: part for name, part in parts.items() if part is not None}
    text = json.dumps({name: describe(part) for name, part in made.items()}, sort_keys=True).encode()
    state = {key: tensor for name, part in made.items() for key, tensor in tensors(part, f"{name}.").items()}  # type: ignore[arg-type]
    return hashlib.blake2b(text + save(state), digest_size=32).hexdigest()


def restored(description: Any, kind: type[Kind], state: Mapping[str, Tensor], trust: Trust = ()) -> Kind:
    """The part of a description, with its learned state; a network in evaluation mode.

    Networks of this package are made on the meta device, so that nothing is allocated for sizes claimed by a file.

    Raises:
        InvalidInput: description and state do not match.
        UntrustedPart: see `catalyzer.parts.find_class`.
    """
    is_network = issubclass(kind, nn.Module)
    is_ours = isinstance(description, dict) and str(description.get("class")).startswith("catalyzer.")
    with torch.device("meta") if is_ours and is_network else nullcontext():
        part: Any = make(description, kind, trust)
    if not is_network:
        part.load_state_dict(state)
        return part
    needed, given = ({key: (each.shape, each.dtype) for key, each in of.items()} for of in (part.state_dict(), state))
    if given != needed:
        raise InvalidInput(f"the tensors are not those of {description}")
    part.load_state_dict(state, assign=is_ours)
    return part.eval()


def save_part(part: Part, folder: Path, name: str, training_seconds: float) -> None:
    """Write `<name>.safetensors` and `<name>.json` (class, arguments, seconds of training) into `folder`, each atomically."""
    from safetensors.torch import save

    content = save(tensors(part))  # type: ignore[arg-type]
    text = json.dumps({**describe(part), "training_seconds": training_seconds}, indent=1)
    write_atomically(folder / f"{name}.safetensors", lambda file: file.write(content))
    write_atomically(folder / f"{name}.json", lambda file: file.write(text.encode()))


@torch.inference_mode(False)  # a caller may be in that mode, whose tensors no gradient passes, and `steps` follow gradients
def load_part(folder: str | Path, name: str, kind: type[Kind], trust: Trust = ()) -> tuple[Kind, float]:
    """The part that `save_part` wrote under `name`, a network in evaluation mode on the CPU; and its seconds of training.

    Args:
        folder: folder of the run.
        name: name of the part.
        kind: required base class.
        trust: other modules whose classes may be named; see `catalyzer.parts.find_class`.

    Raises:
        InvalidInput: a file is missing.
        DamagedFile: a file is damaged, or weights and arguments do not match.
        UntrustedPart: the class is of a module that is not allowed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    weights, description = Path(folder) / f"{name}.safetensors", Path(folder) / f"{name}.json"
    for path in (weights, description):
        if not path.is_file():
            raise InvalidInput(f"{path}: no such file; expected the folder of a finished run")
    try:
        content = json.loads(description.read_text())
        seconds = float(content.pop("training_seconds"))
        part = restored(content, kind, load(weights.read_bytes()), trust)
    except (InvalidInput, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, CatalyzerError) and not isinstance(error, InvalidInput):
            raise
        reason = str(error).splitlines()[0]
        raise DamagedFile(f"{folder}: {name}.safetensors and {name}.json cannot be loaded ({reason})") from None
    return part, seconds
