"""What the commands in `src/` share: Hydra resolvers, logging to the console, and errors as one sentence."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from catalyzer.cache import write_atomically
from catalyzer.errors import ERROR_FILE, InvalidInput

log = logging.getLogger(__name__)


class ConsoleHandler(logging.StreamHandler):
    """Writes to whatever `sys.stderr` is at the moment, so that lines appear above a live progress bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


def register_resolvers() -> None:
    """Make the functions below known to the YAML files, as in `${native_precision:${trainer.accelerator}}`."""

    def default_lambda(quantizer: str, d_out: int | str, decoder: str) -> float:
        from catalyzer.settings import DECODER_LAMBDA, SIGN_LAMBDA, paper_lambda

        if quantizer == "sign":
            return SIGN_LAMBDA
        return paper_lambda(d_out) if decoder == "none" else DECODER_LAMBDA

    def native_precision(accelerator: str) -> str:
        import torch

        from catalyzer.nn import multiplies_bfloat16

        device = torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
        return "bf16-mixed" if multiplies_bfloat16(device) else "32-true"

    # Milliseconds, since runs that a script starts side by side must not share a folder.
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")[:-3]

    def run_folder(resume: str | None, strategy: str = "auto") -> str:
        # Processes that SLURM has started share a folder, also when it starts them again.
        if strategy == "ddp" and (job := os.environ.get("SLURM_JOB_ID")):
            return f"outputs/slurm-{job}.{os.environ.get('SLURM_STEP_ID', 0)}"
        # A resumed run is logged where it began. Anything else, a mistyped folder too, gets a new name, since Hydra
        # creates the folder before our checks can refuse it.
        if resume and (Path(resume) / "config.yaml").is_file():
            return str(resume)
        return f"outputs/{stamp}"

    def launched_devices() -> int:
        # torchrun says how many processes it has started on this machine, SLURM on all.
        if local := os.environ.get("LOCAL_WORLD_SIZE"):
            return int(local)
        return int(os.environ.get("SLURM_NTASKS", 1)) // launched_nodes()

    def launched_nodes() -> int:
        if "LOCAL_WORLD_SIZE" in os.environ:
            return int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])
        return int(os.environ.get("SLURM_NNODES", 1))

    def cache_folder() -> str:
        if folder := os.environ.get("CATALYZER_CACHE"):
            return folder
        return str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "catalyzer")

    for resolver in (default_lambda, native_precision, run_folder, launched_devices, launched_nodes, cache_folder):
        name = resolver.__name__
        OmegaConf.register_new_resolver(name, resolver, use_cache=True, replace=True)


def check_launch(hydra_overrides: list[str]) -> None:
    """Refuse what several processes started from outside cannot do; let the first of them alone speak.

    Args:
        hydra_overrides: of Hydra's own keys, as typed.

    Raises:
        InvalidInput: processes of torchrun that would each make a folder of its own.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 and int(os.environ.get("SLURM_NTASKS", 1)) == 1:
        return
    named = any(text.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for text in hydra_overrides)
    if "TORCHELASTIC_RUN_ID" in os.environ and not named:
        raise InvalidInput("processes started by torchrun need a folder that they share: add hydra.run.dir=outputs/NAME")
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))):
        logging.getLogger("catalyzer").setLevel(logging.WARNING)


def compose_config(folder: Path, name: str, overrides: list[str]) -> DictConfig:
    """What `name` in the configuration `folder` composes to, also from within another command.

    Raises:
        InvalidInput: Hydra refuses the overrides.
    """
    running = GlobalHydra.instance().is_initialized()  # then its search path is the one to use
    with contextlib.nullcontext() if running else initialize_config_dir(str(folder.resolve()), version_base="1.3"):
        try:
            return compose(name, overrides)
        except HydraException as error:
            raise InvalidInput(" ".join(str(error).split())) from None


def resolved(config: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain values.

    Raises:
        InvalidInput: a key that must be given is missing, or an interpolation fails.
    """
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except MissingMandatoryValue as error:
        raise InvalidInput(f"{error.full_key} is missing; give it on the command line: {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        raise InvalidInput(f"the configuration cannot be resolved: {str(error).splitlines()[0]}") from None


@contextlib.contextmanager
def one_sentence_errors(output_folder: Path | None = None) -> Iterator[None]:
    """Print a user's mistake as one sentence on standard error and exit with code 2.

    Args:
        output_folder: what Hydra created for the run; removed again if it is still empty.
    """
    try:
        yield
    except (InvalidInput, OSError) as error:
        message = _sentence(error)
        if message is None:
            raise
    else:
        return
    sys.stderr.write(f"error: {message}\n")
    if output_folder is not None:
        with contextlib.suppress(OSError):  # not empty: a run that had begun keeps what it has
            output_folder.rmdir()
    sys.exit(2)


@contextlib.contextmanager
def errors_kept_in(folder: Path) -> Iterator[None]:
    """Write what goes wrong in a job of a sweep into its folder, `error.txt`, as one sentence, and let the sweep go on.

    A launcher cannot be left to deal with it: on an exit, that of one machine ends with the job, that of several processes
    stops them all or waits for ever. What is no user's mistake is logged with its traceback.
    """
    (folder / ERROR_FILE).unlink(missing_ok=True)  # of an earlier attempt
    try:
        yield
    except Exception as error:
        message = _sentence(error)
        if message is None:
            message = " ".join(f"{type(error).__name__}: {error}".split())
            log.exception("the job failed")
        else:
            log.error("error: %s", message)
        text = f"{message}\n".encode()
        write_atomically(folder / ERROR_FILE, lambda file: file.write(text))


def _sentence(error: Exception) -> str | None:
    """What a user did wrong; None where the error is not of that kind."""
    if isinstance(error, InvalidInput):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None


class SweepFolder(Callback):
    """A callback of Hydra's, by which a command learns the folder of the sweep that Hydra makes.

    Hydra's own callback at a sweep's end would not do: it is left out where a launcher gives up, and can return no exit code.
    """

    latest: ClassVar[Path | None] = None
    """None before a sweep has begun, and where there is none."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepFolder.latest = Path(config.hydra.sweep.dir)


def settings_to_resume(folder: str, overrides: list[str]) -> Any:
    """The settings of the run in `folder`.

    Raises:
        InvalidInput: not a run folder, or other overrides beside `resume`, which would silently change nothing.
    """
    from catalyzer.settings import Settings

    settings = Settings.load(Path(folder) / "config.yaml")
    others = [text for text in overrides if not text.startswith("resume=")]
    if others:
        raise InvalidInput(f"resume goes on with the settings of {folder}; leave out {' '.join(others)}")
    return settings
