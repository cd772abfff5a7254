"""A run: its settings, how its parts are built, the experiment, its folder, and sweeps of runs."""

import shlex
from pathlib import Path

ERROR_FILE = "error.txt"
"""In the folder of a job of a sweep: why it failed, or has not ended yet."""

OVERRIDES_FILE = "overrides.yaml"
"""What a job was given, as Hydra spells it, in its folder from the first moment on."""

SWEPT_FILE = "swept.yaml"
"""The keys that vary, in the folder of a sweep."""


def not_ended(folder: Path) -> str:
    """The message about a job of a sweep that was killed, or is still running."""
    return f"has not ended; python src/train.py {shlex.quote(f'resume={folder}')} resumes it"
