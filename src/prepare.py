"""Make a dataset that `src/train.py` reads: `python src/prepare.py --help`."""

from omegaconf import DictConfig

from catalyzer.commands.console import one_sentence_errors
from catalyzer.commands.hydra_command import hydra_command
from catalyzer.runs.compose import resolved


@hydra_command("prepare")
def main(config: DictConfig) -> None:
    with one_sentence_errors():
        from catalyzer.runs.settings import preparation

        preparation(resolved(config)).prepare()


if __name__ == "__main__":
    main()
