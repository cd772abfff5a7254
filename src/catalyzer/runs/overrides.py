"""Overrides in Hydra's grammar, with paths as typed in a shell; Hydra's errors become one sentence."""

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException

from catalyzer.errors import InvalidInput, did_you_mean
from catalyzer.parts import find_class

PATHS = frozenset(
    [
        *("dataset.learn", "dataset.base", "dataset.queries", "dataset.groundtruth", "dataset.root"),
        *("resume", "run", "input", "output", "codes", "queries", "images", "out", "cache"),
        *("source", "learn", "base", "texts", "wordnet", "gcide", "model"),  # of src/prepare.py
        *("hydra.run.dir", "hydra.sweep.dir"),
    ]
)
"""Keys whose values are paths, whatever else Hydra's grammar could take them for."""

FOREIGN = "dataset."
"""Begins the keys of datasets of others, whose texts may be paths."""

_ELEMENTS = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^,])+""")
"""What commas outside of quotes separate."""


def spelled(overrides: Sequence[str], sweeping: Callable[[], bool] = lambda: False) -> list[str]:
    """The overrides with paths quoted where Hydra's grammar asks for it, and with `~` and `$NAME` in them replaced.

    Values that the user has quoted for Hydra stay the same.

    Args:
        overrides: overrides as typed.
        sweeping: whether a comma separates the values of a sweep; asked for where a path has one.

    Raises:
        InvalidInput: in a sweep, a path with a comma that there is.

    >>> spelled(["dataset.learn=a=b (1).npy", "resume=null", "dataset.base='c,d.npy'", "lambda=0.1,0.2"])
    ["dataset.learn='a=b (1).npy'", 'resume=null', "dataset.base='c,d.npy'", 'lambda=0.1,0.2']
    """
    return [_spelled(text, sweeping) for text in overrides]


def _spelled(text: str, sweeping: Callable[[], bool]) -> str:
    typed, equals, value = text.partition("=")
    key = typed.lstrip("+")
    if not equals or not (key in PATHS or key.startswith(FOREIGN)):
        return text
    parsed = _parsed(text)
    kind = None if parsed is None else parsed.value_type
    several = kind not in (None, ValueType.ELEMENT) or (kind is None and "," in value)
    if several and not key.startswith("hydra.") and sweeping():
        return text if kind not in (None, ValueType.SIMPLE_CHOICE_SWEEP) else _swept(typed, value)
    content: Any = value if parsed is None else parsed.value()
    if content is None or not (isinstance(content, str) or key in PATHS):  # numbers and lists of a dataset of somebody's
        return text
    quoted = isinstance(content, str) and (value.lstrip().startswith(("'", '"')) or "\\" in value)
    path = os.path.expanduser(os.path.expandvars(content if quoted else value))  # noqa: PTH111 - a Path would drop ./ and /
    return text if parsed is not None and path == content else f"{typed}={_in_grammar(path)}"


def _swept(typed: str, value: str) -> str:
    if any("," in path.name and path.exists() for path in (Path(value), *Path(value).parents)):
        quoted = shlex.quote(f"{typed}={QuotedString(value, Quote.double).with_quotes()}")
        raise InvalidInput(
            f"{typed}={value}: a comma separates the values of a sweep, but a path with this comma exists; quote it: {quoted}"
        )
    elements = [_spelled(f"{typed}={each.strip()}", lambda: False) for each in _ELEMENTS.findall(value)]
    return f"{typed}={','.join(each.partition('=')[2] for each in elements)}"


def by_key(overrides: Sequence[str]) -> dict[str, str]:
    """The values, as Hydra spells them, by key.

    >>> by_key(["lambda=0.01", "+catalyzer.norm=batch"])
    {'lambda': '0.01', 'catalyzer.norm': 'batch'}
    """
    return {key.lstrip("+"): value for key, _, value in (text.partition("=") for text in overrides)}


def swept_keys(overrides: Sequence[str]) -> list[str]:
    """The keys that a sweep with these overrides varies. The last override of a key counts.

    >>> swept_keys(["lambda=tag(log, interval(0.01, 1))", "d_out=16,24", "bits=64", "+seed=choice(1,2)", "d_out=16"])
    ['lambda', 'seed']
    """
    given = {each.key_or_group: each for each in OverridesParser.create().parse_overrides([*overrides])}
    return [key for key, each in given.items() if each.is_sweep_override()]


def _parsed(text: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def _in_grammar(value: str) -> str:
    parsed = _parsed(f"key={value}")
    if parsed is not None and parsed.value() == value and not value.startswith(("'", '"')):
        return value
    return QuotedString(value, Quote.single).with_quotes()


def explained(error: Exception, overrides: Sequence[str], config: Mapping[str, Any], options: Mapping[str, list[str]]) -> str:
    """One sentence on what Hydra refuses, without advice that would be refused in turn.

    Args:
        error: error of Hydra or OmegaConf.
        overrides: overrides that it refuses.
        config: configuration without them.
        options: by key that the chosen options lack, those that have it.
    """
    message = " ".join(str(error if str(error) or not error.__cause__ else error.__cause__).split())
    message = message.partition(" See https://")[0]
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}={option}: expected one of {', '.join(error.options)}{did_you_mean(option, error.options)}"
    if isinstance(error, OverrideParseException):
        key, equals, value = error.override.partition("=")
        reason = "" if message.startswith(("Lexer", "Error parsing")) else f" ({message})"
        quoted = shlex.quote(f"{key}={QuotedString(value, Quote.double).with_quotes()}")
        advice = f"to give a string, quote it: {quoted}" if equals else "expected KEY=VALUE"
        return f"{error.override}: not in Hydra's grammar{reason}; {advice}"
    named = re.findall("'([^']*)'", message)
    text = next((each for each in overrides if {each, each.lstrip("+~").partition("=")[0]} & {*named}), "")
    if text and message.startswith(("Could not override", "Could not delete")):
        return _unknown_key(text, config, options)
    if message.startswith(("Could not append", "Multiple values")):
        return f"{text or ' '.join(overrides)}: this key already exists; leave out the +"
    if text and message.startswith(("Ambiguous value", "Sweep parameters")):
        key, _, value = text.partition("=")
        return f"{text}: several values need a sweep, src/train.py -m; for a list use brackets: {key}=[{value}]"
    return f"{' '.join(overrides)}: {message}"


def _unknown_key(text: str, config: Mapping[str, Any], options: Mapping[str, list[str]]) -> str:
    key, _, value = text.lstrip("+~").partition("=")
    parent, _, name = key.rpartition(".")
    if key in options:
        return f"{key} is a key of {' and of '.join(options[key])}, which is not selected; add it"
    node: Any = config
    for each in parent.split("."):
        node = node.get(each) if isinstance(node, Mapping) else None
    if isinstance(node, Mapping) and _takes(node, name, value):
        return f"{key} is not in the settings yet; add it with a +: {shlex.quote(f'+{text}')}"
    near = did_you_mean(key, [*_keys(config), *options])
    return f"there is no key {key}{near or '; --help shows all keys'}"


def _takes(node: Mapping[str, Any], name: str, value: str) -> bool:
    from catalyzer.runs.build import arguments_of  # which imports torch

    if isinstance(node.get("_target_"), str):
        return name in arguments_of(find_class(node["_target_"], object))[0]
    return value.startswith("{") and any(isinstance(each, Mapping) and "_target_" in each for each in node.values())


def _keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{name}.")
