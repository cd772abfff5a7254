"""Parts: classes that compose a run or an index, including users' own. Files name a part by class and arguments.

A part follows two conventions of scikit-learn. Each argument of its constructor is stored as an attribute of the same name.
What it learns is in attributes whose names end in an underscore or, for a network, in its `state_dict`.
"""

import importlib
import inspect
import json
from collections.abc import Sequence
from typing import Any, TypeVar

from catalyzer.errors import InvalidInput, UntrustedPart

Trust = str | Sequence[str]
"""Modules, such as `"my_parts"`, whose classes a file may name; their submodules are included."""

Kind = TypeVar("Kind")


class Part:
    """Base of all parts.

    Attributes:
        label: name of the part in tables and figures; by default the name of its class.

    >>> class Halve(Part):
    ...     def __init__(self, times: int = 1) -> None:
    ...         self.times = times
    >>> Halve.label, Halve(times=3).arguments
    ('Halve', {'times': 3})
    """

    label: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "label" not in vars(cls):
            cls.label = cls.__name__

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that make an equal part, apart from its learned state: by default the attributes of the same names.

        An argument whose default is None or a boolean is left out if it has its default. So a class can get a new argument
        without a change in the files of older parts.

        Raises:
            InvalidInput: the part has no attribute for an argument.
        """
        try:
            arguments = {name: getattr(self, name) for name in parameters(type(self))}
        except AttributeError as error:
            name = str(error.name)
            raise InvalidInput(
                f"{type(self).__name__} takes {name} but does not store it, so a file could not describe it; "
                f"add self.{name} = {name} to its __init__"
            ) from None
        defaults = inspect.signature(type(self)).parameters
        return {name: value for name, value in arguments.items() if not _as_by_default(value, defaults[name].default)}


def _as_by_default(value: Any, default: Any) -> bool:
    return value is default and (default is None or isinstance(default, bool))


def parameters(cls: type) -> list[str]:
    """The names of the constructor's arguments, without *args and **kwargs.

    >>> parameters(Part)
    []
    """
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, each in inspect.signature(cls).parameters.items() if each.kind in named]


def describe(part: Part) -> dict[str, Any]:
    """Class and arguments of a part, as stored in a file.

    Raises:
        InvalidInput: an argument that JSON cannot represent.
    """
    description = {"class": f"{type(part).__module__}.{type(part).__qualname__}", "arguments": part.arguments}
    try:
        return json.loads(json.dumps(description, allow_nan=False))
    except (TypeError, ValueError):
        raise InvalidInput(
            f"the arguments of {type(part).__name__} are saved to a file, so they must be numbers, strings, lists or "
            f"dicts of these; got {part.arguments}"
        ) from None


def find_class(path: str, kind: type[Kind], trust: Trust | None = None) -> type[Kind]:
    """The class of a path such as `"catalyzer.quantizers.LatticeQuantizer"`.

    Args:
        path: module and name, with dots.
        kind: required base class.
        trust: allowed modules in addition to this package; None, for a path typed by the user, allows all.

    Raises:
        UntrustedPart: the module is not allowed; it is not imported.
        InvalidInput: the module or class does not exist, or is not of this kind.

    >>> find_class("catalyzer.errors.InvalidInput", ValueError)
    <class 'catalyzer.errors.InvalidInput'>
    """
    module_name, _, name = path.rpartition(".")
    allowed = None if trust is None else ("catalyzer", *([trust] if isinstance(trust, str) else trust))
    _check_trust(path, module_name, allowed)
    if not module_name:
        raise InvalidInput(f"{path}: expected module and class, such as my_parts.{path}")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{path}: there is no module {error.name}; install it, or add its folder to PYTHONPATH") from None
    except AttributeError as error:
        raise InvalidInput(f"{path}: {error}") from None
    except Exception as error:  # whatever the module does
        raise InvalidInput(
            f"{path}: importing {module_name} failed: {' '.join(f'{type(error).__name__}: {error}'.split())}"
        ) from error
    if not isinstance(found, type) or not issubclass(found, kind):
        raise InvalidInput(f"{path}: expected a class derived from {kind.__module__}.{kind.__name__}")
    _check_trust(path, found.__module__, allowed)  # a module of ours has names of others, too
    return found


def _check_trust(path: str, module: str, allowed: tuple[str, ...] | None) -> None:
    if allowed is not None and not any(module == each or module.startswith(f"{each}.") for each in allowed):
        raise UntrustedPart(
            f"{path} is not a class of catalyzer, and loading it would run the code of its module; if you trust it, add "
            f"trust={module.partition('.')[0] or path}"
        )


def make(description: Any, kind: type[Kind], trust: Trust = ()) -> Kind:
    """The untrained part of a description by `describe`.

    Args:
        description: description from a file, which is checked.
        kind: required base class.
        trust: see `find_class`.

    Raises:
        UntrustedPart: see `find_class`.
        InvalidInput: an invalid description, class or arguments.
    """
    if not (
        isinstance(description, dict)
        and description.keys() == {"class", "arguments"}
        and isinstance(description["class"], str)
        and isinstance(description["arguments"], dict)
    ):
        raise InvalidInput(f"expected class and arguments of a part, got {str(description)[:100]}")
    cls = find_class(description["class"], kind, trust)
    try:
        return cls(**description["arguments"])
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{description['class']} cannot be made of {description['arguments']}: {error}") from None
