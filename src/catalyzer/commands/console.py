"""Common code of the commands: logging to the console, errors as one sentence, sweeps, and resumed runs."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from catalyzer.errors import CatalyzerError, InvalidInput
from catalyzer.files.atomic import write_atomically
from catalyzer.runs import ERROR_FILE, OVERRIDES_FILE, SWEPT_FILE, not_ended
from catalyzer.runs.overrides import swept_keys

log = logging.getLogger(__name__)


class ConsoleHandler(logging.StreamHandler):
    """Writes to whatever `sys.stderr` is at the moment, so that lines appear above a live progress bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


def check_launch(hydra_overrides: list[str]) -> None:
    """Refuse what several processes of a launcher cannot do; only the first of them logs.

    Args:
        hydra_overrides: overrides of Hydra's own keys, as typed.

    Raises:
        InvalidInput: processes of torchrun that would each make a folder of its own.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 and int(os.environ.get("SLURM_NTASKS", 1)) == 1:
        return
    named = any(text.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for text in hydra_overrides)
    if "TORCHELASTIC_RUN_ID" in os.environ and not named:
        raise InvalidInput("processes started by torchrun need a common folder; add hydra.run.dir=outputs/NAME")
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))):
        logging.getLogger("catalyzer").setLevel(logging.WARNING)


@contextlib.contextmanager
def one_sentence_errors(output_folder: Path | None = None) -> Iterator[None]:
    """Print a user's mistake as one sentence on standard error and exit with code 2.

    Args:
        output_folder: folder that Hydra created for the run; removed at the end if it is still empty.
    """
    try:
        yield
    except (CatalyzerError, OSError, MemoryError) as error:
        message = _sentence(error)
        if message is None:
            raise
        sys.stderr.write(f"error: {message}\n")
        sys.exit(2)
    finally:
        if output_folder is not None:
            with contextlib.suppress(OSError):  # not empty: a run that had begun keeps what it has
                output_folder.rmdir()


@contextlib.contextmanager
def errors_kept_in(folder: Path) -> Iterator[None]:
    """Write the error of a sweep's job into its folder, `error.txt`, as one sentence, and let the sweep continue.

    The file exists from the beginning of an attempt, which may be killed, and is removed when it succeeds. So results of an
    earlier attempt, perhaps with other settings, are not taken for those of this one.

    Launchers do not handle an exit well: the basic one ends with the job, and those of several processes stop all jobs or wait
    forever. Errors that are not a user's mistake are logged with their traceback.
    """
    path = folder / ERROR_FILE
    write_atomically(path, lambda file: file.write(f"{not_ended(folder)}\n".encode()))
    try:
        yield
        path.unlink()
    except Exception as error:
        message = _sentence(error)
        if message is None:
            message = " ".join(f"{type(error).__name__}: {error}".split())
            log.exception("the job failed")
        else:
            log.error("error: %s", message)
        text = f"{message}\n".encode()
        write_atomically(path, lambda file: file.write(text))


def _sentence(error: Exception) -> str | None:
    """The sentence about a user's mistake; None for other errors."""
    if isinstance(error, CatalyzerError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"not enough memory{f' ({error})' if str(error) else ''}; free some, or give the process more"
    return None


class SweepFolder(Callback):
    """A callback of Hydra's that tells a command the folder of its sweep.

    Hydra's own callback at a sweep's end would not do: it is left out where a launcher gives up, and can return no exit code.
    """

    latest: ClassVar[Path | None] = None
    """None before a sweep has begun, and where there is none."""

    before: ClassVar[dict[Path, bytes]] = {}
    """What an earlier sweep in this folder had given its jobs; it is removed, so that the table has the jobs of this one."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepFolder.latest = Path(config.hydra.sweep.dir)
        patterns = (f"*/{OVERRIDES_FILE}", "sweep.csv", SWEPT_FILE)
        for path in (path for pattern in patterns for path in SweepFolder.latest.glob(pattern)):
            SweepFolder.before[path] = path.read_bytes()
            path.unlink()
        searched = OmegaConf.select(config, "hydra.sweeper.params") or {}  # of an experiment; the command line replaces it
        keys = swept_keys([*(f"{key}={value}" for key, value in searched.items()), *config.hydra.overrides.task])
        text = yaml.safe_dump(keys).encode()
        write_atomically(SweepFolder.latest / SWEPT_FILE, lambda file: file.write(text))  # for the jobs, wherever they run

    @classmethod
    def restore(cls) -> None:
        """Restore what `on_multirun_start` has removed, if the sweep has started no job."""
        if cls.latest is not None and not any(cls.latest.glob(f"*/{OVERRIDES_FILE}")):
            (cls.latest / SWEPT_FILE).unlink(missing_ok=True)
            for path, content in cls.before.items():
                path.write_bytes(content)
            with contextlib.suppress(OSError):  # not empty
                cls.latest.rmdir()
