"""Paths as users type them."""

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with `~` replaced by the user's folder; the name of an unknown user is left unchanged.

    >>> str(expanded("~nobody-of-this-name"))
    '~nobody-of-this-name'
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 - a Path would raise RuntimeError
