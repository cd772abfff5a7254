"""Make a table or a figure of the paper: `python src/reproduce.py --help`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from catalyzer.commands import compose_config, one_sentence_errors, register_resolvers, resolved

if TYPE_CHECKING:
    from catalyzer.reproduce import Lab

register_resolvers()
CONF = Path(__file__).parent.parent / "conf"
OWN = ("target", "out", "seeds", "lambdas", "job")  # keys of this command, which src/train.py does not have


@hydra.main(version_base="1.3", config_path="../conf", config_name="reproduce")
def make(config: DictConfig) -> None:
    with one_sentence_errors():
        values = resolved(config)
        lab = laboratory(values, HydraConfig.get().overrides.task)

        from catalyzer.reproduce import jobs, make_targets

        if values["job"] is not None:
            lab.trained(jobs(values["target"], lab)[values["job"]])
        else:
            make_targets(values["target"], lab)


def laboratory(values: dict[str, Any], overrides: list[str]) -> "Lab":
    """What makes the runs: each is `src/train.py` with the user's overrides and its own."""
    from catalyzer.reproduce import Lab
    from catalyzer.settings import Settings

    def compose(given: list[str]) -> Settings:
        run = resolved(compose_config(CONF, "train", given))
        del run["resume"]
        return Settings.check(run)

    shared = [text for text in overrides if text.split("=")[0] not in OWN]
    if not any(text.startswith("scale=") for text in shared):
        shared.insert(0, "scale=demo")
    return Lab(compose, shared, Path(values["out"]), values["seeds"], values["lambdas"])


def main() -> None:
    """Take the target without `target=`; with -m, have Hydra's launcher make all trainings first, then go on as without."""
    arguments = sys.argv[1:]
    for i, text in enumerate(arguments):
        if not text.startswith("-") and "=" not in text:
            arguments[i] = f"target={text}"
    single = [text for text in arguments if text not in ("-m", "--multirun") and not text.startswith("hydra")]
    if len(single) < len(arguments) and not {"-h", "--help", "--hydra-help", "--info"} & {*arguments}:
        with one_sentence_errors():
            values = resolved(compose_config(CONF, "reproduce", single))
            lab = laboratory(values, single)

            from catalyzer.reproduce import jobs

            count = len(jobs(values["target"], lab))
        if count:
            sys.argv[1:] = [*arguments, f"job={','.join(map(str, range(count)))}"]
            make()
        arguments = single
    sys.argv[1:] = arguments
    make()


if __name__ == "__main__":
    main()
