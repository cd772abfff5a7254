"""Composing `conf/` with Hydra, also from within Python, and the resolvers that its files use."""

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from catalyzer.errors import CatalyzerError, InvalidInput
from catalyzer.runs.defaults import default_d_out, default_lambda, default_rerank, default_steps
from catalyzer.runs.overrides import PATHS, explained, spelled
from catalyzer.runs.targets import TARGET_NAMES

_PACKAGE = Path(__file__).parents[1]
CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parents[1] / "conf") if path.is_dir())
"""The folder of the YAML files: in the package where it is installed, else that of the checkout."""


def register_resolvers() -> None:
    """Make the functions below known to the YAML files, as in `${native_precision:${trainer.accelerator}}`."""

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

    def reproduce_targets() -> str:
        return " ".join(TARGET_NAMES)

    def options(*names: str) -> str:
        # For --help, where Hydra itself would also list the groups of other commands.
        groups = names or sorted(
            path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "prepare")
        )
        return "\n".join(f"{name}: {', '.join(sorted(path.stem for path in (CONF / name).glob('*.yaml')))}" for name in groups)

    cached = (native_precision, run_folder, launched_devices, launched_nodes, cache_folder)
    for resolver in (default_d_out, default_lambda, default_rerank, default_steps, reproduce_targets, options, *cached):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, use_cache=resolver in cached, replace=True)


def compose_config(name: str, overrides: list[str]) -> DictConfig:
    """Compose `conf/<name>.yaml` with these overrides, also while another command or the user's own Hydra runs.

    Raises:
        InvalidInput: Hydra refuses the overrides.
    """
    try:
        return _composed(name, spelled(overrides))
    except HYDRAS_ERRORS as error:
        raise refusal(error, name, overrides) from None


HYDRAS_ERRORS = (HydraException, OmegaConfBaseException, ValueError)
"""What composing raises where overrides are wrong."""


def refusal(error: Exception, name: str, overrides: Sequence[str]) -> InvalidInput:
    """One sentence on why `conf/<name>.yaml` cannot be composed with these overrides."""
    if isinstance(error, InvalidInput):
        return error
    groups = {path.name: sorted(path.glob("*.yaml")) for path in CONF.iterdir() if path.is_dir()}
    chosen = [text for text in overrides if text.partition("=")[0] in groups]
    try:
        config = _composed(name, chosen, whole=True)
    except HYDRAS_ERRORS:
        config = _composed(name, [], whole=True)
    values: Any = OmegaConf.to_container(config, resolve=False)
    if not any("hydra" in text for text in overrides):
        del values["hydra"]
    options: dict[str, list[str]] = {}
    for group in groups.keys() & values.keys():
        for path in groups[group]:
            for key in map(str, OmegaConf.load(path)):
                options.setdefault(f"{group}.{key}", []).append(f"{group}={path.stem}")
    return InvalidInput(explained(error, overrides, values, options))


def is_sweep(name: str, overrides: Sequence[str]) -> bool:
    """Whether these overrides, except those of paths, are a sweep for Hydra."""
    others = [text for text in overrides if text.lstrip("+").partition("=")[0] not in PATHS]
    try:
        return _composed(name, others, whole=True).hydra.mode == RunMode.MULTIRUN
    except HYDRAS_ERRORS:  # which Hydra itself will refuse
        return False


def _composed(name: str, overrides: list[str], whole: bool = False) -> DictConfig:
    register_resolvers()
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()  # there can be only one
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(name, overrides, return_hydra_config=whole)
    finally:
        GlobalHydra.instance().hydra = running


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
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, CatalyzerError):  # of a resolver that looks at a part
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None
        raise InvalidInput(f"the configuration cannot be resolved: {str(error).splitlines()[0]}") from None
