"""The metrics of a run as a table in its folder, which stays readable after an interruption at any moment."""

import csv
import io
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers import Logger

from catalyzer.errors import InvalidInput
from catalyzer.files.atomic import write_atomically


class MetricsFile(Logger):
    """A logger that writes CSV: a line for each call that logs metrics, with its step, and a column for each name.

    Lightning's own logger deletes the file of a resumed run, and rewrites it in place for a new name. Metrics that are logged a
    second time for the same step are left out: checkpoints are preceded by metrics that Lightning itself logs later.

    Args:
        path: path of the file. Lines of a killed run are kept up to the step from which training resumes.
        step: step from which training resumes.

    Raises:
        InvalidInput: the existing file was not written by this logger.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "metrics.csv"
    >>> metrics = MetricsFile(path)
    >>> metrics.log_metrics({"loss": 0.5}, step=0)
    >>> metrics.log_metrics({"recall": 0.25}, step=1)
    >>> metrics.save()
    >>> print(path.read_text(), end="")
    step,loss,recall
    0,0.5,
    1,,0.25
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        super().__init__()
        self._path = path
        self._new: list[dict[str, Any]] = []
        self._logged: dict[str, int | None] = {}  # the last step of each name
        try:
            rows = [row for row in self._rows() if int(row["step"]) < step]
            self._columns = ["step", *sorted({name for row in rows for name in row} - {"step"})]
        except (KeyError, ValueError, TypeError, csv.Error):
            raise InvalidInput(
                f"{path}: expected the metrics of a run, with a step number in each line; remove the file"
            ) from None
        self._write(rows)

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the settings have a file of their own."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        new = {name: value for name, value in metrics.items() if name == "epoch" or self._logged.get(name, -1) != step}
        self._logged |= dict.fromkeys(new, step)
        if new.keys() - {"epoch"}:
            self._new.append({"step": step, **new})

    @rank_zero_only
    def save(self) -> None:
        """Write what was logged since the last time."""
        names = {name for row in self._new for name in row} - {*self._columns}
        if names:
            self._columns[1:] = sorted({*self._columns[1:], *names})
            self._write([*self._rows(), *self._new])
        elif self._new:
            with self._path.open("a", newline="") as file:
                file.write(self._lines(self._new))
        self._new = []

    def finalize(self, status: str) -> None:
        self.save()

    def _rows(self) -> list[dict[str, str]]:
        if not self._path.exists():
            return []
        whole = self._path.read_text().rpartition("\n")[0]  # a killed run may have left a part of a line at the end
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(io.StringIO(whole))]

    @rank_zero_only
    def _write(self, rows: list[dict[str, Any]]) -> None:
        content = self._lines([{name: name for name in self._columns}, *rows]).encode()
        write_atomically(self._path, lambda file: file.write(content))

    def _lines(self, rows: list[dict[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue()
