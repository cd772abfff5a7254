"""Paths as users type them."""

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with the user's folder in the place of `~`; a user that there is not stays as it is typed.

    >>> str(expanded("~nobody-of-this-name"))
    '~nobody-of-this-name'
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 - a Path would raise RuntimeError
