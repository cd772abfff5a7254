"""Make a dataset that `src/train.py` reads: `python src/prepare.py --help`."""

import hydra
from omegaconf import DictConfig

from catalyzer.commands.console import one_sentence_errors
from catalyzer.runs.compose import CONF, register_resolvers, resolved

register_resolvers()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="prepare")
def main(config: DictConfig) -> None:
    with one_sentence_errors():
        from catalyzer.runs.settings import PreparePhotosift, PreparePublished

        values = resolved(config)
        kind = PreparePhotosift if "images" in values else PreparePublished
        kind.check(values).prepare()


if __name__ == "__main__":
    main()
