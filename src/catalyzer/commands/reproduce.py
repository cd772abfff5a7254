"""The command of `src/reproduce.py`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from catalyzer.commands.console import one_sentence_errors
from catalyzer.commands.hydra_command import hydra_command, same_again
from catalyzer.commands.train import composed_settings
from catalyzer.errors import InvalidInput
from catalyzer.interrupts import interruptible
from catalyzer.runs.compose import compose_config, resolved
from catalyzer.runs.overrides import spelled
from catalyzer.runs.targets import TARGET_NAMES

if TYPE_CHECKING:
    from catalyzer.reproduce import Lab

OWN = ("target", "out", "seeds", "lambdas", "job")  # keys of this command, which src/train.py does not have
# What each row of a table chooses itself.
PER_ROW = ("catalyzer", "quantizer", "decoder", "query", "end_to_end", "baselines", "rerank", "steps", "refine", "split")
TAKES_VALUE = (  # of Hydra's options
    "-c", "--cfg", "-i", "--info", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir",
)  # fmt: skip
MULTIRUN = {"-m", "--multirun"}
SEARCH_PATH = "hydra.searchpath="
SWEEPS = {"experiment=crossvalidate", "experiment=search"}  # which Hydra would make of the target, before we are asked


@hydra_command("reproduce")
def make(config: DictConfig) -> None:
    with one_sentence_errors():
        values = resolved(config)
        overrides = HydraConfig.get().overrides
        lab = laboratory(values, list(overrides.task), [text for text in overrides.hydra if text.startswith(SEARCH_PATH)])

        from catalyzer.reproduce import jobs, make_targets

        if values["job"] is None:
            make_targets(values["target"], lab)
            return
        trainings = jobs(values["target"], lab)
        if values["job"] >= len(trainings):
            raise InvalidInput(f"job={values['job']}: {values['target']} has {len(trainings)} trainings, numbered from 0")
        lab.trained(trainings[values["job"]])


def laboratory(values: dict[str, Any], overrides: list[str], search_path: list[str]) -> "Lab":
    """The lab, which makes the runs: each is `src/train.py` with the user's overrides and its own.

    Raises:
        InvalidInput: values out of range, a trainer that is refused, or keys that a table sets itself.
    """
    from catalyzer.reproduce import Lab
    from catalyzer.runs.checks import check
    from catalyzer.runs.settings import Reproduction, Settings

    own = Reproduction.check({key: values[key] for key in OWN})

    def compose(given: Sequence[str]) -> Settings:
        run = resolved(compose_config("train", [*search_path, *given]))
        for key in ("resume", "trust"):
            del run[key]
        return composed_settings(run, list(given))

    shared = [text for text in overrides if text.split("=")[0] not in OWN]
    for text in shared:
        if text.split("=")[0] in PER_ROW:
            raise InvalidInput(f"{text}: each row of a table sets this itself; use src/train.py for a run of your own")
        if text == "experiment=paper":
            raise InvalidInput(
                "experiment=paper is for a single run; for tables and figures at the published size give scale=paper"
            )
    if not any(text.startswith("scale=") for text in shared):
        shared.insert(0, "scale=demo")
    given = [text for text in overrides if text.split("=")[0] not in ("target", "job")]
    lab = Lab(compose, shared, Path(own.out), own.seeds, own.lambdas, given)
    if own.target != "report":
        check(lab.common, lab.folder)
    return lab


def main() -> None:
    """Accept the target without `target=`; with -m, Hydra's launcher runs all trainings first, and then the rest follows."""
    with interruptible(same_again):
        _make(spelled(sys.argv[1:]))


def _make(arguments: list[str]) -> None:
    words = [
        i
        for i, text in enumerate(arguments)
        if not text.startswith("-") and "=" not in text and (i == 0 or arguments[i - 1] not in TAKES_VALUE)
    ]
    if len(words) > 1:
        with one_sentence_errors():
            raise InvalidInput(
                f"expected one target, got {' '.join(arguments[i] for i in words)}; give one, or all for every target"
            )
    options = {text for text in arguments if text.startswith("-")} - MULTIRUN
    if not words and not options and not any(text.startswith("target=") for text in arguments):
        with one_sentence_errors():
            raise InvalidInput(f"expected a target: {', '.join(TARGET_NAMES)}, all or report")
    for text in SWEEPS & {*arguments}:
        with one_sentence_errors():
            raise InvalidInput(f"{text} is a sweep of src/train.py; use the target table3, which chooses λ for each dimension")
    for i in words:
        arguments[i] = f"target={arguments[i]}"
    if MULTIRUN & {*arguments}:
        single = [text for text in arguments if text not in MULTIRUN and not text.startswith("hydra")]
        with one_sentence_errors():
            search_path = [text for text in arguments if text.startswith(SEARCH_PATH)]
            values = resolved(compose_config("reproduce", [*search_path, *single]))
            lab = laboratory(values, single, search_path)

            from catalyzer.reproduce import distinct, jobs

            numbers = distinct(jobs(values["target"], lab), lab)
        if numbers:
            sys.argv[1:] = [*arguments, f"job={','.join(map(str, numbers))}"]
            make()
        arguments = single
    sys.argv[1:] = arguments
    make()


if __name__ == "__main__":
    main()
