"""Paths as users type them."""

import os
from pathlib import Path

from catalyzer.errors import InvalidInput


def expanded(path: str | Path) -> Path:
    """The path with `~` replaced by the user's folder; the name of an unknown user is left unchanged.

    Raises:
        InvalidInput: not a path.

    >>> str(expanded("~nobody-of-this-name"))
    '~nobody-of-this-name'
    """
    if not isinstance(path, str | os.PathLike) or "\0" in str(path):
        raise InvalidInput(f"expected a path, got {path!r}")
    return Path(os.path.expanduser(path))  # noqa: PTH111 - a Path would raise RuntimeError
