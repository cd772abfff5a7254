"""The errors, by who can fix them. Each message is one sentence: what was expected, what was given, what to do."""

import math
import operator
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Real


class CatalyzerError(Exception):
    """Base of all errors that are not bugs; the commands print its text and exit with code 2."""


class InvalidInput(CatalyzerError, ValueError):
    """A user's mistake: wrong shapes, values, settings or paths.

    >>> raise InvalidInput("lambda must be at least 0, got -1")
    Traceback (most recent call last):
    ...
    catalyzer.errors.InvalidInput: lambda must be at least 0, got -1
    """


class DamagedFile(CatalyzerError, ValueError):
    """A file that is truncated, fails its checksum or contradicts itself."""


class UntrustedPart(CatalyzerError, ValueError):
    """A file names a class outside this package, and the caller did not allow its module by `trust`."""


class MissingPackage(CatalyzerError, ImportError):
    """A package is not installed; the message names the extra that installs it."""


class Unavailable(CatalyzerError, OSError):
    """A resource is not available: a file that another process writes, a full disk, a missing server or device."""


class Conflict(CatalyzerError):
    """A file has changed since it was read, so writing it now would undo another process's change."""


def integer(name: str, value: object, least: int, most: int | None = None, most_is: str = "") -> int:
    """Check that a user's number is an integer of Python or NumPy within limits, and no boolean; returns a Python integer.

    Args:
        name: name of the number in an error.
        value: the number as given.
        least: smallest allowed value.
        most: largest allowed value, if any.
        most_is: meaning of the largest value, such as "the number of codes".

    Raises:
        InvalidInput: it is not.

    >>> integer("k", 3, 1)
    3
    >>> integer("k", 3.0, 1)
    Traceback (most recent call last):
    ...
    catalyzer.errors.InvalidInput: k must be an integer of at least 1; got 3.0
    """
    limits = f"of at least {least:,}" if most is None else f"between {least:,} and {most:,}{most_is and f', {most_is}'}"
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # which it is to find out
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise InvalidInput(f"{name} must be an integer {limits}; got {value!r}")
    if number < least or (most is not None and number > most):
        raise InvalidInput(f"{name} must be an integer {limits}; got {number:,}")
    return number


def finite(name: str, value: object, least: float = -math.inf) -> float:
    """A user's number as a Python float; raises `InvalidInput` if it is not finite, or below the least.

    >>> finite("radius", 1)
    1.0
    >>> finite("radius", "far")
    Traceback (most recent call last):
    ...
    catalyzer.errors.InvalidInput: radius must be a finite number; got 'far'
    """
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < least:
        raise InvalidInput(
            f"{name} must be a finite number{'' if math.isinf(least) else f' of at least {least:g}'}; got {value!r}"
        )
    return number


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the nearest known word, or nothing if none is near.

    >>> did_you_mean("lamda", ["lambda", "seed"]), did_you_mean("max_epochs", ["trainer.max_epochs"])
    ('; did you mean lambda?', '; did you mean trainer.max_epochs?')
    """
    known = list(words)
    last = {each.rpartition(".")[2]: each for each in reversed(known)}
    near = [last[word]] if word in last else get_close_matches(word, known, 1) or get_close_matches(word, last, 1)
    return f"; did you mean {last.get(near[0], near[0])}?" if near else ""
