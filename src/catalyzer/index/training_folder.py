"""The temporary folder of a training, kept until the index is saved."""

import logging
import shutil
import sys
import tempfile
import weakref
from pathlib import Path

log = logging.getLogger(__name__)


class TrainingFolder:
    """A temporary folder, removed by `remove`, or with this object, unless `keep` leaves it to the user.

    The folder is also kept if a script ends with an error, since the index in memory is then lost.

    >>> folder = TrainingFolder()
    >>> folder.remove()
    >>> folder.path.exists()
    False
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="catalyzer-"))
        self._finalizer = weakref.finalize(self, _remove_unless_failing, self.path)

    def remove(self) -> None:
        """Remove the folder, once; not one that is kept."""
        self._finalizer()

    def keep(self) -> None:
        """Leave the folder where it is, and log its path."""
        if self._finalizer.detach():
            _tell(self.path)


def _remove_unless_failing(folder: Path) -> None:
    if hasattr(sys, "last_value") and not hasattr(sys, "ps1"):  # an unhandled error, and no interactive session that continues
        _tell(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _tell(folder: Path) -> None:
    log.warning("the training is kept in %s; the same call of fit with folder='%s' resumes it", folder, folder)
