"""The frame of Hydra's commands: parse the command line, print errors as one sentence, end on Ctrl-C."""

import functools
import os
import shlex
import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import catalyzer
from catalyzer.commands.console import one_sentence_errors
from catalyzer.interrupts import interruptible
from catalyzer.runs.compose import CONF, HYDRAS_ERRORS, is_sweep, refusal, register_resolvers
from catalyzer.runs.overrides import spelled

Task = Callable[[DictConfig], Any]


def typed(*more: str, without: str = "job=") -> str:
    """The command as it can be typed again.

    Args:
        more: arguments behind those that it has.
        without: what arguments begin with that are left out; by default those that `src/reproduce.py` adds.
    """
    return shlex.join(["python", sys.argv[0], *(text for text in sys.argv[1:] if not text.startswith(without)), *more])


def same_again() -> str:
    """How to resume a command that finds its earlier results by itself."""
    return f"resume with: {typed()}"


def hydra_command(name: str, how_to_go_on: Callable[[], str] = same_again) -> Callable[[Task], Callable[[], None]]:
    """Make a command of a task, whose argument is the configuration composed from `conf/<name>.yaml` and the command line.

    Args:
        name: name of the YAML file.
        how_to_go_on: see `catalyzer.interrupts.interruptible`.
    """
    register_resolvers()

    def command_of(task: Task) -> Callable[[], None]:
        main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(task)

        @functools.wraps(task)
        def command() -> None:
            if "--version" in sys.argv[1:]:
                sys.stdout.write(f"{catalyzer.__version__}\n")
                return
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print
            with interruptible(how_to_go_on), one_sentence_errors():
                sys.argv[1:] = spelled(sys.argv[1:], _sweeping(name))
                try:
                    main()
                except HYDRAS_ERRORS as error:
                    if HydraConfig.initialized():  # a job had begun
                        raise
                    raise refusal(error, name, [text for text in sys.argv[1:] if not text.startswith("-")]) from None

        return command

    return command_of


def _sweeping(name: str) -> Callable[[], bool]:
    arguments = sys.argv[1:]
    if {"-m", "--multirun"} & {*arguments}:
        return lambda: True
    return functools.cache(lambda: is_sweep(name, [text for text in arguments if "=" in text and not text.startswith("-")]))
